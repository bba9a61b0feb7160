// How a host program (Python by ctypes, or C++) steers the emulation and asks what it found. Not thread-safe: one
// launch at a time, and no call of these during a launch.
//
// A launch in which anything was found returns cudaErrorLaunchFailure from gpu::launch; gpu::error_text has the text.
// Nothing here ends the process. A kernel that failed is abandoned where it stood, as on a GPU: its threads do not run
// on, no destructor of theirs is called, and what they had written stays.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#pragma GCC visibility push(default)
#endif

// ---- how to run ----

enum EmuOrder {
  EMU_ROUND_ROBIN,      // a collective at a time, warp after warp
  EMU_LAST_WARP_FIRST,  // blocks, warps and lanes from the last to the first, each warp as far ahead as it gets
  EMU_RANDOM,           // any lane that can run
  EMU_WARP_PRIORITIES   // warps as far ahead as they get, in an order drawn anew at each barrier; lanes at random
};
void emu_set_order(int order, uint64_t seed);

// What a GPU allows a block, static and dynamic shared memory together; at the start 227 KiB (sm_90).
void emu_set_shared_limit(size_t bytes);

enum EmuMmaRounding {
  EMU_MMA_NEAREST,  // fp32 sums, term by term
  EMU_MMA_TRUNCATE  // as tensor cores were found to: terms aligned to the largest and cut off, the sum cut to fp32
};
void emu_set_mma_rounding(int rounding);

// ---- what the kernels may touch (the checker needs to be told; the other modes take no notice) ----

enum EmuRegionKind {
  EMU_INPUT,   // written by no kernel
  EMU_OUTPUT,  // holds nothing yet: to be written before it is read
  EMU_INOUT
};
// The same span may be registered again, as often as it is then unregistered; spans that overlap otherwise are
// reported, so register the whole storage of tensors that are views of one.
void emu_register(void* start, size_t bytes, const char* name, int kind);
void emu_unregister(void* start);
// An array cut from a registered buffer: from now on the parts stand for the buffer, so that running from one into the
// next is an error, and their traffic is counted apart. They go when the buffer is unregistered.
void emu_register_part(void* start, size_t bytes, const char* name);

// ---- what was found ----

const char* emu_mode(void);  // "plain", "asan" or "check"
size_t emu_report_count(void);
const char* emu_report_text(void);  // good until the next launch or call of emu_reset_reports
void emu_reset_reports(void);

// ---- synchronisation sites: each source line with a barrier, a __syncwarp or a cp.async wait ----
//
// __syncthreads_count, _or and _and are not among them: without them there would be no value to go on with.

// JSON: [{"site": "kernel.cuh:12", "file": ..., "line": 12, "operation": "__syncthreads", "count": calls, "disabled":
// false}, ...], all that have run so far.
const char* emu_sync_sites(void);
void emu_reset_sync_counts(void);
// "kernel.cuh:12", the last part of its path; from now on the operation does nothing. 1 if a site of that name has
// run already, 0 if none has, yet.
int emu_disable_site(const char* site);
void emu_enable_all_sites(void);

// ---- traffic between the kernels and registered memory (checker only) ----

// JSON: {"name": {"bytes": size, "read": total, "read_unique": bytes read at least once, "written": ...,
// "written_unique": ..., "touched": bytes read or written at least once}, ...}; regions of one name are summed, regions
// that are gone are kept.
const char* emu_traffic(void);
void emu_reset_traffic(void);

// ---- what it took ----

uint64_t emu_switches(void);  // from thread to thread, so far

#ifdef __cplusplus
#pragma GCC visibility pop
}
#endif

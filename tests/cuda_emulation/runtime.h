// What emulation.h (compiled into the kernels, with whatever instrumentation a mode asks for) needs of runtime.cpp
// (never instrumented): one fiber per CUDA thread, and the operations at which threads wait for each other.
#pragma once

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>

// Last parameter of every operation that can be a mistake: the source line of the call.
#define EMU_HERE ::emu::Where where = {__builtin_FILE(), __builtin_LINE()}

// On functions that look at several lanes at once, which is the hardware's work and no access by any thread.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread", "address", "undefined")))

namespace emu {

struct Where {
  const char* file;
  int line;
};

enum class Op : uint8_t {
  kBarrier,
  kNamedBarrier,
  kBarrierReduce,
  kSyncwarp,
  kCopyWait,
  kShuffle,
  kVote,
  kReduce,
  kMma,
  kLdmatrix
};

// ---- who am I (constant for a thread, hence [[gnu::const]]: read once, kept in registers, unseen by the checker) ----

[[gnu::const]] uint3 thread_index();
[[gnu::const]] uint3 block_index();
[[gnu::const]] uint3 block_size();
[[gnu::const]] uint3 grid_size();
[[gnu::const]] int lane_index();

// ---- waiting for each other ----

// All threads of the block that have not exited (threads = 0), or the given number of them.
void block_barrier(int id, int threads, Where where);

enum class Reduction { kCount, kAny, kAll };
int block_barrier_reduce(Reduction reduction, int value, Where where);

// The lanes of the mask meet, each with some data of its own; the last to arrive calls combine, once for all, with the
// data of each lane (null for a lane that is not among `active`). The data may live on the stack of its thread.
using Combine = void (*)(void* const* lanes, unsigned active);
void warp_collective(Op op, unsigned mask, void* data, Combine combine, Where where);

// The same for instructions that need all 32 lanes.
void whole_warp(Op op, void* data, Combine combine, Where where);

void sync_warp(unsigned mask, Where where);

// ---- shared memory ----

// The block's array of that key; full of NaN when the block starts and walled in by guards.
void* shared_array(const void* key, size_t bytes, size_t alignment, const char* name);
void carve_begin();
void* carve(size_t bytes, size_t alignment);

// ---- cp.async ----

struct Copy {
  void* target;
  const void* source;
  int bytes, valid;
  Where where;
  alignas(16) unsigned char data[16];
};

void copy_issue(const Copy& copy);
void copy_commit();
// How many copies are complete once all groups but the latest `keep` are, and the next of them, whose bytes the caller
// writes to its target.
size_t copies_to_land(int keep, Where where);
Copy next_to_land();

// ---- mma ----

// d += a b, rounded as the configuration says.
void multiply_accumulate(float (&d)[16][8], const float (&a)[16][16], const float (&b)[16][8]);

// ---- errors: the kernel stops, its launch fails, the text is kept as a report ----

[[noreturn, gnu::format(printf, 2, 3)]] void fail(Where where, const char* format, ...);
void expect_aligned(const char* what, const void* pointer, int alignment, Where where);
void expect_shared(const char* what, const void* pointer, int bytes, Where where);
// Data read past the coherent path (__ldg) must not be written by the same launch.
void expect_read_only(const void* pointer, size_t bytes, Where where);

// ---- launching ----

// Runs body(closure) once for each thread of the grid, block after block.
cudaError_t run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(const void*), const void* closure,
                size_t closure_bytes);
const char* error_text(cudaError_t error);
int shared_memory_per_block();
uint64_t switches();  // from thread to thread, so far

}  // namespace emu

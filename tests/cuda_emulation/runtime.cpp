// The machine: one fiber per CUDA thread, one block after another, and a scheduler that picks who runs next whenever a
// thread has to wait. Compiled without instrumentation in every mode; it finds AddressSanitizer by weak symbols.
#include "runtime.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checker.h"
#include "config.h"
#include "faults.h"
#include "reports.h"
#include "shared_memory.h"
#include "sites.h"
#include "symbols.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulation switches fibers in x86-64 assembly and reads Linux signal contexts"
#endif

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void*, size_t);
__attribute__((weak)) void __asan_set_error_report_callback(void (*)(const char*));

// Saves the callee-saved registers on the stack, its pointer in *from, and takes up where `to` was saved.
__attribute__((visibility("hidden"))) void emu_switch_stack(void** from, void* to);
__attribute__((visibility("hidden"))) void emu_thread_start();
__attribute__((visibility("hidden"), used)) void emu_thread_main();
}

asm(R"(
.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack

.globl emu_thread_start
.hidden emu_thread_start
.type emu_thread_start, @function
emu_thread_start:
  xorl %ebp, %ebp
  call emu_thread_main
  ud2
.size emu_thread_start, .-emu_thread_start
)");

namespace emu {

namespace {

constexpr int kWarpSize = 32;
constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarpSize;
constexpr int kNamedBarriers = 16;
constexpr int kRendezvous = 8;  // different masks that the lanes of one warp can wait for at the same time

// A stack, and where on it someone stopped. The host is one as well.
struct Context {
  void* stack_pointer = nullptr;
  char* stack_low = nullptr;
  size_t stack_bytes = 0;
  void* asan_fake_stack = nullptr;
};

enum class State : uint8_t { kRuns, kWaits, kExited };

struct Fiber : Context {
  uint3 index;
  int rank, warp, lane;
  State state;
  Op op;        // that it waits in,
  Where where;  // and where
  unsigned carved;
  std::deque<Copy> copies;    // issued and not landed, the oldest first
  std::deque<size_t> groups;  // how many of them each committed group has; the rest is not committed
};

struct Rendezvous {
  unsigned mask = 0, arrived = 0;
  Op op;
  Where where;
  Combine combine;
  void* data[kWarpSize];
};

struct Warp {
  unsigned ready, present, exited;  // lanes
  Rendezvous rendezvous[kRendezvous];
};

struct Barrier {
  Op op;
  int arrived, needed;  // needed = 0: all that live
  uint32_t waiting[kMaxWarps];
  Where where[kMaxWarps];              // of the first lane that came
  int count, any, all;                 // so far
  int last_count, last_any, last_all;  // of the last round
};

class Machine {
 public:
  Fiber* current = nullptr;  // null while the host runs
  uint3 block{}, block_size{}, grid{};
  SharedMemory shared;
  uint64_t switches = 0;

  cudaError_t run(dim3 grid_dim, dim3 block_dim, size_t dynamic_bytes, void (*body)(const void*), const void* closure,
                  size_t closure_bytes);
  void thread_body();  // what a new fiber runs

  void barrier(Op op, int id, int threads, int value, Where where);
  int result(Reduction reduction) const;
  void collective(Op op, unsigned mask, void* data, Combine combine, Where where);

  [[noreturn]] void abandon();  // the whole launch

 private:
  void start_block(uint32_t number);
  void prepare_stack(Fiber& fiber);
  void switch_from(Context& from, Context& to, Fiber* next, bool for_good);
  void exit_thread();

  void make_ready(int warp, unsigned lanes);
  Fiber* pick();
  void wait(Op op, Where where);
  [[noreturn]] void deadlock();
  void draw_priorities();

  void complete_barrier(Barrier& barrier);
  void complete(int warp, Rendezvous& rendezvous);

  Fiber fibers_[kMaxThreads];
  Warp warps_[kMaxWarps];
  Barrier barriers_[kNamedBarriers];
  Context host_;
  uint32_t ready_warps_ = 0;
  int threads_ = 0, warp_count_ = 0, living_ = 0;
  std::array<uint8_t, kMaxWarps> by_priority_{};  // warps, the most important first
  bool failed_ = false;
  void (*body_)(const void*) = nullptr;
  const void* closure_ = nullptr;
};

Machine machine;

std::string current_thread() {
  char buffer[120];
  snprintf(buffer, sizeof buffer, "block (%u,%u,%u) thread %d", machine.block.x, machine.block.y, machine.block.z,
           machine.current->rank);
  return buffer;
}

// ---- fibers ------------------------------------------------------------------------------------------------------

constexpr size_t kPage = 4096;

bool with_asan() { return __asan_unpoison_memory_region != nullptr; }

size_t stack_size() { return (with_asan() ? 256 : 80) * 1024; }

// Stacks start at different offsets, or the hot ends of all of them would fight for the same few lines of the cache.
size_t stack_stagger(int rank) { return size_t(rank) * 1088 % 16384; }

void Machine::prepare_stack(Fiber& fiber) {
  if (!fiber.stack_low) {
    const size_t bytes = stack_size();
    auto* memory = static_cast<char*>(mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0));
    if (memory == MAP_FAILED) {
      fprintf(stderr, "emulation: no memory for the stacks of its threads\n");
      abort();
    }
    mprotect(memory, kPage, PROT_NONE);
    fiber.stack_low = memory + kPage;
    fiber.stack_bytes = bytes;
  }
  // The thread that had the stack before may have been abandoned in the middle of a function.
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(fiber.stack_low, fiber.stack_bytes);
  auto** top = reinterpret_cast<void**>(fiber.stack_low + fiber.stack_bytes - 64 - stack_stagger(fiber.rank));
  *--top = nullptr;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(emu_thread_start);
  for (int i = 0; i < 6; ++i) *--top = nullptr;  // what emu_switch_stack pops
  fiber.stack_pointer = top;
  fiber.asan_fake_stack = nullptr;
}

void Machine::switch_from(Context& from, Context& to, Fiber* next, bool for_good) {
  ++switches;
  current = next;
  if (next) {
    next->state = State::kRuns;
    if (checker) {
      checker->thread_runs(
          {block, next->rank, next->warp, next->lane, next->stack_low, next->stack_low + next->stack_bytes});
    }
  }
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &from.asan_fake_stack, to.stack_low, to.stack_bytes);
  }
  emu_switch_stack(&from.stack_pointer, to.stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
}

void Machine::thread_body() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
  body_(closure_);
  exit_thread();
}

void Machine::abandon() {
  failed_ = true;
  switch_from(*current, host_, nullptr, true);
  abort();
}

// ---- scheduling --------------------------------------------------------------------------------------------------

void Machine::make_ready(int warp, unsigned lanes) {
  warps_[warp].ready |= lanes;
  if (lanes) ready_warps_ |= 1u << warp;
}

// Index of a set bit, each about as likely.
int random_bit(unsigned bits) {
  const unsigned turn = config.random.next() & 31;
  const unsigned turned = bits >> turn | bits << ((32 - turn) & 31);
  return int((unsigned(__builtin_ctz(turned)) + turn) & 31);
}

int highest_bit(unsigned bits) { return 31 - __builtin_clz(bits); }

// Takes the next thread that can run, null if there is none.
Fiber* Machine::pick() {
  if (!ready_warps_) return nullptr;
  int warp = 0, lane = 0;
  switch (config.order) {
    case EMU_ROUND_ROBIN: {
      const int after = current ? current->rank : -1;
      const int this_warp = current ? current->warp : 0;
      const unsigned later_lanes = current ? warps_[this_warp].ready & ~((2u << current->lane) - 1u) : 0;
      if (later_lanes) {
        warp = this_warp;
        lane = __builtin_ctz(later_lanes);
      } else {
        const unsigned later_warps = after < 0 ? 0 : ready_warps_ & ~((2u << this_warp) - 1u);
        warp = __builtin_ctz(later_warps ? later_warps : ready_warps_);
        lane = __builtin_ctz(warps_[warp].ready);
      }
      break;
    }
    case EMU_LAST_WARP_FIRST:
      warp = highest_bit(ready_warps_);
      lane = highest_bit(warps_[warp].ready);
      break;
    case EMU_RANDOM:
      warp = random_bit(ready_warps_);
      lane = random_bit(warps_[warp].ready);
      break;
    case EMU_WARP_PRIORITIES:
      for (const uint8_t candidate : by_priority_) {
        warp = candidate;
        if (ready_warps_ >> warp & 1) break;
      }
      lane = random_bit(warps_[warp].ready);
      break;
  }
  warps_[warp].ready &= ~(1u << lane);
  if (!warps_[warp].ready) ready_warps_ &= ~(1u << warp);
  return &fibers_[warp * kWarpSize + lane];
}

// Lets others run until somebody has made the current thread ready and its turn has come.
void Machine::wait(Op op, Where where) {
  Fiber& fiber = *current;
  fiber.state = State::kWaits;
  fiber.op = op;
  fiber.where = where;
  Fiber* next = pick();
  if (!next) deadlock();
  if (next == &fiber) {
    fiber.state = State::kRuns;
  } else {
    switch_from(fiber, *next, next, false);
  }
}

void Machine::deadlock() {
  std::map<std::string, std::pair<int, int>> waiting;  // place -> threads, the first of them
  for (int i = 0; i < threads_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.state != State::kWaits) continue;
    auto& entry = waiting[std::string(name_of(fiber.op)) + " at " + name_of(fiber.where)];
    if (entry.first++ == 0) entry.second = i;
  }
  std::string text = "deadlock: no thread of the block can go on. " + std::to_string(threads_ - living_) + " of " +
                     std::to_string(threads_) + " have exited; there wait";
  for (const auto& [place, threads] : waiting) {
    text += "\n    " + std::to_string(threads.first) + " (the first is thread " + std::to_string(threads.second) +
            ") in " + place;
  }
  reports.add(text);
  abandon();
}

void Machine::exit_thread() {
  Fiber& fiber = *current;
  if (!fiber.copies.empty()) {
    fail(fiber.copies.front().where, "a thread exits without having waited for this cp.async");
  }
  fiber.state = State::kExited;
  --living_;
  Warp& warp = warps_[fiber.warp];
  warp.exited |= 1u << fiber.lane;
  for (Rendezvous& rendezvous : warp.rendezvous)
    if (rendezvous.arrived) complete(fiber.warp, rendezvous);
  for (Barrier& barrier : barriers_)
    if (barrier.arrived) complete_barrier(barrier);
  Fiber* next = pick();
  if (next) {
    switch_from(fiber, *next, next, true);
  } else if (living_) {
    deadlock();
  } else {
    switch_from(fiber, host_, nullptr, true);
  }
  abort();
}

// ---- meeting points ----------------------------------------------------------------------------------------------

void Machine::complete_barrier(Barrier& barrier) {
  const int needed = barrier.needed ? barrier.needed : living_;
  if (barrier.arrived < needed) return;
  if (checker) {
    if (barrier.arrived == living_) {
      checker->block_synchronised();
    } else {
      checker->warps_synchronised(barrier.waiting, warp_count_);
    }
  }
  for (int warp = 0; warp < warp_count_; ++warp) {
    make_ready(warp, barrier.waiting[warp]);
    barrier.waiting[warp] = 0;
  }
  barrier.last_count = barrier.count;
  barrier.last_any = barrier.any;
  barrier.last_all = barrier.all;
  barrier.arrived = barrier.count = barrier.any = 0;
  barrier.all = 1;
  if (config.order == EMU_WARP_PRIORITIES) draw_priorities();
}

void Machine::barrier(Op op, int id, int threads, int value, Where where) {
  Barrier& barrier = barriers_[id];
  Fiber& fiber = *current;
  // A block-wide barrier is one place in the program, a named one can be one for each warp.
  Where& met = barrier.where[op == Op::kNamedBarrier ? fiber.warp : 0];
  const bool first = op == Op::kNamedBarrier ? !barrier.waiting[fiber.warp] : !barrier.arrived;
  if (barrier.arrived == 0) {
    barrier.op = op;
    barrier.needed = threads;
  } else if (barrier.op != op || barrier.needed != threads) {
    fail(where, "barrier %d is one for %d threads here and for %d elsewhere (0: the whole block)", id, threads,
         barrier.needed);
  }
  if (first) {
    met = where;
  } else if (!same_place(met, where)) {
    fail(where, "divergent barrier: other threads of the %s wait in %s at %s",
         op == Op::kNamedBarrier ? "warp" : "block", name_of(barrier.op), name_of(met).c_str());
  }
  ++barrier.arrived;
  barrier.waiting[fiber.warp] |= 1u << fiber.lane;
  barrier.count += value != 0;
  barrier.any |= value != 0;
  barrier.all &= value != 0;
  complete_barrier(barrier);
  wait(op, where);
}

int Machine::result(Reduction reduction) const {
  const Barrier& barrier = barriers_[0];
  switch (reduction) {
    case Reduction::kCount:
      return barrier.last_count;
    case Reduction::kAny:
      return barrier.last_any;
    case Reduction::kAll:
      return barrier.last_all;
  }
  return 0;
}

bool needs_whole_warp(Op op) { return op == Op::kMma || op == Op::kLdmatrix; }

void Machine::complete(int warp, Rendezvous& rendezvous) {
  const unsigned needed = rendezvous.mask & warps_[warp].present & ~warps_[warp].exited;
  if ((rendezvous.arrived & needed) != needed) return;
  const unsigned active = rendezvous.arrived;
  rendezvous.arrived = 0;
  if (needs_whole_warp(rendezvous.op) && active != 0xffffffffu) {
    fail(rendezvous.where, "%s by a part of the warp (lanes %08x)", name_of(rendezvous.op), active);
  }
  if (rendezvous.combine) rendezvous.combine(rendezvous.data, active);
  if (rendezvous.op == Op::kSyncwarp && checker) checker->lanes_synchronised(warp, active);
  make_ready(warp, active);
}

void Machine::collective(Op op, unsigned mask, void* data, Combine combine, Where where) {
  Fiber& fiber = *current;
  Warp& warp = warps_[fiber.warp];
  const unsigned me = 1u << fiber.lane;
  if (!(mask & me)) fail(where, "%s whose mask %08x leaves out lane %d, which calls it", name_of(op), mask, fiber.lane);
  Rendezvous* rendezvous = &warp.rendezvous[0];
  if (rendezvous->mask != mask) {
    Rendezvous* idle = nullptr;
    for (rendezvous = warp.rendezvous; rendezvous != warp.rendezvous + kRendezvous; ++rendezvous) {
      if (rendezvous->mask == mask) break;
      if (!rendezvous->arrived) idle = rendezvous;
    }
    if (rendezvous == warp.rendezvous + kRendezvous) {
      if (!idle) fail(where, "lanes of one warp wait for more than %d different masks", kRendezvous);
      rendezvous = idle;
      rendezvous->mask = mask;
    }
  }
  if (!rendezvous->arrived) {
    rendezvous->op = op;
    rendezvous->where = where;
    rendezvous->combine = combine;
    std::fill(std::begin(rendezvous->data), std::end(rendezvous->data), nullptr);
  } else if (rendezvous->op != op || !same_place(rendezvous->where, where)) {
    fail(where, "divergent %s (mask %08x): other lanes of the warp wait in %s at %s", name_of(op), mask,
         name_of(rendezvous->op), name_of(rendezvous->where).c_str());
  }
  rendezvous->arrived |= me;
  rendezvous->data[fiber.lane] = data;
  complete(fiber.warp, *rendezvous);
  wait(op, where);
}

// ---- launching ---------------------------------------------------------------------------------------------------

void kernel_fault(const Fault& fault) {
  const auto low = reinterpret_cast<uintptr_t>(machine.current->stack_low);
  const bool overflow = fault.address < low && fault.address + kPage >= low;
  char address[40];
  snprintf(address, sizeof address, " at address 0x%zx by ", size_t(fault.address));
  const std::string what = fault.signal == SIGFPE ? "integer division by zero"
                           : overflow             ? "stack overflow"
                                                  : "access to memory that is not there, or misaligned";
  reports.add(what + address + current_thread() + "\n    " + source_of(fault.code));
  machine.abandon();
}

void Machine::draw_priorities() {
  for (uint32_t i = 0; i < kMaxWarps; ++i) by_priority_[i] = uint8_t(i);
  for (uint32_t i = kMaxWarps - 1; i > 0; --i) std::swap(by_priority_[i], by_priority_[config.random.below(i + 1)]);
}

void Machine::start_block(uint32_t number) {
  block = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
  shared.start_block();
  living_ = threads_;
  ready_warps_ = 0;
  for (Barrier& barrier : barriers_) {
    barrier = Barrier{};
    barrier.all = 1;
  }
  draw_priorities();
  for (int warp = 0; warp * kWarpSize < threads_; ++warp) {
    const int lanes = std::min(kWarpSize, threads_ - warp * kWarpSize);
    Warp& w = warps_[warp];
    w.present = lanes == kWarpSize ? 0xffffffffu : (1u << lanes) - 1;
    w.ready = w.exited = 0;
    for (Rendezvous& rendezvous : w.rendezvous) rendezvous.mask = rendezvous.arrived = 0;
    make_ready(warp, w.present);
  }
  for (int i = 0; i < threads_; ++i) {
    Fiber& fiber = fibers_[i];
    const unsigned rank = unsigned(i);
    fiber.index = {rank % block_size.x, rank / block_size.x % block_size.y, rank / block_size.x / block_size.y};
    fiber.rank = i;
    fiber.warp = i / kWarpSize;
    fiber.lane = i % kWarpSize;
    fiber.state = State::kRuns;
    fiber.carved = 0;
    fiber.copies.clear();
    fiber.groups.clear();
    prepare_stack(fiber);
  }
  if (checker) checker->block_begins(threads_);
}

cudaError_t Machine::run(dim3 grid_dim, dim3 block_dim, size_t dynamic_bytes, void (*body)(const void*),
                         const void* closure, size_t closure_bytes) {
  reports.start_launch();
  const uint64_t threads = uint64_t(block_dim.x) * block_dim.y * block_dim.z;
  const uint64_t blocks = uint64_t(grid_dim.x) * grid_dim.y * grid_dim.z;
  if (threads == 0 || threads > kMaxThreads || block_dim.z > 64 || blocks == 0 || grid_dim.x > 0x7fffffffu ||
      grid_dim.y > 65535 || grid_dim.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (dynamic_bytes > config.shared_limit) return cudaErrorInvalidValue;

  grid = {grid_dim.x, grid_dim.y, grid_dim.z};
  block_size = {block_dim.x, block_dim.y, block_dim.z};
  threads_ = int(threads);
  warp_count_ = (threads_ + kWarpSize - 1) / kWarpSize;
  shared.start_launch(dynamic_bytes, config.shared_limit);
  body_ = body;
  closure_ = closure;
  failed_ = false;
  if (with_asan()) {
    pthread_attr_t attributes;
    void* low;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &low, &host_.stack_bytes);
    pthread_attr_destroy(&attributes);
    host_.stack_low = static_cast<char*>(low);
    __asan_set_error_report_callback([](const char* text) { reports.add(text); });
  }

  std::vector<uint32_t> order(blocks);
  for (uint32_t i = 0; i < blocks; ++i) order[i] = config.order == EMU_LAST_WARP_FIRST ? uint32_t(blocks) - 1 - i : i;
  if (config.order == EMU_RANDOM || config.order == EMU_WARP_PRIORITIES) {
    for (uint32_t i = uint32_t(blocks) - 1; i > 0; --i) std::swap(order[i], order[config.random.below(i + 1)]);
  }

  {
    const FaultGuard guard({[] { return machine.current != nullptr; }, kernel_fault});
    if (checker) checker->launch_begins(closure, closure_bytes);
    for (const uint32_t number : order) {
      start_block(number);
      Fiber* first = pick();
      switch_from(host_, *first, first, false);
      if (failed_) break;
      shared.check_guards();
    }
    if (checker) checker->launch_ends();
  }
  shared.end_launch();
  return reports.of_launch() ? cudaErrorLaunchFailure : cudaSuccess;
}

}  // namespace

// ---- runtime.h ---------------------------------------------------------------------------------------------------

uint3 thread_index() { return machine.current->index; }
uint3 block_index() { return machine.block; }
uint3 block_size() { return machine.block_size; }
uint3 grid_size() { return machine.grid; }
int lane_index() { return machine.current->lane; }

void block_barrier(int id, int threads, Where where) {
  const Op op = id == 0 && threads == 0 ? Op::kBarrier : Op::kNamedBarrier;
  if (op == Op::kNamedBarrier) {
    if (id < 0 || id >= kNamedBarriers) fail(where, "named barrier %d; there are %d", id, kNamedBarriers);
    if (threads <= 0 || threads % kWarpSize)
      fail(where, "named barrier of %d threads, which are no whole warps", threads);
  }
  if (sites.skips(op, where)) return;
  machine.barrier(op, id, threads, 0, where);
}

int block_barrier_reduce(Reduction reduction, int value, Where where) {
  machine.barrier(Op::kBarrierReduce, 0, 0, value, where);
  return machine.result(reduction);
}

void warp_collective(Op op, unsigned mask, void* data, Combine combine, Where where) {
  machine.collective(op, mask, data, combine, where);
}

void whole_warp(Op op, void* data, Combine combine, Where where) {
  machine.collective(op, 0xffffffffu, data, combine, where);
}

void sync_warp(unsigned mask, Where where) {
  if (sites.skips(Op::kSyncwarp, where)) return;
  machine.collective(Op::kSyncwarp, mask, nullptr, nullptr, where);
}

void* shared_array(const void* key, size_t bytes, size_t alignment, const char* name) {
  return machine.shared.array(key, bytes, alignment, name, false);
}

void carve_begin() { machine.current->carved = 0; }

void* carve(size_t bytes, size_t alignment) {
  const unsigned number = machine.current->carved++;
  if (alignment > 16)
    fail({"SharedCarver", 0}, "arrays of dynamic shared memory are aligned to 16 bytes, not %zu", alignment);
  const std::string name = "dynamic shared memory, array " + std::to_string(number);
  // SharedCarver promises 16 bytes whatever the type.
  return machine.shared.array(reinterpret_cast<const void*>(uintptr_t(number) + 1), bytes, 16, name, true);
}

// ---- cp.async ----

void copy_issue(const Copy& copy) {
  machine.current->copies.push_back(copy);
  if (checker) checker->copy_issued(copy);
}

void copy_commit() {
  Fiber& fiber = *machine.current;
  const size_t before = std::accumulate(fiber.groups.begin(), fiber.groups.end(), size_t(0));
  fiber.groups.push_back(fiber.copies.size() - before);
}

size_t copies_to_land(int keep, Where where) {
  Fiber& fiber = *machine.current;
  if (sites.skips(Op::kCopyWait, where)) return 0;
  size_t count = 0;
  while (int(fiber.groups.size()) > keep) {
    count += fiber.groups.front();
    fiber.groups.pop_front();
  }
  return count;
}

Copy next_to_land() {
  Fiber& fiber = *machine.current;
  const Copy copy = fiber.copies.front();
  fiber.copies.pop_front();
  if (memcmp(copy.source, copy.data, size_t(copy.valid)) != 0) {
    fail(copy.where, "the source of this cp.async changed between its issue and its wait");
  }
  if (checker) checker->copy_lands(copy);
  return copy;
}

// ---- errors ----

void fail(Where where, const char* format, ...) {
  char what[1000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  if (!machine.current) throw std::runtime_error(name_of(where) + ": " + what);  // in a launcher, not in a kernel
  // A shared array has a name and no line.
  const std::string place = where.line ? name_of(where) : "shared array '" + std::string(where.file) + "'";
  reports.add(place + ": " + what + "\n    by " + current_thread());
  machine.abandon();
}

void expect_aligned(const char* what, const void* pointer, int alignment, Where where) {
  if (reinterpret_cast<uintptr_t>(pointer) % unsigned(alignment)) {
    fail(where, "%s: the address %p is no multiple of %d", what, pointer, alignment);
  }
}

void expect_shared(const char* what, const void* pointer, int bytes, Where where) {
  expect_aligned(what, pointer, bytes, where);
  if (!machine.shared.contains(pointer, size_t(bytes)))
    fail(where, "%s: %d bytes that are not all in one shared array", what, bytes);
}

void expect_read_only(const void* pointer, size_t bytes, Where where) {
  if (checker) checker->expect_read_only(pointer, bytes, where);
}

// ---- launching ----

cudaError_t run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, void (*body)(const void*), const void* closure,
                size_t closure_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  return machine.run(grid, block, dynamic_shared_bytes, body, closure, closure_bytes);
}

const char* error_text(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorLaunchFailure:
      return reports.launch_text().c_str();
    default:
      return "an error that the emulation does not give";
  }
}

int shared_memory_per_block() { return int(config.shared_limit); }

uint64_t switches() { return machine.switches; }

}  // namespace emu

extern "C" void emu_thread_main() { emu::machine.thread_body(); }

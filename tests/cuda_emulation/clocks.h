// Happens-before among the threads of one block, as CUDA has it: block-wide barriers, named barriers and __syncwarp
// order memory; shuffles, votes and mma do not.
//
// A block-wide barrier orders everything and only advances the epoch. Between two of them, each thread has a clock that
// ticks when it synchronises with some others, and knows how far it has seen the clocks of those (vector clocks).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace emu {

struct Time {
  uint32_t epoch;
  uint16_t clock;  // of the thread itself
};

class Clocks {
 public:
  void start(int threads) {
    threads_ = threads;
    epoch_ = 1;
    seen_.assign(size_t(threads) * size_t(threads), 0);
    start_epoch();
  }

  Time now(int thread) const { return {epoch_, seen(thread, thread)}; }

  // Whether what thread `other` did at that time happened before what `thread` does now.
  bool ordered(int other, Time time, int thread) const {
    return other == thread || time.epoch < epoch_ || seen(thread, other) >= time.clock;
  }

  void synchronise_all() {
    ++epoch_;
    if (!any_partial_) return;
    std::fill(seen_.begin(), seen_.end(), uint16_t(0));
    start_epoch();
  }

  void synchronise(const std::vector<int>& some) {
    any_partial_ = true;
    std::vector<uint16_t> together(size_t(threads_), 0);
    for (const int thread : some)
      for (int i = 0; i < threads_; ++i) together[size_t(i)] = std::max(together[size_t(i)], seen(thread, i));
    for (const int thread : some) {
      std::copy(together.begin(), together.end(), &seen_[size_t(thread) * size_t(threads_)]);
      ++seen_[size_t(thread) * size_t(threads_) + size_t(thread)];
    }
  }

 private:
  uint16_t seen(int by, int other) const { return seen_[size_t(by) * size_t(threads_) + size_t(other)]; }

  void start_epoch() {
    any_partial_ = false;
    for (size_t thread = 0; thread < size_t(threads_); ++thread) seen_[thread * size_t(threads_) + thread] = 1;
  }

  int threads_ = 0;
  uint32_t epoch_ = 1;
  bool any_partial_ = false;
  std::vector<uint16_t> seen_;  // [by][of]: clock that a thread knows another to have reached
};

}  // namespace emu

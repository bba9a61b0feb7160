// How the neurons of a scan are cut into tasks, and where a task's sums over the neurons of each channel lie. Neither
// depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"

namespace stc {

class ScanTasks {
 public:
  // The state, coefficients and sums of so many neurons stay in the first-level cache while the steps go by.
  static constexpr int64_t kBlock = 512;

  explicit ScanTasks(const ScanShape& s) : shape_(s), blocks_((s.neurons + kBlock - 1) / kBlock) {}

  int64_t count() const { return std::min(blocks_, kMost); }
  // Neurons [begin(k), begin(k + 1)) are those of task k.
  int64_t begin(int64_t task) const { return std::min(task * blocks_ / count() * kBlock, shape_.neurons); }

  // Neurons with the same i / channel_stride are a run, all of one channel. A task has a sum for each channel that it
  // meets, `width()` at most, in the order of their first runs.
  int64_t width() const {
    if (blocks_ == 0) return 0;
    const int64_t neurons = (blocks_ + count() - 1) / count() * kBlock;
    return std::min(shape_.channels, (neurons - 1) / shape_.channel_stride + 2);
  }
  int64_t first_channel(int64_t task) const { return begin(task) / shape_.channel_stride % shape_.channels; }

 private:
  static constexpr int64_t kMost = 128;
  ScanShape shape_;
  int64_t blocks_;
};

}  // namespace stc

// How the neurons of a scan are cut into tasks, and where a task's sums over the neurons of each channel lie. Neither
// depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../params.h"

namespace stc {

class ScanTasks {
 public:
  static constexpr int64_t kMaxBlock = 2048;

  explicit ScanTasks(const ScanShape& s)
      : shape_(s), block_(is_large(s) ? kMaxBlock : kMaxBlock / 4), blocks_((s.neurons + block_ - 1) / block_) {}

  // More numbers in a sequence than the caches hold.
  static bool is_large(const ScanShape& s) { return s.steps * s.neurons >= int64_t(8) << 20; }

  // Neurons that go through the steps together. The state, coefficients and sums of a small block stay in the
  // first-level cache; where memory is the limit, a large one reads and writes longer stretches of it.
  int64_t block() const { return block_; }
  int64_t count() const { return std::min(blocks_, kMost); }
  // Neurons [begin(k), begin(k + 1)) are those of task k.
  int64_t begin(int64_t task) const { return std::min(task * blocks_ / count() * block_, shape_.neurons); }

  // Neurons with the same i / channel_stride are a run, all of one channel. A task has a sum for each channel that it
  // meets, `width()` at most, in the order of their first runs.
  int64_t width() const {
    if (blocks_ == 0) return 0;
    const int64_t neurons = (blocks_ + count() - 1) / count() * block_;
    return std::min(shape_.channels, (neurons - 1) / shape_.channel_stride + 2);
  }
  int64_t first_channel(int64_t task) const { return begin(task) / shape_.channel_stride % shape_.channels; }

 private:
  static constexpr int64_t kMost = 128;
  ScanShape shape_;
  int64_t block_;
  int64_t blocks_;
};

}  // namespace stc

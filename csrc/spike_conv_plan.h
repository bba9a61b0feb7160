// By events or densely: the choice of one call of the feed-forward convolution of spikes.
#pragma once

#include <cstdint>
#include <limits>

#include "params.h"

namespace stc {

enum class SpikeConvPass { kForward, kWeightGradient };

// What the numbers of the dense convolution are.
enum class SpikeConvType { kShort, kSingle, kDouble };

// What the event loops index with 32-bit numbers.
inline bool fits_events(const SpikeConvShape& s) {
  constexpr int64_t kMostLanes = 16 * 12;  // outputs of a block at most (cpu/spike_conv.h)
  const double padded = double(s.height + s.kernel) * double(s.width + s.kernel);
  return s.kernel <= 31 && padded * kMostLanes < double(1 << 30) &&
         double(s.pixels()) * double(s.in_channels) < double(1 << 30);
}

inline bool by_events(const SpikeConvShape& s, int64_t spikes, SpikeConvPass pass, SpikeConvType type) {
  if (!fits_events(s)) return false;
  // Parts of all neurons: measured, with room below the rate where both take as long (docs/performance.md). A dense
  // convolution of 16-bit numbers takes half the time.
  const double limit = (pass == SpikeConvPass::kForward ? 0.3 : 0.75) * (type == SpikeConvType::kShort ? 0.5 : 1.0);
  // In units of one addition of a spike's weight to an output; moving a weight between the two layouts takes as long as
  // kMove of them.
  constexpr double kMove = 4;
  const double taps = double(s.kernel * s.kernel) * double(s.out_channels);
  const double events = double(spikes) * taps + kMove * taps * double(s.in_channels);
  return events < limit * double(s.samples) * double(s.pixels()) * double(s.in_channels) * taps;
}

}  // namespace stc

// From a sum over a channel to the gradient of its parameter.
#pragma once

#include "cell.h"
#include "params.h"

namespace stc {

// Sum `sum` (ChannelSum) of channel c, if its gradient is wanted.
template <class T>
STC_HD void store_channel_gradient(const StcBackward<T>& p, int64_t c, int sum, double value) {
  T* to = nullptr;
  for (int norm = 0; norm < kNorms; ++norm)  // constant indices, so that the pointers need no local copy
    if (sum / 2 == norm) to = sum % 2 ? p.grad_norm_bias[norm] : p.grad_norm_weight[norm];
  if (sum == kThresholdSum) to = p.grad_threshold;
  if (sum >= kCoefficientSums && p.grad_coefficients)
    to = p.grad_coefficients + (sum - kCoefficientSums) * p.in.shape.channels;
  if (to) to[c] = T(value);
}

}  // namespace stc

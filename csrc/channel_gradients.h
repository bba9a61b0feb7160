// From the sums over a channel to the gradients of its parameters.
#pragma once

#include "cell.h"
#include "params.h"

namespace stc {

template <class T>
STC_HD void store_channel_gradients(const StcBackward<T>& p, int coefficients, int64_t c,
                                    const double (&sums)[kChannelSums]) {
  for (int norm = 0; norm < kNorms; ++norm) {
    if (!p.grad_norm_weight[norm]) continue;
    p.grad_norm_weight[norm][c] = T(sums[2 * norm]);
    p.grad_norm_bias[norm][c] = T(sums[2 * norm + 1]);
  }
  if (p.grad_threshold) p.grad_threshold[c] = T(sums[kThresholdSum]);
  if (p.grad_coefficients)
    for (int k = 0; k < kMaxCoefficients; ++k)  // a constant bound, so that the sums can be registers
      if (k < coefficients) p.grad_coefficients[k * p.in.shape.channels + c] = T(sums[kCoefficientSums + k]);
}

}  // namespace stc

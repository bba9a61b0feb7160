// GroupNorm of one channel, given the statistics of its group; forward and backward, for the Math policies of cell.h.
#pragma once

#include "params.h"
#include "surrogate.h"

namespace stc {

// Of one norm group at one step. The default is that of an absent norm.
struct Moments {
  double mean = 0;
  double rstd = 1;  // 1 / sqrt(variance + eps)
};

// The same as scalars: xhat = (x - mean) rstd with mean = high + low, because a single-precision mean of values far
// from zero would lose the digits that matter.
template <class Math>
struct Statistics {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  Scalar high = 0, low = 0, rstd = 1;

  Statistics() = default;
  STC_HD Statistics(Scalar high, Scalar low, Scalar rstd) : high(high), low(low), rstd(rstd) {}
  STC_HD explicit Statistics(const Moments& m)
      : high(Scalar(m.mean)), low(Scalar(m.mean - double(high))), rstd(Scalar(m.rstd)) {}

  STC_HD Real centre(Real x) const { return (x - high) - low; }
};

// y = weight xhat + bias. The default is the identity.
template <class Math>
struct ChannelNorm {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  Statistics<Math> statistics;
  Scalar weight = 1, bias = 0;

  ChannelNorm() = default;
  STC_HD ChannelNorm(const Statistics<Math>& statistics, Scalar weight, Scalar bias)
      : statistics(statistics), weight(weight), bias(bias) {}

  STC_HD Real standardise(Real x) const { return statistics.centre(x) * statistics.rstd; }
  STC_HD Real affine(Real xhat) const { return xhat * weight + bias; }
  STC_HD Real operator()(Real x) const { return affine(standardise(x)); }

  // Gradient of x from that of y. Over the norm group, with q = weight * grad: mean_grad = mean q, mean_product =
  // mean q xhat; both 0 for the identity.
  STC_HD Real backward(Real grad, Real xhat, Scalar mean_grad, Scalar mean_product) const {
    return (grad * weight - mean_grad - xhat * mean_product) * statistics.rstd;
  }
};

}  // namespace stc

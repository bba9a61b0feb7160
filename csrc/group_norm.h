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

// x minus a double-precision mean, without losing the digits of the mean that a single-precision scalar cannot hold.
template <class Math>
struct Centre {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  Scalar high, low;

  STC_HD explicit Centre(double mean) : high(Scalar(mean)), low(Scalar(mean - double(high))) {}
  STC_HD Real operator()(Real x) const { return (x - high) - low; }
};

// xhat = (x - mean) rstd, y = weight xhat + bias. The default is the identity.
template <class Math>
struct ChannelNorm {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  Centre<Math> centre{0};
  Scalar rstd = 1, weight = 1, bias = 0;

  ChannelNorm() = default;
  STC_HD ChannelNorm(const Moments& m, Scalar weight, Scalar bias)
      : centre(m.mean), rstd(Scalar(m.rstd)), weight(weight), bias(bias) {}

  STC_HD Real standardise(Real x) const { return centre(x) * rstd; }
  STC_HD Real affine(Real xhat) const { return xhat * weight + bias; }
  STC_HD Real operator()(Real x) const { return affine(standardise(x)); }

  // Gradient of x from that of y. Over the norm group, with q = weight * grad: mean_grad = mean q, mean_product =
  // mean q xhat; both 0 for the identity.
  STC_HD Real backward(Real grad, Real xhat, Scalar mean_grad, Scalar mean_product) const {
    return (grad * weight - mean_grad - xhat * mean_product) * rstd;
  }
};

}  // namespace stc

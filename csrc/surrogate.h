// Surrogate gradients: the smooth step p(z) ("primitive") and its derivative p'(z); z = u - threshold.
//
//   sigmoid   p = sigmoid(alpha z)                      p' = alpha p (1 - p)
//   atan      p = atan(pi/2 alpha z) / pi + 1/2         p' = alpha / 2 / (1 + (pi/2 alpha z)^2)
//
// Math is a policy: Real (a scalar, or a vector of them), Scalar, exp, reciprocal, atan, select. One text serves host
// SIMD, host scalars and devices.
#pragma once

#include "params.h"

#if defined(__CUDACC__)
#define STC_HD __host__ __device__ __forceinline__
#else
#define STC_HD inline
#endif

namespace stc {

template <class Math>
struct SurrogateMath {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  static constexpr Scalar kPi = Scalar(3.14159265358979323846);

  static STC_HD Real sigmoid(Real x) { return Math::reciprocal(Scalar(1) + Math::exp(-x)); }

  static STC_HD Real primitive(Surrogate surrogate, Scalar alpha, Real z) {
    if (surrogate == Surrogate::kAtan) return Math::atan(kPi / 2 * alpha * z) / kPi + Scalar(0.5);
    return sigmoid(alpha * z);
  }

  static STC_HD Real derivative(Surrogate surrogate, Scalar alpha, Real z) {
    if (surrogate == Surrogate::kAtan) {
      const Real x = kPi / 2 * alpha * z;
      return alpha / 2 * Math::reciprocal(Scalar(1) + x * x);
    }
    const Real p = sigmoid(alpha * z);
    return alpha * p * (Scalar(1) - p);
  }
};

}  // namespace stc

// Surrogate gradients: the smooth step p(z) ("primitive") and its derivative p'(z); z = u - threshold, y = alpha |z|.
//
//   sigmoid              p = sigmoid(alpha z)                           p' = alpha p (1 - p)
//   atan                 p = 1/2 + atan(pi/2 alpha z) / pi              p' = alpha / 2 / (1 + (pi/2 alpha z)^2)
//   piecewise quadratic  p = 1/2 + alpha z (1 - y / 2), 0 and 1 beyond  p' = alpha (1 - y) where y < 1, else 0
//   piecewise exp        p = e^-y / 2 for z < 0, else 1 - e^-y / 2      p' = alpha / 2 e^-y
//   softsign             p = 1/2 + alpha z / (1 + y) / 2                p' = alpha / 2 / (1 + y)^2
//   superspike           p = 1/2 + alpha z / (1 + |z|)                  p' = alpha / (1 + |z|)^2
//   erf                  p = (1 + erf(alpha z)) / 2                     p' = alpha / sqrt(pi) e^-(y^2)
//   rect                 p = alpha z + 1/2, cut off at 0 and 1          p' = alpha where y < 1/2, else 0
//   fast sigmoid         p = 1/2 + z / (1 + y)                          p' = 1 / (1 + y)^2
//
// Math is a policy: Real (a scalar, or a vector of them), Scalar, exp, reciprocal, atan, erf, abs, select. One text
// serves host SIMD, host scalars and devices.
#pragma once

#include "params.h"

#if defined(__CUDACC__)
#define STC_HD __host__ __device__ __forceinline__
#else
#define STC_HD inline __attribute__((always_inline))
#endif

namespace stc {

template <class T>
SurrogateSlope<T> surrogate_slope(Surrogate surrogate, T alpha) {
  constexpr T kPi = T(3.14159265358979323846), kRootOfPi = T(1.77245385090551602730);
  switch (surrogate) {
    case Surrogate::kSigmoid:
    case Surrogate::kPiecewiseQuadratic:
    case Surrogate::kRect:
      return {alpha, alpha};
    case Surrogate::kAtan:
      return {kPi / 2 * alpha, alpha / 2};
    case Surrogate::kPiecewiseExp:
    case Surrogate::kSoftsign:
      return {alpha, alpha / 2};
    case Surrogate::kSuperspike:
      return {T(1), alpha};
    case Surrogate::kErf:
      return {alpha, alpha / kRootOfPi};
    case Surrogate::kFastSigmoid:
      return {alpha, T(1)};
  }
  return {};
}

template <class Math>
struct SurrogateMath {
  using Real = typename Math::Real;
  using Scalar = typename Math::Scalar;
  static constexpr Scalar kPi = Scalar(3.14159265358979323846);

  static STC_HD Real sigmoid(Real x) { return Math::reciprocal(Scalar(1) + Math::exp(-x)); }

  static STC_HD Real primitive(Surrogate surrogate, Scalar alpha, Real z) {
    const Scalar half = Scalar(0.5);
    const Real zero{}, one = zero + Scalar(1), size = Math::abs(z), y = alpha * size;
    const Real step = Math::select(z < zero, zero, one);
    switch (surrogate) {
      case Surrogate::kSigmoid:
        return sigmoid(alpha * z);
      case Surrogate::kAtan:
        return Math::atan(kPi / 2 * alpha * z) / kPi + half;
      case Surrogate::kPiecewiseQuadratic:
        return Math::select(y < one, alpha * z * (Scalar(1) - half * y) + half, step);
      case Surrogate::kPiecewiseExp: {
        const Real tail = half * Math::exp(-y);
        return Math::select(z < zero, tail, Scalar(1) - tail);
      }
      case Surrogate::kSoftsign:
        return half * alpha * z * Math::reciprocal(Scalar(1) + y) + half;
      case Surrogate::kSuperspike:
        return alpha * z * Math::reciprocal(Scalar(1) + size) + half;
      case Surrogate::kErf:
        return half * Math::erf(alpha * z) + half;
      case Surrogate::kRect:
        return Math::select(y < zero + half, alpha * z + half, step);
      case Surrogate::kFastSigmoid:
        return z * Math::reciprocal(Scalar(1) + y) + half;
    }
    return z;
  }

  // By families, which share their exponential or their reciprocal: many neurons of a kernel inline this. `slope` is
  // that of surrogate_slope().
  static STC_HD Real derivative(Surrogate surrogate, const SurrogateSlope<Scalar>& slope, Real z) {
    const Real zero{}, y = slope.scale * Math::abs(z);
    if (surrogate == Surrogate::kSigmoid || surrogate == Surrogate::kPiecewiseExp || surrogate == Surrogate::kErf) {
      const Real e = Math::exp(surrogate == Surrogate::kErf ? -y * y : -y);
      // p (1 - p) = e^-y / (1 + e^-y)^2
      return slope.height * (surrogate == Surrogate::kSigmoid ? e * squared(Math::reciprocal(Scalar(1) + e)) : e);
    }
    if (surrogate == Surrogate::kPiecewiseQuadratic || surrogate == Surrogate::kRect) {
      const Real rest = surrogate == Surrogate::kRect ? zero + Scalar(1) : Scalar(1) - y;
      return Math::select(y < zero + (surrogate == Surrogate::kRect ? Scalar(0.5) : Scalar(1)), slope.height * rest,
                          zero);
    }
    const Real r = Math::reciprocal(Scalar(1) + (surrogate == Surrogate::kAtan ? y * y : y));
    return slope.height * (surrogate == Surrogate::kAtan ? r : r * r);
  }

 private:
  static STC_HD Real squared(Real x) { return x * x; }
};

}  // namespace stc

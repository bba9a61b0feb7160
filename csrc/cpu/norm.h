// GroupNorm of channel planes: statistics, and the coefficients that apply it.
#pragma once

#include <algorithm>
#include <cmath>

#include "layout.h"

namespace stc::STC_SIMD_NAMESPACE {

// Channel planes wherever they lie.
template <class T>
struct Planes {
  const T* base;
  int64_t stride;
  const T* operator[](int64_t c) const { return base + c * stride; }
};

struct Moments {
  double mean = 0, rstd = 1;
};

// Sum of f(x) over a plane, by vectors, with single-precision partial sums kept short.
template <class T, class F>
double plane_sum(const T* plane, int64_t pixels, F f) {
  using V = Simd<T>;
  constexpr int64_t kBlock = 128 * V::kLanes;
  double total = 0;
  for (int64_t begin = 0; begin < pixels; begin += kBlock) {
    const int64_t end = std::min(pixels, begin + kBlock);
    typename V::Real sum[4] = {};
    int64_t i = begin;
    for (; i + 4 * V::kLanes <= end; i += 4 * V::kLanes)
      for (int k = 0; k < 4; ++k) sum[k] += f(V::load(plane + i + k * V::kLanes));
    for (; i < end; i += V::kLanes) {
      // lanes past the end must not count, and f(0) need not be 0
      typename V::Real value = f(V::load(plane + i, end - i));
      for (int64_t k = end - i; k < V::kLanes; ++k) value[k] = 0;
      sum[0] += value;
    }
    total += V::sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  return total;
}

// x minus a double-precision mean, without losing the digits of the mean that T does not hold.
template <class T>
struct Centre {
  T high, low;
  explicit Centre(double mean) : high(T(mean)), low(T(mean - double(high))) {}
  typename Simd<T>::Real operator()(typename Simd<T>::Real x) const { return (x - high) - low; }
};

// Two passes; the first sums differences from one element, so that a large common offset costs no digits.
template <class T>
Moments moments(const Planes<T>& planes, int64_t first, int64_t channels, int64_t pixels, double eps) {
  const double count = double(channels * pixels);
  const T shift = planes[first][0];
  double sum = 0, squares = 0;
  for (int64_t c = first; c < first + channels; ++c)
    sum += plane_sum(planes[c], pixels, [&](auto x) { return x - shift; });
  Moments m;
  m.mean = double(shift) + sum / count;
  const Centre<T> centre(m.mean);
  for (int64_t c = first; c < first + channels; ++c)
    squares += plane_sum(planes[c], pixels, [&](auto x) {
      const auto d = centre(x);
      return d * d;
    });
  m.rstd = 1.0 / std::sqrt(squares / count + eps);
  return m;
}

// GroupNorm of one channel: weight (x - mean) rstd + bias. The default is the identity, for a norm that is absent.
template <class T>
struct ChannelNorm {
  Centre<T> centre{0};
  T rstd = 1, weight = 1, bias = 0;

  ChannelNorm() = default;
  ChannelNorm(const Moments& m, T weight, T bias) : centre(m.mean), rstd(T(m.rstd)), weight(weight), bias(bias) {}

  typename Simd<T>::Real standardise(typename Simd<T>::Real x) const { return centre(x) * rstd; }
  typename Simd<T>::Real affine(typename Simd<T>::Real standardised) const { return standardised * weight + bias; }
  typename Simd<T>::Real operator()(typename Simd<T>::Real x) const { return affine(standardise(x)); }
};

}  // namespace stc::STC_SIMD_NAMESPACE

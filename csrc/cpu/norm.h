// GroupNorm statistics of channel planes.
#pragma once

#include <algorithm>
#include <cmath>

#include "../group_norm.h"
#include "layout.h"

namespace stc::STC_SIMD_NAMESPACE {

// Channel planes wherever they lie.
template <class T>
struct Planes {
  const T* base;
  int64_t stride;
  const T* operator[](int64_t c) const { return base + c * stride; }
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
  const Statistics<Simd<T>> statistics(m);
  for (int64_t c = first; c < first + channels; ++c)
    squares += plane_sum(planes[c], pixels, [&](auto x) {
      const auto d = statistics.centre(x);
      return d * d;
    });
  m.rstd = 1.0 / std::sqrt(squares / count + eps);
  return m;
}

}  // namespace stc::STC_SIMD_NAMESPACE

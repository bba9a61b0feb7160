// Tests of the headers in cpu/ that are compiled once per instruction set. The including file has set one up, as
// cpu/kernels_*.cpp do; `run_simd_tests` is what its main calls once it knows that the processor can run them.
#pragma once

#include <array>
#include <limits>
#include <random>
#include <vector>

#include "cell.h"
#include "check.h"
#include "cpu/norm.h"
#include "cpu/spike_tables.h"

namespace stc::STC_SIMD_NAMESPACE {

// Distance in units of the last place of T at `expected`.
template <class T>
double ulps(T found, long double expected) {
  const T rounded = T(expected);
  const long double ulp = (long double)std::nextafter(std::abs(rounded), std::numeric_limits<T>::infinity()) -
                          (long double)std::abs(rounded);
  return double(std::abs((long double)found - expected) / ulp);
}

template <class T>
typename Simd<T>::Real ramp(T first, T step) {
  typename Simd<T>::Real r{};
  for (int i = 0; i < Simd<T>::kLanes; ++i) r[i] = first + T(i) * step;
  return r;
}

template <class T>
void test_exp() {
  using V = Simd<T>;
  constexpr bool kSingle = sizeof(T) == 4;
  constexpr T kLowest = kSingle ? T(-87) : T(-708), kHighest = kSingle ? T(88) : T(709);
  constexpr double kMaxUlps = 2;

  double worst = 0;
  const auto measure = [&](typename V::Real x) {
    const typename V::Real y = V::exp(x);
    for (int i = 0; i < V::kLanes; ++i) worst = std::max(worst, ulps<T>(y[i], std::exp((long double)x[i])));
  };
  constexpr int kPoints = 400000;
  const T step = (kHighest - kLowest) / kPoints;
  for (int i = 0; i + V::kLanes <= kPoints; i += V::kLanes) measure(ramp(kLowest + T(i) * step, step));
  // every power of two, where the argument is far below the result's last place
  for (T x = 64; x > 0; x /= 2)
    for (const T sign : {T(1), T(-1)}) measure(ramp(sign * x, sign * x / 128));
  CHECK(worst <= kMaxUlps);
  CHECK(V::exp(V::broadcast(0))[0] == 1);

  const T infinity = std::numeric_limits<T>::infinity();
  for (const T x : {kHighest * 2, std::numeric_limits<T>::max(), infinity}) {
    CHECK(std::isfinite(V::exp(V::broadcast(x))[0]));
    CHECK(V::exp(V::broadcast(x))[0] >= T(std::exp(kHighest * T(0.999))));
    CHECK(V::exp(V::broadcast(-x))[0] >= 0);
    CHECK(V::exp(V::broadcast(-x))[0] <= T(std::exp(kLowest * T(0.999))));
  }
  // A lane's NaN is its own.
  typename V::Real one_nan = ramp<T>(0, 1);
  one_nan[V::kLanes - 1] = std::numeric_limits<T>::quiet_NaN();
  const typename V::Real y = V::exp(one_nan);
  CHECK(std::isnan(y[V::kLanes - 1]));
  for (int i = 0; i < V::kLanes - 1; ++i) CHECK(ulps<T>(y[i], std::exp((long double)i)) <= kMaxUlps);
}

template <class T>
void test_lanes() {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
  const typename V::Real counting = ramp<T>(1, 1);
  CHECK(V::sum(counting) == T(kLanes * (kLanes + 1) / 2));
  const typename V::Real atan = V::atan(counting), reciprocal = V::reciprocal(counting);
  const typename V::Word narrow = V::narrow(counting > T(2));
  const typename V::Real chosen = V::select(counting > T(2), counting, V::broadcast(-7));
  typename V::Mask reversed{};
  for (int i = 0; i < kLanes; ++i) reversed[i] = 2 * kLanes - 1 - i;
  const typename V::Real shuffled = V::shuffle(counting, counting + T(100), reversed);
  for (int i = 0; i < kLanes; ++i) {
    CHECK(ulps<T>(atan[i], std::atan((long double)(i + 1))) <= 2);
    CHECK(ulps<T>(reciprocal[i], 1 / (long double)(i + 1)) <= 2);
    CHECK(narrow[i] == (i + 1 > 2 ? -1 : 0));
    CHECK(chosen[i] == (i + 1 > 2 ? T(i + 1) : T(-7)));
    CHECK(shuffled[i] == T(100 + kLanes - i));
  }

  // Partial loads read and write `count` elements and no more.
  for (int count = 0; count <= kLanes + 1; ++count) {
    std::vector<T> memory(kLanes + 2, T(-1));
    V::store(memory.data() + 1, counting, count);
    const int written = std::min(count, kLanes);
    CHECK(memory[0] == T(-1));
    for (int i = 0; i <= kLanes; ++i) CHECK(memory[1 + i] == (i < written ? T(i + 1) : T(-1)));
    const typename V::Real loaded = V::load(memory.data() + 1, count);
    for (int i = 0; i < kLanes; ++i) CHECK(loaded[i] == (i < written ? T(i + 1) : T(0)));
  }
}

// The step in vectors of T against the equations in double.
template <class T>
void test_cell() {
  using V = Simd<T>;
  using Cell = StcLif<V>;
  constexpr double kEpsilon = std::numeric_limits<T>::epsilon();
  const typename Cell::Options o{T(0.75), 0, 4, Surrogate::kSigmoid, false, false, true};
  std::mt19937 random(3);
  std::normal_distribution<T> normal(0, 2);
  for (int round = 0; round < 2000; ++round) {
    typename V::Real v{}, current{}, a{}, b{};
    for (typename V::Real* values : {&v, &current, &a, &b})
      for (int i = 0; i < V::kLanes; ++i) (*values)[i] = normal(random);
    typename V::Real u[1], state[1] = {v};
    const typename Cell::K k{V::broadcast(o.threshold), {}};
    Cell::integrate(state, current, a, b, k, u);
    const typename V::Real s = Cell::settle(u, k, o, state);
    for (int i = 0; i < V::kLanes; ++i) {
      const double size = 2 * (std::abs(double(v[i])) + std::abs(double(current[i])) + 1);
      const double expected =
          (1 + std::tanh(double(a[i]))) * double(v[i]) + (1 + std::tanh(double(b[i]))) * double(current[i]);
      CHECK_NEAR(u[0][i], expected, 8 * kEpsilon * size);
      CHECK(s[i] == T(u[0][i] >= o.threshold ? 1 : 0));
      CHECK_NEAR(state[0][i], expected - double(o.threshold) * double(s[i]), 8 * kEpsilon * size);
    }
  }
}

// Statistics of a norm group, any number of pixels, with a mean of a thousand deviations too.
template <class T>
void test_moments() {
  constexpr double kEpsilon = std::numeric_limits<T>::epsilon(), kEps = 1e-5;
  constexpr int64_t kChannels = 3;
  std::mt19937 random(4);
  for (const double mean : {0.0, 1e3})
    for (const int64_t pixels : {1, 2, 3, 7, 15, 16, 17, 63, 64, 65, 255, 1024, 5000}) {
      std::normal_distribution<double> normal(mean, 1);
      // Slack between the planes must not be counted.
      const int64_t stride = pixels + 5;
      std::vector<T> x((kChannels + 1) * stride, std::numeric_limits<T>::quiet_NaN());
      for (int64_t c = 1; c <= kChannels; ++c)
        for (int64_t i = 0; i < pixels; ++i) x[c * stride + i] = T(normal(random));
      long double sum = 0, squares = 0;
      for (int64_t c = 1; c <= kChannels; ++c)
        for (int64_t i = 0; i < pixels; ++i) sum += x[c * stride + i];
      const long double expected_mean = sum / (kChannels * pixels);
      for (int64_t c = 1; c <= kChannels; ++c)
        for (int64_t i = 0; i < pixels; ++i) {
          const long double d = x[c * stride + i] - expected_mean;
          squares += d * d;
        }
      const double expected_rstd = double(1 / std::sqrt(squares / (kChannels * pixels) + kEps));
      const Moments m = moments<T>({x.data(), stride}, 1, kChannels, pixels, kEps);
      // float holds a deviation of 1 about a mean of 1e3 to 1e3 epsilon; what is checked is that no more is lost
      CHECK_NEAR(m.mean, double(expected_mean), 8 * kEpsilon);
      CHECK_NEAR(m.rstd, expected_rstd, 32 * kEpsilon * expected_rstd);
    }
}

// Both gate convolutions of random spikes, by tables and one by one, against sums in long double.
template <class T>
void test_gate_convolutions(int64_t in_group, int64_t kernel, int64_t height, int64_t width, double rate) {
  using stc::Shape;
  constexpr double kEpsilon = std::numeric_limits<T>::epsilon();
  const Layout<T> l(Shape{1, 1, in_group, height, width, kernel, 1, 1});
  std::mt19937 random(unsigned(in_group * 131 + kernel * 17 + height * 7 + width));
  std::normal_distribution<double> normal;
  std::bernoulli_distribution fires(rate);
  std::vector<T> weights[2];
  for (auto& weight : weights)
    for (int64_t i = 0; i < in_group * in_group * kernel * kernel; ++i) weight.push_back(T(normal(random)));
  const T* const pair[2] = {weights[0].data(), weights[1].data()};
  std::vector<T> packed(l.gate_weights());
  pack_gate_weights(l, pair, TapOrder::kDescending, packed.data());
  std::vector<uint32_t> words(l.words * l.plane);
  for (int64_t c = 0; c < in_group; ++c)
    for (int64_t i = 0; i < l.pixels; ++i) words[c / 32 * l.plane + i] |= uint32_t(fires(random)) << c % 32;

  SpikeTables<T> tables(l);
  CHECK(!tables.pays(0, 0));
  const bool compiled = tables.pays(1000 * l.pixels * in_group, l.pixels);
  CHECK(compiled == (in_group <= 32 && (kernel == 3 || kernel == 5 || kernel == 7)));
  if (compiled) {
    tables.build(packed.data());
    tables.convolve(words.data());
    tables.convolve(words.data());  // again: nothing of the first is left
  }
  PixelEvents events;
  events.reserve(l, l.pixels * in_group);
  events.build(l, PlaneWords{words.data(), l.plane});
  std::vector<T> row(l.padded_width * l.outputs + Simd<T>::kLanes);
  for (int64_t y = 0; y < height; ++y) {
    event_conv_row(l, events, packed.data(), y, row.data());
    for (int64_t x = 0; x < width; ++x)
      for (int64_t o = 0; o < 2 * in_group; ++o) {
        long double sum = 0, size = 1;
        for (int64_t ci = 0; ci < in_group; ++ci)
          for (int64_t ky = 0; ky < kernel; ++ky)
            for (int64_t kx = 0; kx < kernel; ++kx) {
              const int64_t iy = y + ky - l.pad, ix = x + kx - l.pad;
              if (iy < 0 || iy >= height || ix < 0 || ix >= width) continue;
              if (!(words[ci / 32 * l.plane + iy * width + ix] >> ci % 32 & 1)) continue;
              const auto& weight = weights[o / in_group];
              const T w = weight[((o % in_group * in_group + ci) * kernel + ky) * kernel + kx];
              sum += w;
              size += std::abs(w);
            }
        const double allowed = 4 * kEpsilon * double(size);
        CHECK_NEAR(row[(l.pad + x) * l.outputs + o], double(sum), allowed);
        if (compiled) CHECK_NEAR(tables.row(y)[(l.pad + x) * l.outputs + o], double(sum), allowed);
      }
  }
}

template <class T>
void test_gate_convolutions() {
  for (const int64_t kernel : {1, 3, 5, 7, 9})
    for (const int64_t in_group : {1, 3, 4, 5, 8, 9, 16, 17, 32, 33})
      for (const double rate : {0.1, 0.6})
        for (const auto& [height, width] : {std::array<int64_t, 2>{1, 1}, {2, 3}, {5, 12}, {7, 6}})
          test_gate_convolutions<T>(in_group, kernel, height, width, rate);
}

void run_simd_tests() {
  test_exp<float>();
  test_exp<double>();
  test_lanes<float>();
  test_lanes<double>();
  test_cell<float>();
  test_cell<double>();
  test_moments<float>();
  test_moments<double>();
  test_gate_convolutions<float>();
  test_gate_convolutions<double>();
}

}  // namespace stc::STC_SIMD_NAMESPACE

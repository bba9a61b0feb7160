// The STC-LIF recurrence as plain loops in double, for random problems: what the kernels are tested against.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "params.h"

namespace stc::test {

using Values = std::vector<double>;

struct Case {
  Shape shape;
  bool norms = true;
  bool spiking = true;
  bool hard_reset = false;
  bool detach_reset = false;
  bool gradient_detach = false;
  Surrogate surrogate = Surrogate::kSigmoid;
  bool initial_state = true;
};

struct Problem {
  Values current, v, spikes;  // [T, N, C, H, W], [N, C, H, W]; the last two empty = zero
  Values temporal_weight, spatial_weight;
  Values norm_weight[kNorms], norm_bias[kNorms];  // empty = no norm
};

struct Result {
  Values spikes, v, v_seq, u, norm_stats;
};

constexpr double kThreshold = 0.8, kReset = -0.3, kAlpha = 2.5, kEps = 0.05;

inline int64_t plane(const Shape& s) { return s.height * s.width; }
inline int64_t state_size(const Shape& s) { return s.samples * s.channels * plane(s); }
inline int64_t weight_size(const Shape& s) { return s.channels * (s.channels / s.groups) * s.kernel * s.kernel; }

// Values are drawn in float, so that both precisions get the same ones.
inline Values draw(std::mt19937& random, int64_t size, double scale, double offset = 0) {
  std::normal_distribution<float> normal;
  Values x(size);
  for (double& value : x) value = float(offset + scale * double(normal(random)));
  return x;
}

inline Problem make_problem(const Case& c) {
  const Shape& s = c.shape;
  std::mt19937 random(5);
  Problem p;
  p.current = draw(random, s.steps * state_size(s), 1.5, 0.4);
  if (c.initial_state) {
    p.v = draw(random, state_size(s), 1);
    p.spikes = draw(random, state_size(s), 1);
    for (double& spike : p.spikes) spike = c.spiking ? spike > 0.5 : float(1 / (1 + std::exp(-spike)));
  }
  const double scale = 1 / std::sqrt(double(s.channels / s.groups * s.kernel * s.kernel));
  p.temporal_weight = draw(random, weight_size(s), scale);
  p.spatial_weight = draw(random, weight_size(s), scale);
  if (c.norms)
    for (int norm = 0; norm < kNorms; ++norm) {
      p.norm_weight[norm] = draw(random, s.channels, 0.5, 1);
      p.norm_bias[norm] = draw(random, s.channels, 0.3);
    }
  return p;
}

inline double primitive(Surrogate surrogate, double z) {
  constexpr double kPi = 3.14159265358979323846;
  if (surrogate == Surrogate::kAtan) return std::atan(kPi / 2 * kAlpha * z) / kPi + 0.5;
  return 0.5 + 0.5 * std::tanh(kAlpha * z / 2);
}

// One sample's convolution [C][H][W], zero padding.
inline Values convolve(const Shape& s, const double* x, const Values& weight) {
  const int64_t in_group = s.channels / s.groups, pad = s.kernel / 2;
  Values y(s.channels * plane(s));
  for (int64_t co = 0; co < s.channels; ++co)
    for (int64_t h = 0; h < s.height; ++h)
      for (int64_t w = 0; w < s.width; ++w) {
        double sum = 0;
        for (int64_t ci = 0; ci < in_group; ++ci)
          for (int64_t ky = 0; ky < s.kernel; ++ky)
            for (int64_t kx = 0; kx < s.kernel; ++kx) {
              const int64_t in_h = h + ky - pad, in_w = w + kx - pad;
              if (in_h < 0 || in_h >= s.height || in_w < 0 || in_w >= s.width) continue;
              sum += weight[((co * in_group + ci) * s.kernel + ky) * s.kernel + kx] *
                     x[(co / in_group * in_group + ci) * plane(s) + in_h * s.width + in_w];
            }
        y[co * plane(s) + h * s.width + w] = sum;
      }
  return y;
}

// One sample's GroupNorm, in place; its statistics [norm_groups][kNorms][2] at `stats`.
inline void normalise(const Shape& s, Values& x, const Problem& p, int norm, double* stats) {
  const int64_t size = s.channels / s.norm_groups * plane(s);
  for (int64_t g = 0; g < s.norm_groups; ++g) {
    double mean = 0, variance = 0, rstd = 1;
    if (!p.norm_weight[norm].empty()) {
      for (int64_t i = g * size; i < (g + 1) * size; ++i) mean += x[i] / double(size);
      for (int64_t i = g * size; i < (g + 1) * size; ++i) variance += (x[i] - mean) * (x[i] - mean) / double(size);
      rstd = 1 / std::sqrt(variance + kEps);
      for (int64_t i = g * size; i < (g + 1) * size; ++i) {
        const int64_t c = i / plane(s);
        x[i] = p.norm_weight[norm][c] * (x[i] - mean) * rstd + p.norm_bias[norm][c];
      }
    }
    stats[(g * kNorms + norm) * 2] = mean;
    stats[(g * kNorms + norm) * 2 + 1] = rstd;
  }
}

// The equations. Where `constants` is given, the spikes that are detached come from it: the result of the same problem,
// before an input was moved.
inline Result equations(const Case& c, const Problem& p, const Result* constants = nullptr) {
  const Shape& s = c.shape;
  const int64_t state = state_size(s), sample = s.channels * plane(s);
  Result r;
  r.spikes.resize(s.steps * state);
  r.v_seq = r.u = r.spikes;
  r.norm_stats.resize(s.steps * s.samples * s.norm_groups * kNorms * 2);
  r.v = p.v.empty() ? Values(state) : p.v;
  const Values initial = p.spikes.empty() ? Values(state) : p.spikes;
  for (int64_t t = 0; t < s.steps; ++t)
    for (int64_t n = 0; n < s.samples; ++n) {
      const Values& source = constants && c.gradient_detach ? constants->spikes : r.spikes;
      const double* before = t ? &source[(t - 1) * state + n * sample] : &initial[n * sample];
      Values a = convolve(s, before, p.temporal_weight), b = convolve(s, before, p.spatial_weight);
      const int64_t at = t * state + n * sample;
      Values current(p.current.begin() + at, p.current.begin() + at + sample);
      double* stats = &r.norm_stats[(t * s.samples + n) * s.norm_groups * kNorms * 2];
      normalise(s, current, p, kCurrent, stats);
      normalise(s, a, p, kTemporal, stats);
      normalise(s, b, p, kSpatial, stats);
      for (int64_t i = 0; i < sample; ++i) {
        double& v = r.v[n * sample + i];
        const double u = (1 + std::tanh(a[i])) * v + (1 + std::tanh(b[i])) * current[i];
        const double spike = c.spiking ? double(u >= kThreshold) : primitive(c.surrogate, u - kThreshold);
        const double reset = constants && c.detach_reset ? constants->spikes[at + i] : spike;
        v = c.hard_reset ? u * (1 - reset) + kReset * reset : u - kThreshold * reset;
        r.u[at + i] = u;
        r.spikes[at + i] = spike;
        r.v_seq[at + i] = v;
      }
    }
  return r;
}

}  // namespace stc::test

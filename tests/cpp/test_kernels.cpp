// The tables of functions of cpu/kernels.h, for every instruction set that this processor has: forward against the
// equations as plain loops in double, backward against finite differences of those loops.
#include <cstring>
#include <limits>
#include <type_traits>

#include "check.h"
#include "cpu/kernels.h"
#include "equations.h"
#include "plan.h"
#include "surrogate.h"

namespace {

using namespace stc::test;
using stc::Shape, stc::Surrogate;

template <class T>
const stc::CpuKernels<T>& table(const stc::CpuCapability& capability) {
  if constexpr (std::is_same_v<T, float>)
    return *capability.float32;
  else
    return *capability.float64;
}

template <class T>
T nan() {
  return std::numeric_limits<T>::quiet_NaN();
}

// All arrays of one call. Outputs and scratch start as NaN, so that what is not written shows.
template <class T>
struct Call {
  using Array = std::vector<T>;
  const Case& c;
  const stc::CpuKernels<T>& kernels;
  int64_t tasks;
  Array current, v, spikes, temporal_weight, spatial_weight, norm_weight[stc::kNorms], norm_bias[stc::kNorms];
  stc::StcForward<T> forward{};
  stc::StcBackward<T> backward{};
  Array spikes_out, v_out, v_seq, u;
  std::vector<double> norm_stats, partial_sums;
  std::vector<uint8_t> packed;
  Array upstream_spikes, upstream_v, upstream_v_seq;
  Array grad_current, grad_v, grad_spikes, grad_temporal_weight, grad_spatial_weight;
  Array grad_norm_weight[stc::kNorms], grad_norm_bias[stc::kNorms];
  Array gate_weights, transposed_weights, partial_weights;
  stc::CpuBuffers<T> buffers{};

  Call(const Case& c, const Problem& p, const stc::CpuKernels<T>& kernels, bool channels_last = false)
      : c(c), kernels(kernels), tasks(stc::plan(c.shape, {}).tasks) {
    const Shape& s = c.shape;
    stc::StcInputs<T>& in = forward.in;
    in.shape = s;
    in.cell = {T(kThreshold), T(kReset), T(kAlpha), c.surrogate, c.hard_reset, c.detach_reset, c.spiking};
    in.cell.slope = stc::surrogate_slope(c.surrogate, T(kAlpha));
    in.eps = kEps;
    in.current = place(p.current, current, channels_last);
    in.neuron = 0;
    in.states[0] = place(p.v, v, channels_last);
    in.spikes = place(p.spikes, spikes, channels_last);
    in.temporal_weight = copy(p.temporal_weight, temporal_weight);
    in.spatial_weight = copy(p.spatial_weight, spatial_weight);
    for (int norm = 0; norm < stc::kNorms; ++norm) {
      in.norm_weight[norm] = copy(p.norm_weight[norm], norm_weight[norm]);
      in.norm_bias[norm] = copy(p.norm_bias[norm], norm_bias[norm]);
    }
    const int64_t state = state_size(s);
    forward.spikes = fill(spikes_out, s.steps * state);
    forward.states[0] = fill(v_out, state);
    forward.v_seq = fill(v_seq, s.steps * state);
    forward.potentials = fill(u, s.steps * state);
    norm_stats.assign(s.steps * s.samples * s.norm_groups * stc::kNorms * 2, nan<double>());
    forward.norm_stats = norm_stats.data();
    if (c.spiking) {
      const int64_t bytes = (s.channels / s.groups + 7) / 8;
      packed.assign(s.steps * s.samples * s.groups * plane(s) * bytes, 0xAA);
      forward.packed_spikes = packed.data();
    }

    const stc::CpuBufferSizes sizes = kernels.buffer_sizes(s);
    buffers.gate_weights = fill(gate_weights, sizes.gate_weights);
    if (!c.gradient_detach) buffers.transposed_weights = fill(transposed_weights, sizes.transposed_weights);
    buffers.partial_weights = fill(partial_weights, s.samples * sizes.partial_weights);
    partial_sums.assign(s.samples * sizes.partial_sums, nan<double>());
    buffers.partial_sums = partial_sums.data();
  }

  // A vector may be read in whole SIMD vectors only as far as it reaches: no slack is given here.
  T* fill(Array& array, int64_t size) {
    array.assign(size, nan<T>());
    return array.data();
  }

  const T* copy(const Values& from, Array& to) {
    to.assign(from.begin(), from.end());
    return from.empty() ? nullptr : to.data();
  }

  // [..., C, H, W], or the same elements with the channels innermost.
  stc::Strided<const T> place(const Values& from, Array& to, bool channels_last) {
    if (from.empty()) return {};
    const Shape& s = c.shape;
    copy(from, to);
    const int64_t sample = s.channels * plane(s), step = int64_t(from.size()) > state_size(s) ? state_size(s) : 0;
    if (!channels_last) return {to.data(), step, sample, plane(s), s.width, 1};
    for (int64_t i = 0; i < int64_t(from.size()); ++i) {
      const int64_t channel = i / plane(s) % s.channels;
      to[i / sample * sample + i % plane(s) * s.channels + channel] = T(from[i]);
    }
    return {to.data(), step, sample, 1, s.width * s.channels, s.channels};
  }

  bool run_forward(bool one_by_one) {
    kernels.pack(forward.in, buffers, 0, c.shape.groups);
    if (!one_by_one) return kernels.forward(forward, buffers, 0, tasks);
    bool binary = true;
    for (int64_t task = tasks - 1; task >= 0; --task) binary &= kernels.forward(forward, buffers, task, task + 1);
    return binary;
  }

  void run_backward(const Result& upstream, bool one_by_one) {
    const Shape& s = c.shape;
    backward.in = forward.in;
    backward.gradient_detach = c.gradient_detach;
    backward.potentials = u.data();
    backward.norm_stats = norm_stats.data();
    backward.grad_spikes_out = place(upstream.spikes, upstream_spikes, one_by_one);
    backward.grad_states_out[0] = place(upstream.v, upstream_v, one_by_one);
    backward.grad_v_seq_out = place(upstream.v_seq, upstream_v_seq, one_by_one);
    backward.grad_current = fill(grad_current, s.steps * state_size(s));
    backward.grad_states[0] = fill(grad_v, state_size(s));
    if (c.initial_state && !c.gradient_detach) backward.grad_spikes = fill(grad_spikes, state_size(s));
    backward.grad_temporal_weight = fill(grad_temporal_weight, weight_size(s));
    backward.grad_spatial_weight = fill(grad_spatial_weight, weight_size(s));
    for (int norm = 0; norm < stc::kNorms && c.norms; ++norm) {
      backward.grad_norm_weight[norm] = fill(grad_norm_weight[norm], s.channels);
      backward.grad_norm_bias[norm] = fill(grad_norm_bias[norm], s.channels);
    }
    kernels.pack(forward.in, buffers, 0, s.groups);
    if (!one_by_one) {
      kernels.backward(backward, buffers, 0, tasks);
      kernels.reduce(backward, buffers, 0, s.groups);
      return;
    }
    for (int64_t task = tasks - 1; task >= 0; --task) kernels.backward(backward, buffers, task, task + 1);
    for (int64_t g = s.groups - 1; g >= 0; --g) kernels.reduce(backward, buffers, g, g + 1);
  }
};

template <class T>
void check_near(const std::vector<T>& found, const Values& expected, double allowed) {
  CHECK(found.size() == expected.size());
  double size = 1;
  for (const double x : expected) size = std::max(size, std::abs(x));
  for (size_t i = 0; i < found.size() && i < expected.size(); ++i) CHECK_NEAR(found[i], expected[i], allowed * size);
}

template <class T>
void check_same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  CHECK(a.size() == b.size());
  CHECK(!a.size() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

template <class T>
void check_forward(const Case& c, const stc::CpuCapability& capability) {
  const Shape& s = c.shape;
  const double allowed = 64 * double(std::numeric_limits<T>::epsilon());
  const Problem p = make_problem(c);
  const Result expected = equations(c, p);
  Call<T> call(c, p, table<T>(capability));
  CHECK(call.run_forward(false));
  // In hard spikes, one that falls on the other side of the threshold would show as a difference of 1.
  check_near(call.spikes_out, expected.spikes, allowed);
  check_near(call.u, expected.u, allowed);
  check_near(call.v_out, expected.v, allowed);
  check_near(call.v_seq, expected.v_seq, allowed);
  check_near(call.norm_stats, expected.norm_stats, allowed);

  const int64_t in_group = s.channels / s.groups, bytes = (in_group + 7) / 8;
  for (size_t i = 0; i < call.packed.size() * 8; ++i) {
    const int64_t bit = int64_t(i) % (bytes * 8), pixel = int64_t(i) / (bytes * 8) % plane(s);
    const int64_t group = int64_t(i) / (bytes * 8) / plane(s);  // of all groups of all samples and steps
    const bool found = call.packed[i / 8] >> (i % 8) & 1;
    CHECK(found == (bit < in_group && call.spikes_out[(group * in_group + bit) * plane(s) + pixel] != 0));
  }

  Call<T> again(c, p, table<T>(capability), true);
  CHECK(again.run_forward(true));
  check_same_bits(call.spikes_out, again.spikes_out);
  check_same_bits(call.u, again.u);
  check_same_bits(call.v_out, again.v_out);
  check_same_bits(call.norm_stats, again.norm_stats);
}

// Central differences of sum(upstream * outputs) over every element of one input.
void check_gradient(const char* name, const Case& c, const Problem& p, Values& (*input)(Problem&), const Values& found,
                    const Result& upstream) {
  constexpr double kStep = 1e-5, kAllowed = 1e-7;
  const Result constants = equations(c, p);
  const auto loss = [&](size_t i, double change) {
    Problem moved = p;
    input(moved)[i] += change;
    const Result r = equations(c, moved, &constants);
    double sum = 0;
    for (size_t j = 0; j < r.u.size(); ++j) sum += upstream.spikes[j] * r.spikes[j] + upstream.v_seq[j] * r.v_seq[j];
    for (size_t j = 0; j < r.v.size(); ++j) sum += upstream.v[j] * r.v[j];
    return sum;
  };
  for (size_t i = 0; i < found.size(); ++i) {
    const double expected = (loss(i, kStep) - loss(i, -kStep)) / (2 * kStep);
    if (!stc::test::near(found[i], expected, kAllowed * (10 + std::abs(expected))))
      stc::test::report_values(__FILE__, __LINE__, name, found[i], expected, kAllowed * (10 + std::abs(expected)));
  }
}

void check_backward(const Case& c, const stc::CpuCapability& capability) {
  const Shape& s = c.shape;
  const Problem p = make_problem(c);
  Call<double> call(c, p, *capability.float64);
  CHECK(call.run_forward(false));
  std::mt19937 random(6);
  Result upstream;
  upstream.spikes = draw(random, s.steps * state_size(s), 1);
  upstream.v = draw(random, state_size(s), 1);
  upstream.v_seq = draw(random, s.steps * state_size(s), 1);
  call.run_backward(upstream, false);

  const auto check = [&](const char* name, const Values& found, Values& (*input)(Problem&)) {
    check_gradient(name, c, p, input, found, upstream);
  };
  check("current", call.grad_current, [](Problem& x) -> Values& { return x.current; });
  check("temporal_weight", call.grad_temporal_weight, [](Problem& x) -> Values& { return x.temporal_weight; });
  check("spatial_weight", call.grad_spatial_weight, [](Problem& x) -> Values& { return x.spatial_weight; });
  if (c.initial_state) {
    check("v", call.grad_v, [](Problem& x) -> Values& { return x.v; });
    check("spikes", call.grad_spikes, [](Problem& x) -> Values& { return x.spikes; });
  }
  using stc::kCurrent, stc::kTemporal, stc::kSpatial;
  check("current norm weight", call.grad_norm_weight[kCurrent],
        [](Problem& x) -> Values& { return x.norm_weight[kCurrent]; });
  check("current norm bias", call.grad_norm_bias[kCurrent],
        [](Problem& x) -> Values& { return x.norm_bias[kCurrent]; });
  check("temporal norm weight", call.grad_norm_weight[kTemporal],
        [](Problem& x) -> Values& { return x.norm_weight[kTemporal]; });
  check("temporal norm bias", call.grad_norm_bias[kTemporal],
        [](Problem& x) -> Values& { return x.norm_bias[kTemporal]; });
  check("spatial norm weight", call.grad_norm_weight[kSpatial],
        [](Problem& x) -> Values& { return x.norm_weight[kSpatial]; });
  check("spatial norm bias", call.grad_norm_bias[kSpatial],
        [](Problem& x) -> Values& { return x.norm_bias[kSpatial]; });
}

// Tasks one by one and backwards, from other strides: the same bits. In hard spikes too, whose values the Python tests
// compare with autograd.
template <class T>
void check_backward_order(const Case& c, const stc::CpuCapability& capability) {
  const Shape& s = c.shape;
  const Problem p = make_problem(c);
  std::mt19937 random(7);
  Result upstream;
  upstream.spikes = draw(random, s.steps * state_size(s), 1);
  upstream.v = draw(random, state_size(s), 1);
  upstream.v_seq = draw(random, s.steps * state_size(s), 1);
  Call<T> call(c, p, table<T>(capability)), again(c, p, table<T>(capability), true);
  call.run_forward(false);
  call.run_backward(upstream, false);
  again.run_forward(true);
  again.run_backward(upstream, true);
  check_same_bits(call.grad_current, again.grad_current);
  check_same_bits(call.grad_v, again.grad_v);
  check_same_bits(call.grad_spikes, again.grad_spikes);
  check_same_bits(call.grad_temporal_weight, again.grad_temporal_weight);
  check_same_bits(call.grad_spatial_weight, again.grad_spatial_weight);
  for (int norm = 0; norm < stc::kNorms; ++norm) {
    check_same_bits(call.grad_norm_weight[norm], again.grad_norm_weight[norm]);
    check_same_bits(call.grad_norm_bias[norm], again.grad_norm_bias[norm]);
  }
  for (const T x : call.grad_current) CHECK(std::isfinite(x));
}

void check_initial_spikes(const stc::CpuCapability& capability) {
  const Case c{{1, 2, 4, 3, 3, 3, 2, 2}};
  Problem p = make_problem(c);
  p.spikes.back() = 0.5;
  CHECK(!Call<float>(c, p, *capability.float32).run_forward(false));
  CHECK(!Call<double>(c, p, *capability.float64).run_forward(false));
}

void check_capability(const stc::CpuCapability& capability) {
  // steps, samples, channels, height, width, kernel, groups, norm groups
  const Shape shapes[] = {
      {3, 2, 4, 3, 5, 3, 2, 2},   {2, 2, 6, 4, 3, 5, 2, 3}, {2, 1, 6, 5, 2, 3, 3, 1},
      {2, 1, 3, 1, 7, 1, 3, 3},   {2, 1, 2, 2, 2, 7, 1, 1},  // a kernel wider than the map
      {2, 1, 40, 3, 4, 3, 1, 2},                             // more channels of a group than bits in a word
      {1, 2, 4, 17, 19, 5, 2, 2},
  };
  for (const Shape& shape : shapes)
    for (const bool hard_reset : {false, true}) {
      Case c{shape};
      c.hard_reset = hard_reset;
      check_forward<float>(c, capability);
      check_forward<double>(c, capability);
      check_backward_order<float>(c, capability);
      c.spiking = false;
      c.surrogate = hard_reset ? Surrogate::kAtan : Surrogate::kSigmoid;
      check_forward<float>(c, capability);
      check_forward<double>(c, capability);
      check_backward_order<double>(c, capability);
      c.initial_state = false;
      c.norms = false;
      check_forward<float>(c, capability);
      check_forward<double>(c, capability);
    }

  for (const Shape& shape : {Shape{3, 2, 4, 3, 4, 3, 2, 2}, Shape{3, 1, 4, 2, 3, 5, 2, 1}})
    for (const bool norms : {false, true})
      for (const bool hard_reset : {false, true})
        for (const bool detach_reset : {false, true})
          for (const bool gradient_detach : {false, true}) {
            Case c{shape, norms, false, hard_reset, detach_reset, gradient_detach};
            c.surrogate = detach_reset ? Surrogate::kAtan : Surrogate::kSigmoid;
            check_backward(c, capability);
            c.initial_state = false;
            if (!norms) check_backward(c, capability);
          }
  check_initial_spikes(capability);
}

}  // namespace

int main() {
  for (const stc::CpuCapability* capability = stc::cpu_capabilities(); capability->name; ++capability) {
    if (!capability->supported()) continue;
    const int before = stc::test::failures();
    check_capability(*capability);
    std::printf("%s: %s\n", capability->name, stc::test::failures() == before ? "passed" : "failed");
  }
  return stc::test::result();
}

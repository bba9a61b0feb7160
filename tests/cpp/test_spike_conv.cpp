// The convolution of spikes by events against plain loops, for every instruction set that this processor has; all tasks
// in one call and one by one, last first, give the same bits.
#include <algorithm>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "spike_conv_plan.h"

namespace {

using stc::SpikeConvShape;

template <class T>
const stc::CpuKernels<T>& table(const stc::CpuCapability& capability) {
  if constexpr (std::is_same_v<T, float>)
    return *capability.float32;
  else
    return *capability.float64;
}

template <class F>
void run(int64_t tasks, bool one_by_one, F f) {
  if (!one_by_one) return f(0, tasks);
  for (int64_t task = tasks - 1; task >= 0; --task) f(task, task + 1);
}

template <class T>
struct Call {
  std::vector<T> x, weight, bias, grad_out, out, maps, grad_weight, unpacked;
  std::vector<uint8_t> bits;
  int64_t spikes = 0;

  Call(const SpikeConvShape& s, double rate) {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> uniform(-1, 1);
    const auto fill = [&](std::vector<T>& array, int64_t size) {
      array.resize(size);
      for (T& value : array) value = T(uniform(random));
    };
    x.resize(s.samples * s.in_channels * s.pixels());
    for (T& value : x) value = (uniform(random) + 1) / 2 < rate ? T(1) : T(0);
    fill(weight, s.out_channels * s.in_channels * s.kernel * s.kernel);
    fill(bias, s.out_channels);
    fill(grad_out, s.samples * s.out_channels * s.pixels());
  }

  void run_all(const stc::CpuKernels<T>& k, const SpikeConvShape& s, bool with_bias, bool one_by_one) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    const stc::SpikeConvTasks tasks = k.spike_conv_tasks(s);
    out.assign(grad_out.size(), nan);
    grad_weight.assign(weight.size(), nan);
    unpacked.assign(x.size(), nan);
    maps.assign(tasks.maps_size, nan);
    bits.assign(s.samples * s.pixels() * s.bytes(), 0xAA);
    const int64_t tiles = s.samples * ((s.pixels() + stc::kSpikeTile - 1) / stc::kSpikeTile);
    spikes = 0;
    const stc::SpikeBits<const T> pack{s.samples, s.in_channels, s.pixels(), x.data(), bits.data()};
    run(tiles, one_by_one, [&](int64_t begin, int64_t end) { spikes += k.pack_spikes(pack, begin, end); });
    const stc::SpikeBits<T> unpack{s.samples, s.in_channels, s.pixels(), unpacked.data(), bits.data()};
    run(tiles, one_by_one, [&](int64_t begin, int64_t end) { k.unpack_spikes(unpack, begin, end); });
    const stc::SpikeConvForward<T> forward{s, bits.data(), weight.data(), with_bias ? bias.data() : nullptr,
                                           out.data()};
    run(tasks.forward, one_by_one, [&](int64_t begin, int64_t end) { k.spike_conv_forward(forward, begin, end); });
    const stc::SpikeConvGradient<T> gradient{s, bits.data(), spikes, grad_out.data(), maps.data(), grad_weight.data()};
    run(tasks.maps, one_by_one, [&](int64_t begin, int64_t end) { k.spike_conv_maps(gradient, begin, end); });
    run(tasks.gradient, one_by_one, [&](int64_t begin, int64_t end) { k.spike_conv_gradient(gradient, begin, end); });
  }
};

template <class T>
void check(const stc::CpuKernels<T>& k, const SpikeConvShape& s, double rate, bool with_bias) {
  Call<T> call(s, rate);
  call.run_all(k, s, with_bias, false);
  Call<T> again(s, rate);
  again.run_all(k, s, with_bias, true);
  CHECK(call.out == again.out);
  CHECK(call.grad_weight == again.grad_weight);
  CHECK(call.unpacked == call.x);
  int64_t spikes = 0;
  for (const T value : call.x) spikes += value == T(1);
  CHECK(call.spikes == spikes && again.spikes == spikes);

  const int64_t pad = s.kernel / 2, taps = s.kernel * s.kernel;
  std::vector<double> out(call.out.size()), grad(call.grad_weight.size());
  for (int64_t n = 0; n < s.samples; ++n)
    for (int64_t o = 0; o < s.out_channels; ++o)
      for (int64_t y = 0; y < s.height; ++y)
        for (int64_t x = 0; x < s.width; ++x) {
          const int64_t at = ((n * s.out_channels + o) * s.height + y) * s.width + x;
          out[at] = with_bias ? double(call.bias[o]) : 0.0;
          for (int64_t c = 0; c < s.in_channels; ++c)
            for (int64_t tap = 0; tap < taps; ++tap) {
              const int64_t row = y + tap / s.kernel - pad, column = x + tap % s.kernel - pad;
              if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
              const double spike = call.x[((n * s.in_channels + c) * s.height + row) * s.width + column];
              const int64_t w = (o * s.in_channels + c) * taps + tap;
              out[at] += spike * call.weight[w];
              grad[w] += spike * call.grad_out[at];
            }
        }
  // half a unit in the last place for each of the terms, which are at most 1
  const double terms = double(std::max(taps * s.in_channels, s.samples * s.pixels()));
  const double rounding = 0.5 * terms * double(std::numeric_limits<T>::epsilon());
  for (size_t i = 0; i < out.size(); ++i) CHECK_NEAR(call.out[i], out[i], rounding);
  for (size_t i = 0; i < grad.size(); ++i) CHECK_NEAR(call.grad_weight[i], grad[i], rounding);
}

template <class T>
void check_other_values(const stc::CpuKernels<T>& k) {
  const SpikeConvShape s{2, 37, 1, 5, 7, 1};
  const T others[] = {T(0.5), T(-1), T(2), std::numeric_limits<T>::quiet_NaN()};
  for (const T other : others) {
    Call<T> call(s, 0.3);
    call.x.back() = other;
    call.bits.resize(s.samples * s.pixels() * s.bytes());
    const stc::SpikeBits<const T> pack{s.samples, s.in_channels, s.pixels(), call.x.data(), call.bits.data()};
    CHECK(k.pack_spikes(pack, 0, 1) >= 0);
    CHECK(k.pack_spikes(pack, 1, 2) == -1);
  }
}

template <class T>
void check_all(const stc::CpuCapability& capability) {
  const stc::CpuKernels<T>& k = table<T>(capability);
  const SpikeConvShape shapes[] = {{1, 1, 1, 1, 1, 1},    {2, 3, 4, 5, 7, 3},   {1, 33, 11, 9, 13, 5},
                                   {10, 8, 40, 4, 6, 3},  {1, 70, 9, 6, 35, 7}, {3, 129, 200, 3, 4, 1},
                                   {1, 5, 17, 18, 17, 13}};
  for (const SpikeConvShape& s : shapes)
    for (const double rate : {0.0, 0.1, 1.0}) check<T>(k, s, rate, rate > 0);
  check_other_values<T>(k);
}

void check_choice() {
  using stc::SpikeConvPass, stc::SpikeConvType;
  const SpikeConvShape s{2, 256, 256, 32, 32, 5};
  const int64_t neurons = s.samples * s.in_channels * s.pixels();
  for (const SpikeConvPass pass : {SpikeConvPass::kForward, SpikeConvPass::kWeightGradient})
    for (const SpikeConvType type : {SpikeConvType::kShort, SpikeConvType::kSingle, SpikeConvType::kDouble}) {
      CHECK(stc::by_events(s, neurons / 20, pass, type));
      CHECK(!stc::by_events(s, neurons, pass, type));
      CHECK(!stc::by_events({1, 256, 256, 1, 1, 5}, 0, pass, type));  // all is moving weights
      CHECK(!stc::by_events({1, 256, 256, 1 << 14, 1 << 14, 5}, 0, pass, type));
    }
}

}  // namespace

int main() {
  for (const stc::CpuCapability* c = stc::cpu_capabilities(); c->name; ++c) {
    if (!c->supported()) continue;
    check_all<float>(*c);
    check_all<double>(*c);
  }
  check_choice();
  return stc::test::result();
}

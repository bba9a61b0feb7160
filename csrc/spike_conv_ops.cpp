// The operators stc_cuda::spike_conv and spike_conv_weight_gradient on the CPU: the feed-forward convolution of spikes
// by events on the kernels of csrc/cpu, or by ATen's dense convolution.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <string_view>
#include <tuple>

#include "cpu/kernels.h"
#include "memory_cache.h"
#include "spike_conv_plan.h"

namespace stc {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What is told of a call, as int64 [2]: the path and the number of spikes.
enum Path : int64_t { kEvents, kDense, kNotSpikes };

Tensor report(Path path, int64_t spikes) { return at::tensor({int64_t(path), spikes}, at::kLong); }

void require_path(std::string_view path) {
  TORCH_CHECK_VALUE(path == "auto" || path == "events" || path == "dense", "path: got '", std::string(path),
                    "', expected 'auto', 'events' or 'dense'");
}

Path choose(std::string_view path, const SpikeConvShape& shape, int64_t spikes, SpikeConvPass pass,
            at::ScalarType type) {
  if (path == "dense") return kDense;
  if (path == "events") {
    TORCH_CHECK_VALUE(fits_events(shape), "path: got 'events' for a map too large for it, expected 'auto'");
    return kEvents;
  }
  const SpikeConvType kind = type == at::kDouble  ? SpikeConvType::kDouble
                             : type == at::kFloat ? SpikeConvType::kSingle
                                                  : SpikeConvType::kShort;
  return by_events(shape, spikes, pass, kind) ? kEvents : kDense;
}

void require_real(const Tensor& x, const char* name, int64_t dimensions) {
  TORCH_CHECK_VALUE(x.layout() == at::kStrided && x.device().is_cpu() && x.dim() == dimensions, name,
                    ": expected a dense tensor of ", dimensions, " dimensions on the CPU, got ", x.dim(), " on ",
                    x.device());
  TORCH_CHECK_TYPE(x.scalar_type() == at::kFloat || x.scalar_type() == at::kDouble || x.scalar_type() == at::kHalf ||
                       x.scalar_type() == at::kBFloat16,
                   name, ": got dtype ", x.scalar_type(), ", expected float32, float64, float16 or bfloat16");
}

SpikeConvShape require_shape(const Tensor& x, int64_t in_channels, int64_t out_channels, int64_t kernel) {
  const SpikeConvShape shape{x.size(0), in_channels, out_channels, x.size(2), x.size(3), kernel};
  TORCH_CHECK_VALUE(kernel % 2 == 1, "weight: got kernel size ", kernel, ", expected an odd one");
  TORCH_CHECK_VALUE(in_channels > 0 && out_channels > 0 && shape.pixels() > 0, "input: got shape ", x.sizes(), " for ",
                    in_channels, " input and ", out_channels,
                    " output channels, expected at least one channel, row and column");
  return shape;
}

int64_t tiles(const SpikeConvShape& s) { return s.samples * ((s.pixels() + kSpikeTile - 1) / kSpikeTile); }

// The number of spikes, or -1 where a value is neither 0 nor 1.
template <class T>
int64_t pack(const SpikeConvShape& shape, const Tensor& x, const Tensor& bits) {
  const Tensor values = x.to(c10::CppTypeToScalarType<T>::value).contiguous();
  const SpikeBits<const T> p{shape.samples, shape.in_channels, shape.pixels(), values.const_data_ptr<T>(),
                             bits.mutable_data_ptr<uint8_t>()};
  std::atomic<int64_t> spikes{0};
  std::atomic<bool> binary{true};
  at::parallel_for(0, tiles(shape), 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end && binary; ++task) {
      const int64_t count = cpu_kernels<T>().pack_spikes(p, task, task + 1);
      if (count < 0)
        binary = false;
      else
        spikes += count;
    }
  });
  return binary ? int64_t(spikes) : -1;
}

// Scratch [size], kept by the thread until its next call where it is small: the first touch of new pages would cost as
// much as the work on them.
Tensor scratch(int64_t size, at::ScalarType type) {
  constexpr int64_t kKept = int64_t(32) << 20;
  const int64_t bytes = size * int64_t(c10::elementSize(type));
  if (bytes > kKept) return at::empty({size}, at::TensorOptions(type));
  thread_local Tensor kept;
  if (!kept.defined() || kept.numel() < bytes) kept = at::empty({bytes}, at::TensorOptions(at::kByte));
  return kept.narrow(0, 0, bytes).view(type);
}

template <class T>
Tensor forward_by_events(const SpikeConvShape& shape, const Tensor& bits, const Tensor& weight,
                         const OptionalTensor& bias) {
  const at::ScalarType type = c10::CppTypeToScalarType<T>::value;
  const CpuKernels<T>& k = cpu_kernels<T>();
  const SpikeConvTasks tasks = k.spike_conv_tasks(shape);
  const Tensor w = weight.to(type).contiguous(), b = bias ? bias->to(type).contiguous() : Tensor();
  Tensor out = empty_cached({shape.samples, shape.out_channels, shape.height, shape.width}, w.options());
  const SpikeConvForward<T> p{shape, bits.const_data_ptr<uint8_t>(), w.const_data_ptr<T>(),
                              b.defined() ? b.const_data_ptr<T>() : nullptr, out.mutable_data_ptr<T>()};
  at::parallel_for(0, tasks.forward, 1, [&](int64_t begin, int64_t end) { k.spike_conv_forward(p, begin, end); });
  return out.to(weight.scalar_type());
}

template <class T>
Tensor gradient_by_events(const SpikeConvShape& shape, const Tensor& bits, int64_t count, const Tensor& grad_out) {
  const CpuKernels<T>& k = cpu_kernels<T>();
  const SpikeConvTasks tasks = k.spike_conv_tasks(shape);
  const Tensor grad = grad_out.to(c10::CppTypeToScalarType<T>::value).contiguous();
  const Tensor maps = scratch(tasks.maps_size, grad.scalar_type());
  Tensor out = at::empty({shape.out_channels, shape.in_channels, shape.kernel, shape.kernel}, grad.options());
  const SpikeConvGradient<T> p{shape,
                               bits.const_data_ptr<uint8_t>(),
                               count,
                               grad.const_data_ptr<T>(),
                               maps.mutable_data_ptr<T>(),
                               out.mutable_data_ptr<T>()};
  at::parallel_for(0, tasks.maps, 1, [&](int64_t begin, int64_t end) { k.spike_conv_maps(p, begin, end); });
  at::parallel_for(0, tasks.gradient, 1, [&](int64_t begin, int64_t end) { k.spike_conv_gradient(p, begin, end); });
  return out.to(grad_out.scalar_type());
}

template <class T>
Tensor unpack(const SpikeConvShape& shape, const Tensor& bits, at::ScalarType type) {
  const int64_t size = shape.samples * shape.in_channels * shape.pixels();
  const Tensor x = scratch(size, c10::CppTypeToScalarType<T>::value);
  // The kernel reads the bits.
  const SpikeBits<T> p{shape.samples, shape.in_channels, shape.pixels(), x.mutable_data_ptr<T>(),
                       const_cast<uint8_t*>(bits.const_data_ptr<uint8_t>())};
  at::parallel_for(0, tiles(shape), 1,
                   [&](int64_t begin, int64_t end) { cpu_kernels<T>().unpack_spikes(p, begin, end); });
  return x.view({shape.samples, shape.in_channels, shape.height, shape.width}).to(type);
}

// The number of spikes; an error where a bit stands for no channel, since the kernels would take it for one.
int64_t count_spikes(const SpikeConvShape& shape, const Tensor& bits) {
  const uint8_t* p = bits.const_data_ptr<uint8_t>();
  const int64_t bytes = shape.bytes(), last = shape.in_channels - 8 * (bytes - 1);
  int64_t spikes = 0;
  uint8_t stray = 0;
  int64_t i = 0;
  for (uint64_t word; i + int64_t(sizeof word) <= bits.numel(); i += sizeof word) {
    std::memcpy(&word, p + i, sizeof word);
    spikes += __builtin_popcountll(word);
  }
  for (; i < bits.numel(); ++i) spikes += __builtin_popcount(p[i]);
  if (last < 8)
    for (int64_t b = bytes - 1; b < bits.numel(); b += bytes) stray |= uint8_t(uint32_t(p[b]) >> last);
  TORCH_CHECK_VALUE(!stray, "spikes: got bits past channel ", shape.in_channels, ", expected those of spike_conv");
  return spikes;
}

// What ATen is asked here is this operator's own business: neither autograd's nor autocast's.
struct Inside {
  at::AutoDispatchBelowADInplaceOrView no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

std::tuple<Tensor, Tensor, Tensor> spike_conv(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                              bool require_spikes, std::string_view path) {
  const Inside inside;
  require_path(path);
  require_real(input, "input", 4);
  require_real(weight, "weight", 4);
  TORCH_CHECK_VALUE(weight.size(2) == weight.size(3) && weight.size(1) == input.size(1), "weight: got shape ",
                    weight.sizes(), " for an input ", input.sizes(), ", expected [O, ", input.size(1), ", K, K]");
  if (bias) {
    require_real(*bias, "bias", 1);
    TORCH_CHECK_VALUE(bias->size(0) == weight.size(0), "bias: got shape ", bias->sizes(), ", expected [",
                      weight.size(0), "]");
  }
  const SpikeConvShape shape = require_shape(input, weight.size(1), weight.size(0), weight.size(2));
  const Tensor bits =
      at::empty({shape.samples, 1, shape.height, shape.width, shape.bytes()}, input.options().dtype(at::kByte));
  const bool wide = input.scalar_type() == at::kDouble;
  const int64_t spikes = wide ? pack<double>(shape, input, bits) : pack<float>(shape, input, bits);
  TORCH_CHECK_VALUE(spikes >= 0 || !require_spikes,
                    "input: got values other than 0 and 1, expected spikes: the gradient of a compiled spike "
                    "convolution is made from bits; set expects_spikes = False on the SpikeConv2d, or use nn.Conv2d");
  const Path chosen =
      spikes < 0 ? kNotSpikes : choose(path, shape, spikes, SpikeConvPass::kForward, weight.scalar_type());
  Tensor out;
  if (chosen != kEvents)
    out = at::conv2d(input.to(weight.scalar_type()), weight, bias, 1, shape.kernel / 2);
  else if (weight.scalar_type() == at::kDouble)
    out = forward_by_events<double>(shape, bits, weight, bias);
  else
    out = forward_by_events<float>(shape, bits, weight, bias);
  const bool transposed = input.is_contiguous(at::MemoryFormat::ChannelsLast) && !input.is_contiguous();
  return {out.contiguous(transposed ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous), bits,
          report(chosen, spikes)};
}

std::tuple<Tensor, Tensor> spike_conv_weight_gradient(const Tensor& grad_out, const Tensor& spikes, int64_t in_channels,
                                                      int64_t kernel_size, std::string_view path) {
  const Inside inside;
  require_path(path);
  require_real(grad_out, "grad_out", 4);
  const SpikeConvShape shape = require_shape(grad_out, in_channels, grad_out.size(1), kernel_size);
  const std::array<int64_t, 5> packed{shape.samples, 1, shape.height, shape.width, shape.bytes()};
  TORCH_CHECK_VALUE(spikes.layout() == at::kStrided && spikes.device().is_cpu() && spikes.scalar_type() == at::kByte &&
                        spikes.sizes() == at::IntArrayRef(packed),
                    "spikes: expected those of spike_conv, uint8 ", at::IntArrayRef(packed));
  const Tensor bits = spikes.contiguous();
  const at::ScalarType type = grad_out.scalar_type();
  const int64_t count = count_spikes(shape, bits);
  const Path chosen = choose(path, shape, count, SpikeConvPass::kWeightGradient, type);
  const bool wide = type == at::kDouble;
  Tensor grad;
  if (chosen == kEvents) {
    grad = wide ? gradient_by_events<double>(shape, bits, count, grad_out)
                : gradient_by_events<float>(shape, bits, count, grad_out);
  } else {
    const Tensor x = wide ? unpack<double>(shape, bits, type) : unpack<float>(shape, bits, type);
    // Of the weight only the shape is read, but an expanded one would be copied.
    const Tensor like =
        at::empty({shape.out_channels, shape.in_channels, shape.kernel, shape.kernel}, grad_out.options());
    const int64_t pad = shape.kernel / 2;
    grad = std::get<1>(at::convolution_backward(grad_out, x, like, std::nullopt, {1, 1}, {pad, pad}, {1, 1}, false,
                                                {0, 0}, 1, {false, true, false}))
               .contiguous();
  }
  return {grad, report(chosen, count)};
}

}  // namespace
}  // namespace stc

TORCH_LIBRARY_FRAGMENT(stc_cuda, m) {
  m.def(
      "spike_conv(Tensor input, Tensor weight, Tensor? bias, bool require_spikes, str path) "
      "-> (Tensor out, Tensor spikes, Tensor report)");
  m.def(
      "spike_conv_weight_gradient(Tensor grad_out, Tensor spikes, int in_channels, int kernel_size, str path) "
      "-> (Tensor grad_weight, Tensor report)");
}

TORCH_LIBRARY_IMPL(stc_cuda, CPU, m) {
  m.impl("spike_conv", &stc::spike_conv);
  m.impl("spike_conv_weight_gradient", &stc::spike_conv_weight_gradient);
}

TORCH_LIBRARY_IMPL(stc_cuda, Autograd, m) {
  m.impl("spike_conv", torch::autograd::autogradNotImplementedFallback());
  m.impl("spike_conv_weight_gradient", torch::autograd::autogradNotImplementedFallback());
}

// The operators as C++ sees them, for every device: schemas, the checks that memory safety needs, and the parameter
// structs of the kernels made from tensors. User input is checked in stc_cuda/_checks.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "params.h"
#include "plan.h"

namespace stc {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The tensors of one call, in the order of the schemas.
struct Tensors {
  const Tensor& current;
  const Tensor& temporal_weight;
  const Tensor& spatial_weight;
  const OptionalTensor& v;
  const OptionalTensor& spikes;
  std::array<const OptionalTensor*, kNorms> norm_weight;
  std::array<const OptionalTensor*, kNorms> norm_bias;
};

struct Options {
  int64_t groups;
  int64_t norm_groups;
  double eps;
  double v_threshold;
  std::optional<double> v_reset;
  std::string_view surrogate;
  double alpha;
  bool spiking;
  bool detach_reset;
};

inline Surrogate parse_surrogate(std::string_view name) {
  if (name == "sigmoid") return Surrogate::kSigmoid;
  if (name == "atan") return Surrogate::kAtan;
  TORCH_CHECK_VALUE(false, "surrogate: got '", std::string(name), "', expected 'sigmoid' or 'atan'");
}

inline void require(const Tensor& x, const Tensor& current, at::IntArrayRef sizes, const char* name) {
  TORCH_CHECK_VALUE(x.layout() == at::kStrided && x.device() == current.device(), name, ": expected a dense tensor on ",
                    current.device());
  TORCH_CHECK_TYPE(x.scalar_type() == current.scalar_type(), name, ": got dtype ", x.scalar_type(), ", expected ",
                   current.scalar_type());
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, ": got shape ", x.sizes(), ", expected ", sizes);
}

inline void require(const OptionalTensor& x, const Tensor& current, at::IntArrayRef sizes, const char* name) {
  if (x) require(*x, current, sizes, name);
}

inline Shape check(const Tensors& x, const Options& o) {
  const Tensor& current = x.current;
  TORCH_CHECK_VALUE(current.layout() == at::kStrided && current.dim() == 5,
                    "current: expected a dense tensor [T, N, C, H, W]");
  TORCH_CHECK_TYPE(current.scalar_type() == at::kFloat || current.scalar_type() == at::kDouble, "current: got dtype ",
                   current.scalar_type(), ", expected float32 or float64");
  const Shape shape{current.size(0), current.size(1), current.size(2),
                    current.size(3), current.size(4), x.temporal_weight.dim() == 4 ? x.temporal_weight.size(3) : 0,
                    o.groups,        o.norm_groups};
  TORCH_CHECK_VALUE(shape.channels > 0 && shape.height > 0 && shape.width > 0, "current: got shape ", current.sizes(),
                    ", expected at least one channel, row and column");
  TORCH_CHECK_VALUE(o.groups > 0 && shape.channels % o.groups == 0, "groups: got ", o.groups,
                    ", expected a divisor of ", shape.channels);
  TORCH_CHECK_VALUE(o.norm_groups > 0 && shape.channels % o.norm_groups == 0, "norm_groups: got ", o.norm_groups,
                    ", expected a divisor of ", shape.channels);
  TORCH_CHECK_VALUE(shape.kernel % 2 == 1, "temporal_weight: got kernel size ", shape.kernel, ", expected an odd one");
  // Offsets inside a convolution group are 32-bit numbers in the kernels.
  const int64_t in_group = shape.channels / o.groups;
  const double largest =
      double(shape.height + shape.kernel) * double(shape.width + shape.kernel) * double(2 * in_group + 16);
  TORCH_CHECK_VALUE(largest < double(1 << 30), "current: got a map of ", shape.height, "x", shape.width, " with ",
                    in_group, " channels a group, expected at most 2^30 numbers in both gates of a group with halo");
  const std::array<int64_t, 4> weight{shape.channels, shape.channels / o.groups, shape.kernel, shape.kernel};
  require(x.temporal_weight, current, weight, "temporal_weight");
  require(x.spatial_weight, current, weight, "spatial_weight");
  const auto state = current.sizes().slice(1);
  require(x.v, current, state, "v");
  require(x.spikes, current, state, "spikes");
  for (int i = 0; i < kNorms; ++i) {
    TORCH_CHECK_VALUE(x.norm_weight[i]->has_value() == x.norm_bias[i]->has_value(),
                      "norms: expected both weight and bias, or neither");
    require(*x.norm_weight[i], current, shape.channels, "norm weight");
    require(*x.norm_bias[i], current, shape.channels, "norm bias");
  }
  return shape;
}

template <class T>
Strided<const T> strided(const OptionalTensor& x) {
  if (!x || !x->defined()) return {};
  const auto s = x->strides();
  const T* data = x->const_data_ptr<T>();
  if (x->dim() == 5) return {data, s[0], s[1], s[2], s[3], s[4]};
  return {data, 0, s[0], s[1], s[2], s[3]};
}

template <class T>
const T* pointer(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

template <class T>
T* output(const Tensor& x) {
  return x.numel() ? x.mutable_data_ptr<T>() : nullptr;
}

// The parameters, contiguous; they must outlive the StcInputs that point into them.
struct Parameters {
  Tensor temporal_weight, spatial_weight;
  std::array<Tensor, kNorms> norm_weight, norm_bias;

  explicit Parameters(const Tensors& x)
      : temporal_weight(x.temporal_weight.contiguous()), spatial_weight(x.spatial_weight.contiguous()) {
    for (int i = 0; i < kNorms; ++i) {
      if (!x.norm_weight[i]->has_value()) continue;
      norm_weight[i] = (*x.norm_weight[i])->contiguous();
      norm_bias[i] = (*x.norm_bias[i])->contiguous();
    }
  }
};

template <class T>
StcInputs<T> inputs(const Tensors& x, const Parameters& p, const Shape& shape, const Options& o) {
  StcInputs<T> in{};
  in.shape = shape;
  in.cell = {T(o.v_threshold),      T(o.v_reset.value_or(0)), T(o.alpha), parse_surrogate(o.surrogate),
             o.v_reset.has_value(), o.detach_reset,           o.spiking};
  in.eps = o.eps;
  in.current = strided<T>(x.current);
  in.v = strided<T>(x.v);
  in.spikes = strided<T>(x.spikes);
  in.temporal_weight = pointer<T>(p.temporal_weight);
  in.spatial_weight = pointer<T>(p.spatial_weight);
  for (int i = 0; i < kNorms; ++i) {
    in.norm_weight[i] = pointer<T>(p.norm_weight[i]);
    in.norm_bias[i] = pointer<T>(p.norm_bias[i]);
  }
  return in;
}

template <class F>
void with_scalar(const Tensor& current, F f) {
  if (current.scalar_type() == at::kFloat)
    f(float{});
  else
    f(double{});
}

// The operators of one device. Runner::run(params, current) does the work: StcForward<T> or StcBackward<T>, with
// `current` telling device and options of the buffers that it needs.
template <class Runner>
struct Operators {
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
      const Tensor& current, const Tensor& temporal_weight, const Tensor& spatial_weight, const OptionalTensor& v,
      const OptionalTensor& spikes, const OptionalTensor& current_norm_weight, const OptionalTensor& current_norm_bias,
      const OptionalTensor& temporal_norm_weight, const OptionalTensor& temporal_norm_bias,
      const OptionalTensor& spatial_norm_weight, const OptionalTensor& spatial_norm_bias, int64_t groups,
      int64_t norm_groups, double eps, double v_threshold, std::optional<double> v_reset, std::string_view surrogate,
      double alpha, bool spiking, bool store_v_seq, bool packed_spikes, bool save_for_backward) {
    const Tensors x{current,
                    temporal_weight,
                    spatial_weight,
                    v,
                    spikes,
                    {&current_norm_weight, &temporal_norm_weight, &spatial_norm_weight},
                    {&current_norm_bias, &temporal_norm_bias, &spatial_norm_bias}};
    const Options o{groups, norm_groups, eps, v_threshold, v_reset, surrogate, alpha, spiking, false};
    const Shape shape = check(x, o);
    TORCH_CHECK_VALUE(spiking || !packed_spikes, "packed_spikes: expected spiking");
    const auto sequence = current.sizes();
    const std::array<int64_t, 1> nothing{0};
    const std::array<int64_t, 6> packed{shape.steps,  shape.samples, shape.groups,
                                        shape.height, shape.width,   (shape.channels / shape.groups + 7) / 8};
    const std::array<int64_t, 5> stats{shape.steps, shape.samples, shape.norm_groups, kNorms, 2};
    const auto real = current.options();
    Tensor spikes_out = packed_spikes ? at::empty(packed, real.dtype(at::kByte)) : at::empty(sequence, real);
    Tensor v_out = at::empty(sequence.slice(1), real);
    Tensor v_seq = at::empty(store_v_seq ? sequence : at::IntArrayRef(nothing), real);
    Tensor u = at::empty(save_for_backward ? sequence : at::IntArrayRef(nothing), real);
    Tensor norm_stats =
        at::empty(save_for_backward ? at::IntArrayRef(stats) : at::IntArrayRef(nothing), real.dtype(at::kDouble));
    const Parameters parameters(x);

    with_scalar(current, [&](auto zero) {
      using T = decltype(zero);
      StcForward<T> params{};
      params.in = inputs<T>(x, parameters, shape, o);
      if (packed_spikes)
        params.packed_spikes = output<uint8_t>(spikes_out);
      else
        params.spikes = output<T>(spikes_out);
      params.v = output<T>(v_out);
      params.v_seq = output<T>(v_seq);
      params.u = output<T>(u);
      params.norm_stats = output<double>(norm_stats);
      Runner::run(params, current);
    });
    return {spikes_out, v_out, v_seq, u, norm_stats};
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
      const OptionalTensor& grad_spikes, const OptionalTensor& grad_v, const OptionalTensor& grad_v_seq,
      const Tensor& current, const Tensor& temporal_weight, const Tensor& spatial_weight, const OptionalTensor& v,
      const OptionalTensor& spikes, const OptionalTensor& current_norm_weight, const OptionalTensor& current_norm_bias,
      const OptionalTensor& temporal_norm_weight, const OptionalTensor& temporal_norm_bias,
      const OptionalTensor& spatial_norm_weight, const OptionalTensor& spatial_norm_bias, const Tensor& u,
      const Tensor& norm_stats, int64_t groups, int64_t norm_groups, double eps, double v_threshold,
      std::optional<double> v_reset, std::string_view surrogate, double alpha, bool spiking, bool detach_reset,
      bool gradient_detach) {
    const Tensors x{current,
                    temporal_weight,
                    spatial_weight,
                    v,
                    spikes,
                    {&current_norm_weight, &temporal_norm_weight, &spatial_norm_weight},
                    {&current_norm_bias, &temporal_norm_bias, &spatial_norm_bias}};
    const Options o{groups, norm_groups, eps, v_threshold, v_reset, surrogate, alpha, spiking, detach_reset};
    const Shape shape = check(x, o);
    const auto sequence = current.sizes();
    const auto state = sequence.slice(1);
    require(grad_spikes, current, sequence, "grad_spikes");
    require(grad_v, current, state, "grad_v");
    require(grad_v_seq, current, sequence, "grad_v_seq");
    require(u, current, sequence, "u");
    TORCH_CHECK_VALUE(norm_stats.scalar_type() == at::kDouble && norm_stats.is_contiguous() && u.is_contiguous() &&
                          norm_stats.numel() == shape.steps * shape.samples * shape.norm_groups * kNorms * 2,
                      "norm_stats, u: expected the tensors saved by stc_forward");

    const auto real = current.options();
    const std::array<int64_t, 1> nothing{0};
    const bool wants_grad_spikes = spikes && !gradient_detach;
    Tensor grad_current = at::empty(sequence, real);
    Tensor grad_temporal_weight = at::empty(temporal_weight.sizes(), real);
    Tensor grad_spatial_weight = at::empty(spatial_weight.sizes(), real);
    Tensor grad_v_before = at::empty(state, real);
    Tensor grad_spikes_before = at::empty(wants_grad_spikes ? state : at::IntArrayRef(nothing), real);
    std::array<Tensor, kNorms> norm_weight, norm_bias;
    for (int i = 0; i < kNorms; ++i) {
      const int64_t size = x.norm_weight[i]->has_value() ? shape.channels : 0;
      norm_weight[i] = at::empty({size}, real);
      norm_bias[i] = at::empty({size}, real);
    }
    const Parameters parameters(x);

    with_scalar(current, [&](auto zero) {
      using T = decltype(zero);
      StcBackward<T> params{};
      params.in = inputs<T>(x, parameters, shape, o);
      params.gradient_detach = gradient_detach;
      params.u = pointer<T>(u);
      params.norm_stats = pointer<double>(norm_stats);
      params.grad_spikes_out = strided<T>(grad_spikes);
      params.grad_v_out = strided<T>(grad_v);
      params.grad_v_seq_out = strided<T>(grad_v_seq);
      params.grad_current = output<T>(grad_current);
      params.grad_v = output<T>(grad_v_before);
      params.grad_spikes = output<T>(grad_spikes_before);
      params.grad_temporal_weight = output<T>(grad_temporal_weight);
      params.grad_spatial_weight = output<T>(grad_spatial_weight);
      for (int i = 0; i < kNorms; ++i) {
        params.grad_norm_weight[i] = output<T>(norm_weight[i]);
        params.grad_norm_bias[i] = output<T>(norm_bias[i]);
      }
      Runner::run(params, current);
    });
    return {grad_current, grad_temporal_weight, grad_spatial_weight, grad_v_before,  grad_spikes_before, norm_weight[0],
            norm_bias[0], norm_weight[1],       norm_bias[1],        norm_weight[2], norm_bias[2]};
  }
};

// Defines the operators in a library's namespace, and implements them for the tensors of one dispatch key.
inline void define_operators(torch::Library& m) {
  m.def(
      "stc_forward(Tensor current, Tensor temporal_weight, Tensor spatial_weight, Tensor? v, Tensor? spikes, "
      "Tensor? current_norm_weight, Tensor? current_norm_bias, Tensor? temporal_norm_weight, "
      "Tensor? temporal_norm_bias, Tensor? spatial_norm_weight, Tensor? spatial_norm_bias, int groups, "
      "int norm_groups, float eps, float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, "
      "bool store_v_seq, bool packed_spikes, bool save_for_backward) "
      "-> (Tensor spikes, Tensor v, Tensor v_seq, Tensor u, Tensor norm_stats)");
  m.def(
      "stc_backward(Tensor? grad_spikes, Tensor? grad_v, Tensor? grad_v_seq, Tensor current, Tensor temporal_weight, "
      "Tensor spatial_weight, Tensor? v, Tensor? spikes, Tensor? current_norm_weight, Tensor? current_norm_bias, "
      "Tensor? temporal_norm_weight, Tensor? temporal_norm_bias, Tensor? spatial_norm_weight, "
      "Tensor? spatial_norm_bias, Tensor u, Tensor norm_stats, int groups, int norm_groups, float eps, "
      "float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, bool detach_reset, "
      "bool gradient_detach) "
      "-> (Tensor grad_current, Tensor grad_temporal_weight, Tensor grad_spatial_weight, Tensor grad_v, "
      "Tensor grad_spikes, Tensor grad_current_norm_weight, Tensor grad_current_norm_bias, "
      "Tensor grad_temporal_norm_weight, Tensor grad_temporal_norm_bias, Tensor grad_spatial_norm_weight, "
      "Tensor grad_spatial_norm_bias)");
}

template <class Runner>
void implement_operators(torch::Library& m) {
  m.impl("stc_forward", &Operators<Runner>::forward);
  m.impl("stc_backward", &Operators<Runner>::backward);
}

}  // namespace stc

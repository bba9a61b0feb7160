// The operators as C++ sees them, for every device: schemas, the checks that memory safety needs, and the parameter
// structs of the kernels made from tensors. User input is checked in stc_cuda/_checks.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "cell.h"
#include "params.h"
#include "plan.h"
#include "surrogate.h"

namespace stc {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = c10::List<std::optional<Tensor>>;

// The tensors of one call, in the order of the schemas.
struct Tensors {
  const Tensor& current;
  const Tensor& temporal_weight;
  const Tensor& spatial_weight;
  const std::vector<OptionalTensor>& states;
  const OptionalTensor& spikes;
  std::array<const OptionalTensor*, kNorms> norm_weight;
  std::array<const OptionalTensor*, kNorms> norm_bias;
  const OptionalTensor& threshold;
  const OptionalTensor& coefficients;
};

inline int parse_circuit(std::string_view name) {
  for (int i = 0; i < CircuitCells::kCount; ++i)
    if (name == CircuitCells::traits(i).name) return i;
  TORCH_CHECK_VALUE(false, "neuron: got '", std::string(name), "', expected the name of one of CircuitCells");
}

struct Options {
  int neuron;
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
  constexpr std::pair<std::string_view, Surrogate> kNames[] = {
      {"sigmoid", Surrogate::kSigmoid},
      {"atan", Surrogate::kAtan},
      {"piecewise_quadratic", Surrogate::kPiecewiseQuadratic},
      {"piecewise_exp", Surrogate::kPiecewiseExp},
      {"softsign", Surrogate::kSoftsign},
      {"superspike", Surrogate::kSuperspike},
      {"erf", Surrogate::kErf},
      {"rect", Surrogate::kRect},
      {"fast_sigmoid", Surrogate::kFastSigmoid},
  };
  for (const auto& [known, surrogate] : kNames)
    if (name == known) return surrogate;
  TORCH_CHECK_VALUE(false, "surrogate: got '", std::string(name), "', expected a name of stc_cuda.Surrogate");
}

inline bool is_short(at::ScalarType type) { return type == at::kHalf || type == at::kBFloat16; }

// Of membrane potentials and of all sums, for a current of this type.
inline at::ScalarType state_type(const Tensor& current) {
  return is_short(current.scalar_type()) ? at::kFloat : current.scalar_type();
}

// `type`: the one it must have; with `or_state` it may also be that of the state.
inline void require(const Tensor& x, const Tensor& current, at::ScalarType type, bool or_state, at::IntArrayRef sizes,
                    const char* name) {
  TORCH_CHECK_VALUE(x.layout() == at::kStrided && x.device() == current.device(), name, ": expected a dense tensor on ",
                    current.device());
  TORCH_CHECK_TYPE(x.scalar_type() == type || (or_state && x.scalar_type() == state_type(current)), name,
                   ": got dtype ", x.scalar_type(), ", expected ", type);
  TORCH_CHECK_VALUE(x.sizes() == sizes, name, ": got shape ", x.sizes(), ", expected ", sizes);
}

// The current, the spikes and their gradients.
inline void require_stored(const OptionalTensor& x, const Tensor& current, at::IntArrayRef sizes, const char* name) {
  if (x) require(*x, current, current.scalar_type(), false, sizes, name);
}

// Membrane potentials and their gradients.
inline void require_state(const OptionalTensor& x, const Tensor& current, at::IntArrayRef sizes, const char* name) {
  if (x) require(*x, current, state_type(current), false, sizes, name);
}

inline void require_parameter(const OptionalTensor& x, const Tensor& current, at::IntArrayRef sizes, const char* name) {
  if (x) require(*x, current, current.scalar_type(), true, sizes, name);
}

inline Shape check(const Tensors& x, const Options& o) {
  const Tensor& current = x.current;
  TORCH_CHECK_VALUE(current.layout() == at::kStrided && current.dim() == 5,
                    "current: expected a dense tensor [T, N, C, H, W]");
  TORCH_CHECK_TYPE(
      current.scalar_type() == at::kFloat || current.scalar_type() == at::kDouble || is_short(current.scalar_type()),
      "current: got dtype ", current.scalar_type(), ", expected float32, float64, float16 or bfloat16");
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
  require_parameter(x.temporal_weight, current, weight, "temporal_weight");
  require_parameter(x.spatial_weight, current, weight, "spatial_weight");
  const auto state = current.sizes().slice(1);
  const CellTraits cell = CircuitCells::traits(o.neuron);
  TORCH_CHECK_VALUE(int(x.states.size()) == cell.states, "states: got ", x.states.size(), ", expected ", cell.states);
  for (const OptionalTensor& before : x.states) require_state(before, current, state, "states");
  require_stored(x.spikes, current, state, "spikes");
  for (int i = 0; i < kNorms; ++i) {
    TORCH_CHECK_VALUE(x.norm_weight[i]->has_value() == x.norm_bias[i]->has_value(),
                      "norms: expected both weight and bias, or neither");
    require_parameter(*x.norm_weight[i], current, shape.channels, "norm weight");
    require_parameter(*x.norm_bias[i], current, shape.channels, "norm bias");
  }
  require_state(x.threshold, current, shape.channels, "threshold");
  TORCH_CHECK_VALUE(x.coefficients.has_value() == (cell.coefficients > 0), "coefficients: ", cell.name, " has ",
                    cell.coefficients);
  require_state(x.coefficients, current, {cell.coefficients, shape.channels}, "coefficients");
  return shape;
}

template <class T>
Strided<const T> strided(const OptionalTensor& x) {
  if (!x || !x->defined()) return {};
  const auto s = x->strides();
  const T* data = static_cast<const T*>(x->const_data_ptr());  // StcInputs::storage tells what it really leads to
  if (x->dim() == 5) return {data, s[0], s[1], s[2], s[3], s[4]};
  return {data, 0, s[0], s[1], s[2], s[3]};
}

template <class T>
const T* pointer(const Tensor& x) {
  return x.defined() ? x.const_data_ptr<T>() : nullptr;
}

template <class T>
T* output(const Tensor& x) {
  return x.numel() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

// The parameters, contiguous and of the state's type; they must outlive the StcInputs that point into them.
struct Parameters {
  Tensor temporal_weight, spatial_weight;
  std::array<Tensor, kNorms> norm_weight, norm_bias;
  Tensor threshold, coefficients;

  explicit Parameters(const Tensors& x) {
    const auto as_state = [type = state_type(x.current)](const Tensor& p) { return p.to(type).contiguous(); };
    temporal_weight = as_state(x.temporal_weight);
    spatial_weight = as_state(x.spatial_weight);
    for (int i = 0; i < kNorms; ++i) {
      if (!x.norm_weight[i]->has_value()) continue;
      norm_weight[i] = as_state(**x.norm_weight[i]);
      norm_bias[i] = as_state(**x.norm_bias[i]);
    }
    if (x.threshold) threshold = as_state(*x.threshold);
    if (x.coefficients) coefficients = as_state(*x.coefficients);
  }
};

// Current, spikes and the gradients of spikes as the kernels take them: as they are, or in the state's type.
struct Stored {
  bool converted;

  Tensor operator()(const Tensor& x) const { return converted ? x.to(at::kFloat) : x; }
  OptionalTensor operator()(const OptionalTensor& x) const {
    return x && converted ? OptionalTensor(x->to(at::kFloat)) : x;
  }
  at::TensorOptions options(const Tensor& current) const {
    return converted ? current.options().dtype(at::kFloat) : current.options();
  }
};

template <class T>
StcInputs<T> inputs(const Tensors& x, const Parameters& p, const Shape& shape, const Options& o) {
  StcInputs<T> in{};
  in.shape = shape;
  in.neuron = o.neuron;
  in.cell = {T(o.v_threshold),      T(o.v_reset.value_or(0)), T(o.alpha), parse_surrogate(o.surrogate),
             o.v_reset.has_value(), o.detach_reset,           o.spiking,  {}};
  in.cell.slope = surrogate_slope(in.cell.surrogate, in.cell.alpha);
  in.eps = o.eps;
  const at::ScalarType storage = x.current.scalar_type();
  in.storage = storage == at::kHalf ? Storage::kHalf : storage == at::kBFloat16 ? Storage::kBfloat16 : Storage::kState;
  in.short_weights = is_short(x.temporal_weight.scalar_type()) && is_short(x.spatial_weight.scalar_type());
  in.current = strided<T>(x.current);
  for (size_t i = 0; i < x.states.size(); ++i) in.states[i] = strided<T>(x.states[i]);
  in.spikes = strided<T>(x.spikes);
  in.temporal_weight = pointer<T>(p.temporal_weight);
  in.spatial_weight = pointer<T>(p.spatial_weight);
  for (int i = 0; i < kNorms; ++i) {
    in.norm_weight[i] = pointer<T>(p.norm_weight[i]);
    in.norm_bias[i] = pointer<T>(p.norm_bias[i]);
  }
  in.threshold = pointer<T>(p.threshold);
  in.coefficients = pointer<T>(p.coefficients);
  return in;
}

template <class F>
void with_scalar(at::ScalarType type, F f) {
  if (type == at::kFloat)
    f(float{});
  else
    f(double{});
}

// The operators of one device. Runner::run(params, current) does the work: StcForward<T> or StcBackward<T>, with
// `current` telling device and options of the buffers that it needs. Runner::takes_short(current, shape, request) tells
// whether its kernels take a current and spikes of 16-bit numbers; where they do not, the operators convert.
// Runner::empty(sizes, options) makes a tensor as large as a sequence.
template <class Runner>
struct Operators {
  static std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor, Tensor> forward(
      std::string_view neuron, const Tensor& current, const Tensor& temporal_weight, const Tensor& spatial_weight,
      const TensorList& states_before, const OptionalTensor& spikes, const OptionalTensor& current_norm_weight,
      const OptionalTensor& current_norm_bias, const OptionalTensor& temporal_norm_weight,
      const OptionalTensor& temporal_norm_bias, const OptionalTensor& spatial_norm_weight,
      const OptionalTensor& spatial_norm_bias, const OptionalTensor& threshold, const OptionalTensor& coefficients,
      int64_t groups, int64_t norm_groups, double eps, double v_threshold, std::optional<double> v_reset,
      std::string_view surrogate, double alpha, bool spiking, bool store_v_seq, bool packed_spikes,
      bool save_for_backward) {
    const std::vector<OptionalTensor> states = states_before.vec();
    const Tensors given{current,
                        temporal_weight,
                        spatial_weight,
                        states,
                        spikes,
                        {&current_norm_weight, &temporal_norm_weight, &spatial_norm_weight},
                        {&current_norm_bias, &temporal_norm_bias, &spatial_norm_bias},
                        threshold,
                        coefficients};
    const int index = parse_circuit(neuron);
    const CellTraits cell = CircuitCells::traits(index);
    const Options o{index, groups, norm_groups, eps, v_threshold, v_reset, surrogate, alpha, spiking, false};
    const Shape shape = check(given, o);
    TORCH_CHECK_VALUE(spiking || !packed_spikes, "packed_spikes: expected spiking");
    const auto sequence = current.sizes();
    const std::array<int64_t, 1> nothing{0};
    const std::array<int64_t, 6> packed{shape.steps,  shape.samples, shape.groups,
                                        shape.height, shape.width,   (shape.channels / shape.groups + 7) / 8};
    const std::array<int64_t, 5> stats{shape.steps, shape.samples, shape.norm_groups, kNorms, 2};
    const Stored stored = stored_for(given, shape, o, false, false);
    const Tensor kernel_current = stored(current);
    const OptionalTensor kernel_spikes = stored(spikes);
    const Tensors x{kernel_current,    temporal_weight, spatial_weight, states,      kernel_spikes,
                    given.norm_weight, given.norm_bias, threshold,      coefficients};
    const auto real = current.options().dtype(state_type(current));
    Tensor spikes_out =
        packed_spikes ? at::empty(packed, real.dtype(at::kByte)) : Runner::empty(sequence, stored.options(current));
    std::vector<Tensor> states_out;
    for (int i = 0; i < cell.states; ++i) states_out.push_back(at::empty(sequence.slice(1), real));
    Tensor v_seq = Runner::empty(store_v_seq ? sequence : at::IntArrayRef(nothing), real);
    Tensor potentials = Runner::empty(
        save_for_backward ? at::IntArrayRef(potential_sizes(cell, shape)) : at::IntArrayRef(nothing), real);
    Tensor norm_stats =
        at::empty(save_for_backward ? at::IntArrayRef(stats) : at::IntArrayRef(nothing), real.dtype(at::kDouble));
    const Parameters parameters(x);

    with_scalar(state_type(current), [&](auto zero) {
      using T = decltype(zero);
      StcForward<T> params{};
      params.in = inputs<T>(x, parameters, shape, o);
      if (packed_spikes)
        params.packed_spikes = output<uint8_t>(spikes_out);
      else
        params.spikes = output<T>(spikes_out);
      for (int i = 0; i < cell.states; ++i) params.states[i] = output<T>(states_out[i]);
      params.v_seq = output<T>(v_seq);
      params.potentials = output<T>(potentials);
      params.norm_stats = output<double>(norm_stats);
      Runner::run(params, kernel_current);
    });
    if (stored.converted && !packed_spikes) spikes_out = spikes_out.to(current.scalar_type());
    return {spikes_out, states_out, v_seq, potentials, norm_stats};
  }

  static std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                    Tensor, Tensor>
  backward(std::string_view neuron, const OptionalTensor& grad_spikes, const TensorList& grad_states,
           const OptionalTensor& grad_v_seq, const Tensor& current, const Tensor& temporal_weight,
           const Tensor& spatial_weight, const TensorList& states_before, const OptionalTensor& spikes,
           const OptionalTensor& current_norm_weight, const OptionalTensor& current_norm_bias,
           const OptionalTensor& temporal_norm_weight, const OptionalTensor& temporal_norm_bias,
           const OptionalTensor& spatial_norm_weight, const OptionalTensor& spatial_norm_bias,
           const OptionalTensor& threshold, const OptionalTensor& coefficients, const Tensor& potentials,
           const Tensor& norm_stats, int64_t groups, int64_t norm_groups, double eps, double v_threshold,
           std::optional<double> v_reset, std::string_view surrogate, double alpha, bool spiking, bool detach_reset,
           bool gradient_detach, bool learns_threshold, bool learns_coefficients) {
    const std::vector<OptionalTensor> states = states_before.vec(), grad_states_out = grad_states.vec();
    const Tensors given{current,
                        temporal_weight,
                        spatial_weight,
                        states,
                        spikes,
                        {&current_norm_weight, &temporal_norm_weight, &spatial_norm_weight},
                        {&current_norm_bias, &temporal_norm_bias, &spatial_norm_bias},
                        threshold,
                        coefficients};
    const int index = parse_circuit(neuron);
    const CellTraits cell = CircuitCells::traits(index);
    const Options o{index, groups, norm_groups, eps, v_threshold, v_reset, surrogate, alpha, spiking, detach_reset};
    const Shape shape = check(given, o);
    const auto sequence = current.sizes();
    const auto state = sequence.slice(1);
    require_stored(grad_spikes, current, sequence, "grad_spikes");
    TORCH_CHECK_VALUE(grad_states_out.size() == states.size(), "grad_states: got ", grad_states_out.size(),
                      ", expected ", states.size());
    for (const OptionalTensor& grad : grad_states_out) require_state(grad, current, state, "grad_states");
    require_state(grad_v_seq, current, sequence, "grad_v_seq");
    require_state(potentials, current, potential_sizes(cell, shape), "potentials");
    TORCH_CHECK_VALUE(norm_stats.scalar_type() == at::kDouble && norm_stats.is_contiguous() &&
                          potentials.is_contiguous() &&
                          norm_stats.numel() == shape.steps * shape.samples * shape.norm_groups * kNorms * 2,
                      "norm_stats, potentials: expected the tensors saved by stc_forward");

    const Stored stored = stored_for(given, shape, o, true, !gradient_detach);
    const Tensor kernel_current = stored(current);
    const OptionalTensor kernel_spikes = stored(spikes), kernel_grad_spikes = stored(grad_spikes);
    const Tensors x{kernel_current,    temporal_weight, spatial_weight, states,      kernel_spikes,
                    given.norm_weight, given.norm_bias, threshold,      coefficients};
    // Kernels read contiguous arrays in fours; hooks on saved tensors may return them anywhere.
    const Tensor aligned =
        reinterpret_cast<uintptr_t>(potentials.const_data_ptr()) % 16 ? potentials.clone() : potentials;
    const auto real = current.options().dtype(state_type(current));
    const std::array<int64_t, 1> nothing{0};
    const bool wants_grad_spikes = spikes && !gradient_detach;
    Tensor grad_current = Runner::empty(sequence, stored.options(current));
    Tensor grad_temporal_weight = at::empty(temporal_weight.sizes(), real);
    Tensor grad_spatial_weight = at::empty(spatial_weight.sizes(), real);
    std::vector<Tensor> grad_states_before;
    for (int i = 0; i < cell.states; ++i) grad_states_before.push_back(at::empty(state, real));
    // The kernels write it in the first step, which an empty sequence has not.
    const auto before_sizes = wants_grad_spikes ? state : at::IntArrayRef(nothing);
    Tensor grad_spikes_before = shape.steps ? at::empty(before_sizes, stored.options(current))
                                            : at::zeros(before_sizes, stored.options(current));
    std::array<Tensor, kNorms> norm_weight, norm_bias;
    for (int i = 0; i < kNorms; ++i) {
      const int64_t size = x.norm_weight[i]->has_value() ? shape.channels : 0;
      norm_weight[i] = at::empty({size}, real);
      norm_bias[i] = at::empty({size}, real);
    }
    Tensor grad_threshold = at::empty({learns_threshold ? shape.channels : 0}, real);
    Tensor grad_coefficients =
        at::empty(learns_coefficients && coefficients ? coefficients->sizes() : at::IntArrayRef(nothing), real);
    const Parameters parameters(x);

    with_scalar(state_type(current), [&](auto zero) {
      using T = decltype(zero);
      StcBackward<T> params{};
      params.in = inputs<T>(x, parameters, shape, o);
      params.gradient_detach = gradient_detach;
      params.potentials = pointer<T>(aligned);
      params.norm_stats = pointer<double>(norm_stats);
      params.grad_spikes_out = strided<T>(kernel_grad_spikes);
      params.grad_v_seq_out = strided<T>(grad_v_seq);
      params.grad_current = output<T>(grad_current);
      for (int i = 0; i < cell.states; ++i) {
        params.grad_states_out[i] = strided<T>(grad_states_out[i]);
        params.grad_states[i] = output<T>(grad_states_before[i]);
      }
      params.grad_spikes = output<T>(grad_spikes_before);
      params.grad_threshold = output<T>(grad_threshold);
      params.grad_coefficients = output<T>(grad_coefficients);
      params.grad_temporal_weight = output<T>(grad_temporal_weight);
      params.grad_spatial_weight = output<T>(grad_spatial_weight);
      for (int i = 0; i < kNorms; ++i) {
        params.grad_norm_weight[i] = output<T>(norm_weight[i]);
        params.grad_norm_bias[i] = output<T>(norm_bias[i]);
      }
      Runner::run(params, kernel_current);
    });
    // Each in the type of what it is the gradient of.
    const auto like = [](const Tensor& grad, const Tensor& x) { return grad.to(x.scalar_type()); };
    for (int i = 0; i < kNorms; ++i) {
      if (!x.norm_weight[i]->has_value()) continue;
      norm_weight[i] = like(norm_weight[i], **x.norm_weight[i]);
      norm_bias[i] = like(norm_bias[i], **x.norm_bias[i]);
    }
    return {like(grad_current, current),
            like(grad_temporal_weight, temporal_weight),
            like(grad_spatial_weight, spatial_weight),
            grad_states_before,
            like(grad_spikes_before, current),
            norm_weight[0],
            norm_bias[0],
            norm_weight[1],
            norm_bias[1],
            norm_weight[2],
            norm_bias[2],
            grad_threshold,
            grad_coefficients};
  }

 private:
  static std::array<int64_t, 6> potential_sizes(const CellTraits& cell, const Shape& s) {
    return {cell.potentials, s.steps, s.samples, s.channels, s.height, s.width};
  }

  static Stored stored_for(const Tensors& x, const Shape& shape, const Options& o, bool backward, bool attached) {
    Request request;
    request.double_precision = x.current.scalar_type() == at::kDouble;
    request.spiking = o.spiking;
    request.backward = backward;
    request.attached = attached;
    request.neuron = o.neuron;
    return {is_short(x.current.scalar_type()) && !Runner::takes_short(x.current, shape, request)};
  }
};

// Defines the operators in a library's namespace, and implements them for the tensors of one dispatch key.
inline void define_operators(torch::Library& m) {
  m.def(
      "stc_forward(str neuron, Tensor current, Tensor temporal_weight, Tensor spatial_weight, Tensor?[] states, "
      "Tensor? spikes, Tensor? current_norm_weight, Tensor? current_norm_bias, Tensor? temporal_norm_weight, "
      "Tensor? temporal_norm_bias, Tensor? spatial_norm_weight, Tensor? spatial_norm_bias, Tensor? threshold, "
      "Tensor? coefficients, int groups, int norm_groups, float eps, float v_threshold, float? v_reset, "
      "str surrogate, float alpha, bool spiking, bool store_v_seq, bool packed_spikes, bool save_for_backward) "
      "-> (Tensor spikes, Tensor[] states, Tensor v_seq, Tensor potentials, Tensor norm_stats)");
  m.def(
      "stc_backward(str neuron, Tensor? grad_spikes, Tensor?[] grad_states, Tensor? grad_v_seq, Tensor current, "
      "Tensor temporal_weight, Tensor spatial_weight, Tensor?[] states, Tensor? spikes, "
      "Tensor? current_norm_weight, Tensor? current_norm_bias, Tensor? temporal_norm_weight, "
      "Tensor? temporal_norm_bias, Tensor? spatial_norm_weight, Tensor? spatial_norm_bias, Tensor? threshold, "
      "Tensor? coefficients, Tensor potentials, Tensor norm_stats, int groups, int norm_groups, float eps, "
      "float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, bool detach_reset, "
      "bool gradient_detach, bool learns_threshold, bool learns_coefficients) "
      "-> (Tensor grad_current, Tensor grad_temporal_weight, Tensor grad_spatial_weight, Tensor[] grad_states, "
      "Tensor grad_spikes, Tensor grad_current_norm_weight, Tensor grad_current_norm_bias, "
      "Tensor grad_temporal_norm_weight, Tensor grad_temporal_norm_bias, Tensor grad_spatial_norm_weight, "
      "Tensor grad_spatial_norm_bias, Tensor grad_threshold, Tensor grad_coefficients)");
}

template <class Runner>
void implement_operators(torch::Library& m) {
  m.impl("stc_forward", &Operators<Runner>::forward);
  m.impl("stc_backward", &Operators<Runner>::backward);
}

}  // namespace stc

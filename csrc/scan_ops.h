// The operators of the element-wise neurons, for every device: schemas, the checks that memory safety needs, and the
// parameter structs of the kernels made from tensors. User input is checked in Python.
#pragma once

#include <ATen/core/List.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cell_table.h"
#include "ops.h"

namespace stc {

using OptionalTensors = c10::List<std::optional<Tensor>>;

inline at::ScalarType state_type(at::ScalarType stored) { return is_short(stored) ? at::kFloat : stored; }

// What one step of a call's tensors looks like.
struct ScanLayout {
  int64_t steps;
  std::vector<int64_t> sizes, strides;  // of a step, [N, C, *] or [N]
  int64_t neurons = 1;

  // Takes the strides where they leave no gaps; contiguous ones otherwise.
  ScanLayout(int64_t steps, at::IntArrayRef sizes, at::IntArrayRef strides)
      : steps(steps), sizes(sizes.vec()), strides(strides.vec()) {
    std::vector<int64_t> order(sizes.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
    bool dense = true;
    for (const int64_t d : order) {
      dense &= sizes[d] == 1 || strides[d] == neurons;
      neurons *= sizes[d];
    }
    if (dense && neurons > 0) return;
    int64_t stride = 1;
    for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) this->strides[d] = stride;
  }

  int64_t channels() const { return sizes.size() > 1 ? sizes[1] : 1; }
  // With numbers for each channel, or with the same for all.
  ScanShape shape(int64_t channels) const {
    return {steps, neurons, channels, channels > 1 && neurons > 0 ? strides[1] : std::max<int64_t>(neurons, 1)};
  }

  // Of a tensor of all steps, and of the potentials.
  std::vector<int64_t> sequence_sizes() const { return joined({steps}, sizes); }
  std::vector<int64_t> sequence_strides() const { return joined({neurons}, strides); }
  std::vector<int64_t> potential_sizes(int64_t count) const { return joined({count, steps}, sizes); }
  std::vector<int64_t> potential_strides() const { return joined({steps * neurons, neurons}, strides); }

 private:
  static std::vector<int64_t> joined(std::vector<int64_t> first, const std::vector<int64_t>& rest) {
    first.insert(first.end(), rest.begin(), rest.end());
    return first;
  }
};

// x of this type and with these strides, the first `any` of them excepted: itself where it has them.
inline Tensor arranged(const Tensor& x, const std::vector<int64_t>& strides, at::ScalarType type, int64_t any = 0) {
  bool same = x.scalar_type() == type;
  for (int64_t d = any; d < x.dim(); ++d) same &= x.size(d) == 1 || x.stride(d) == strides[d];
  return same || x.numel() == 0 ? x.to(type) : at::empty_strided(x.sizes(), strides, x.options().dtype(type)).copy_(x);
}

// A sequence; where all steps are the same memory, as in the gradient of a sum or of a mean over the steps, only the
// first.
inline Tensor steps_of(const Tensor& x, const ScanLayout& layout, at::ScalarType type) {
  const bool repeats = layout.steps > 1 && x.stride(0) == 0;
  return arranged(repeats ? x.narrow(0, 0, 1) : x, layout.sequence_strides(), type);
}

inline int scan_neuron(std::string_view name) {
  const int neuron = find_cell(kScanTable, name);
  TORCH_CHECK_VALUE(neuron >= 0, "neuron: got '", std::string(name), "', expected an element-wise neuron");
  return neuron;
}

// `like` tells the device.
inline void require_scan(const OptionalTensor& x, const Tensor& like, at::ScalarType type, at::IntArrayRef sizes,
                         const char* name) {
  if (x) require(*x, like, type, false, sizes, name);
}

// The tensors of a call as the kernels take them; they must outlive the params that point into them.
struct ScanTensors {
  const CellInfo& info;
  const ScanLayout layout;
  int64_t channels = 1;  // that threshold and coefficients have numbers for; 1: the same for all
  Tensor current, threshold, coefficients;
  std::vector<Tensor> states;

  ScanTensors(int neuron, ScanLayout given, const OptionalTensor& x, at::ScalarType stored, at::ScalarType kernel_type,
              const OptionalTensors& states_before, const OptionalTensor& thresholds, const OptionalTensor& numbers,
              const Tensor& like)
      : info(kScanTable[neuron]), layout(std::move(given)), states(info.states) {
    const at::ScalarType state = state_type(stored);
    TORCH_CHECK_VALUE(layout.channels() > 0, "current: expected at least one channel");
    const bool one_threshold = !thresholds || thresholds->numel() == 1;
    const bool one_number = !numbers || (numbers->dim() == 2 && numbers->size(1) == 1);
    if (!one_threshold || !one_number) channels = layout.channels();
    require_scan(x, like, stored, layout.sequence_sizes(), "current");
    require_scan(thresholds, like, state, {channels}, "threshold");
    TORCH_CHECK_VALUE(numbers.has_value() == (info.coefficients > 0), "coefficients: expected ", info.coefficients,
                      " a channel of ", info.name);
    require_scan(numbers, like, state, {info.coefficients, channels}, "coefficients");
    if (x) current = arranged(*x, layout.sequence_strides(), kernel_type, 1);  // its steps may be any distance apart
    if (thresholds) threshold = thresholds->contiguous();
    if (numbers) coefficients = numbers->contiguous();
    in_layout(states_before, state, like, states, "states");
  }

  // States or their gradients.
  void in_layout(const OptionalTensors& given, at::ScalarType state, const Tensor& like, std::vector<Tensor>& to,
                 const char* name) const {
    TORCH_CHECK_VALUE(int64_t(given.size()) == info.states, name, ": got ", given.size(), ", expected ", info.states,
                      " of ", info.name);
    for (int i = 0; i < info.states; ++i) {
      const OptionalTensor x = given.get(i);
      require_scan(x, like, state, layout.sizes, name);
      if (x) to[i] = arranged(*x, layout.strides, state);
    }
  }
};

struct ScanOptions {
  double v_threshold;
  std::optional<double> v_reset;
  std::string_view surrogate;
  double alpha;
  bool spiking;
  bool detach_reset;
};

template <class T>
ScanInputs<T> scan_inputs(const ScanTensors& x, int neuron, at::ScalarType stored, const ScanOptions& o) {
  // Not data_ptr<T>(): `stored` tells what the pointers really lead to.
  const auto data = [](const Tensor& t) { return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr; };
  ScanInputs<T> in{};
  in.shape = x.layout.shape(x.channels);
  in.neuron = neuron;
  in.cell = {T(o.v_threshold),      T(o.v_reset.value_or(0)), T(o.alpha), parse_surrogate(o.surrogate),
             o.v_reset.has_value(), o.detach_reset,           o.spiking,  {}};
  in.cell.slope = surrogate_slope(in.cell.surrogate, in.cell.alpha);
  in.storage = stored == at::kHalf ? Storage::kHalf : stored == at::kBFloat16 ? Storage::kBfloat16 : Storage::kState;
  in.threshold = data(x.threshold);
  in.coefficients = data(x.coefficients);
  in.current = data(x.current);
  in.current_step = x.current.defined() ? x.current.stride(0) : 0;
  for (size_t i = 0; i < x.states.size(); ++i) in.states[i] = data(x.states[i]);
  return in;
}

// The operators of one device. Runner::run(params, like) does the work, with `like` telling device and options of the
// buffers that it needs, and Runner::empty makes the outputs. Runner::kTakesShort: its kernels take a current and
// spikes of 16-bit numbers; where they do not, the operators convert.
template <class Runner>
struct ScanOperators {
  static std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor> forward(
      std::string_view name, const Tensor& current, const OptionalTensors& states, const OptionalTensor& threshold,
      const OptionalTensor& coefficients, double v_threshold, std::optional<double> v_reset, std::string_view surrogate,
      double alpha, bool spiking, bool store_v_seq, bool save_for_backward) {
    const int neuron = scan_neuron(name);
    TORCH_CHECK_VALUE(current.layout() == at::kStrided && current.dim() >= 2,
                      "current: expected a dense tensor [T, N, *]");
    const at::ScalarType stored = current.scalar_type(), state = state_type(stored);
    require_stored_type(stored);
    const at::ScalarType kernel_type = Runner::kTakesShort ? stored : state;
    const ScanTensors x(neuron, ScanLayout(current.size(0), current.sizes().slice(1), current.strides().slice(1)),
                        current, stored, kernel_type, states, threshold, coefficients, current);
    const ScanOptions o{v_threshold, v_reset, surrogate, alpha, spiking, false};
    const ScanLayout& l = x.layout;
    const auto real = current.options().dtype(state);
    Tensor spikes = Runner::empty(l.sequence_sizes(), l.sequence_strides(), real.dtype(kernel_type));
    std::vector<Tensor> states_out;
    for (int i = 0; i < x.info.states; ++i) states_out.push_back(Runner::empty(l.sizes, l.strides, real));
    Tensor v_seq = store_v_seq ? Runner::empty(l.sequence_sizes(), l.sequence_strides(), real) : nothing(real);
    Tensor potentials = save_for_backward
                            ? Runner::empty(l.potential_sizes(x.info.potentials), l.potential_strides(), real)
                            : nothing(real);
    with_scalar(state, [&](auto zero) {
      using T = decltype(zero);
      ScanForward<T> params{};
      params.in = scan_inputs<T>(x, neuron, kernel_type, o);
      params.spikes = output<T>(spikes);
      for (int i = 0; i < x.info.states; ++i) params.states[i] = output<T>(states_out[i]);
      params.v_seq = output<T>(v_seq);
      params.potentials = output<T>(potentials);
      Runner::run(params, current);
    });
    return {spikes.to(stored), states_out, v_seq, potentials};
  }

  static std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor> backward(
      std::string_view name, const OptionalTensor& grad_spikes, const OptionalTensors& grad_states,
      const OptionalTensor& grad_v_seq, const OptionalTensor& current, const OptionalTensors& states,
      const OptionalTensor& threshold, const OptionalTensor& coefficients, const Tensor& potentials,
      at::ScalarType stored, double v_threshold, std::optional<double> v_reset, std::string_view surrogate,
      double alpha, bool spiking, bool detach_reset, bool learns_threshold, bool learns_coefficients) {
    const ScanOptions o{v_threshold, v_reset, surrogate, alpha, spiking, detach_reset};
    const Gradients grads =
        gradients(name, grad_spikes, grad_states, grad_v_seq, current, states, threshold, coefficients, potentials,
                  stored, o, learns_threshold, learns_coefficients, false);
    return {grads.current.to(stored), grads.states, grads.threshold, grads.coefficients};
  }

  // The gradient of the current takes the place of the potentials: nothing to allocate, and each line of memory that is
  // written has just been read.
  static std::tuple<std::vector<Tensor>, Tensor, Tensor> backward_in_place(
      std::string_view name, const OptionalTensor& grad_spikes, const OptionalTensors& grad_states,
      const OptionalTensor& grad_v_seq, const OptionalTensor& current, const OptionalTensors& states,
      const OptionalTensor& threshold, const OptionalTensor& coefficients, const Tensor& potentials, double v_threshold,
      std::optional<double> v_reset, std::string_view surrogate, double alpha, bool spiking, bool detach_reset,
      bool learns_threshold, bool learns_coefficients) {
    const ScanOptions o{v_threshold, v_reset, surrogate, alpha, spiking, detach_reset};
    const Gradients grads =
        gradients(name, grad_spikes, grad_states, grad_v_seq, current, states, threshold, coefficients, potentials,
                  potentials.scalar_type(), o, learns_threshold, learns_coefficients, true);
    return {grads.states, grads.threshold, grads.coefficients};
  }

 private:
  struct Gradients {
    Tensor current;
    std::vector<Tensor> states;
    Tensor threshold, coefficients;
  };

  static Gradients gradients(std::string_view name, const OptionalTensor& grad_spikes,
                             const OptionalTensors& grad_states, const OptionalTensor& grad_v_seq,
                             const OptionalTensor& current, const OptionalTensors& states,
                             const OptionalTensor& threshold, const OptionalTensor& coefficients,
                             const Tensor& potentials, at::ScalarType stored, const ScanOptions& o,
                             bool learns_threshold, bool learns_coefficients, bool in_place) {
    const int neuron = scan_neuron(name);
    const at::ScalarType state = state_type(stored);
    require_stored_type(stored);
    TORCH_CHECK_VALUE(potentials.layout() == at::kStrided && potentials.dim() >= 3 &&
                          potentials.scalar_type() == state && potentials.size(0) == kScanTable[neuron].potentials,
                      "potentials: expected the tensor saved by scan_forward");
    TORCH_CHECK_VALUE(!learns_threshold || threshold, "learns_threshold: expected a threshold");
    TORCH_CHECK_VALUE(!learns_coefficients || (current && coefficients),
                      "learns_coefficients: expected the current and coefficients");
    const at::ScalarType kernel_type = Runner::kTakesShort ? stored : state;
    const ScanTensors x(
        neuron, ScanLayout(potentials.size(1), potentials.sizes().slice(2), potentials.strides().slice(2)),
        learns_coefficients ? current : std::nullopt, stored, kernel_type, states, threshold, coefficients, potentials);
    const ScanLayout& l = x.layout;
    require_scan(grad_spikes, potentials, stored, l.sequence_sizes(), "grad_spikes");
    require_scan(grad_v_seq, potentials, state, l.sequence_sizes(), "grad_v_seq");
    const Tensor saved = arranged(potentials, l.potential_strides(), state);
    TORCH_CHECK_VALUE(!in_place || (x.info.potentials == 1 && saved.is_same(potentials)), "potentials: got ",
                      x.info.potentials, " of ", x.info.name,
                      ", expected a neuron with one, as scan_forward saved it, where the gradient takes its place");
    const Tensor from_spikes = grad_spikes ? steps_of(*grad_spikes, l, kernel_type) : Tensor();
    const Tensor from_v_seq = grad_v_seq ? arranged(*grad_v_seq, l.sequence_strides(), state) : Tensor();
    std::vector<Tensor> from_states(x.info.states);
    x.in_layout(grad_states, state, potentials, from_states, "grad_states");

    const auto real = potentials.options();
    const Tensor grad_current = in_place
                                    ? saved.select(0, 0)
                                    : Runner::empty(l.sequence_sizes(), l.sequence_strides(), real.dtype(kernel_type));
    std::vector<Tensor> states_out;
    for (int i = 0; i < x.info.states; ++i) states_out.push_back(Runner::empty(l.sizes, l.strides, real));
    const Tensor grad_threshold = at::empty({learns_threshold ? x.channels : 0}, real);
    const Tensor grad_coefficients =
        learns_coefficients ? at::empty({x.info.coefficients, x.channels}, real) : nothing(real);
    with_scalar(state, [&](auto zero) {
      using T = decltype(zero);
      const auto data = [](const Tensor& t) {
        return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
      };
      ScanBackward<T> params{};
      params.in = scan_inputs<T>(x, neuron, kernel_type, o);
      params.potentials = data(saved);
      params.grad_spikes_out = data(from_spikes);
      params.grad_spikes_repeats = from_spikes.defined() && from_spikes.size(0) != l.steps;
      params.grad_v_seq_out = data(from_v_seq);
      for (int i = 0; i < x.info.states; ++i) {
        params.grad_states_out[i] = data(from_states[i]);
        params.grad_states[i] = output<T>(states_out[i]);
      }
      params.grad_current = output<T>(grad_current);
      params.grad_threshold = output<T>(grad_threshold);
      params.grad_coefficients = output<T>(grad_coefficients);
      Runner::run(params, potentials);
    });
    return {grad_current, states_out, grad_threshold, grad_coefficients};
  }

  static void require_stored_type(at::ScalarType type) {
    TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || is_short(type), "current: got dtype ", type,
                     ", expected float32, float64, float16 or bfloat16");
  }
  static Tensor nothing(const at::TensorOptions& options) { return at::empty({0}, options); }
};

inline void define_scan_operators(torch::Library& m) {
  m.def(
      "scan_forward(str neuron, Tensor current, Tensor?[] states, Tensor? threshold, Tensor? coefficients, "
      "float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, bool store_v_seq, "
      "bool save_for_backward) -> (Tensor spikes, Tensor[] states, Tensor v_seq, Tensor potentials)");
  m.def(
      "scan_backward(str neuron, Tensor? grad_spikes, Tensor?[] grad_states, Tensor? grad_v_seq, Tensor? current, "
      "Tensor?[] states, Tensor? threshold, Tensor? coefficients, Tensor potentials, ScalarType dtype, "
      "float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, bool detach_reset, "
      "bool learns_threshold, bool learns_coefficients) "
      "-> (Tensor grad_current, Tensor[] grad_states, Tensor grad_threshold, Tensor grad_coefficients)");
  // For neurons with one potential, and currents of the state's dtype.
  m.def(
      "scan_backward_in_place(str neuron, Tensor? grad_spikes, Tensor?[] grad_states, Tensor? grad_v_seq, "
      "Tensor? current, Tensor?[] states, Tensor? threshold, Tensor? coefficients, Tensor(a!) potentials, "
      "float v_threshold, float? v_reset, str surrogate, float alpha, bool spiking, bool detach_reset, "
      "bool learns_threshold, bool learns_coefficients) "
      "-> (Tensor[] grad_states, Tensor grad_threshold, Tensor grad_coefficients)");
}

template <class Runner>
void implement_scan_operators(torch::Library& m) {
  m.impl("scan_forward", &ScanOperators<Runner>::forward);
  m.impl("scan_backward", &ScanOperators<Runner>::backward);
  m.impl("scan_backward_in_place", &ScanOperators<Runner>::backward_in_place);
}

}  // namespace stc

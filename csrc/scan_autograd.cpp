// The operator stc_cuda::scan: an element-wise neuron over a sequence with gradients, made of scan_forward and
// scan_backward. Between two layers of a network the interpreter's data have left the caches, and then a derivative
// written in Python costs more than the kernels of a small layer. For backends made of other functions than these
// operators ScanFunction in stc_cuda/_autograd.py does the same.
#include <ATen/SavedTensorHooks.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/library.h>

#include <mutex>
#include <optional>
#include <unordered_set>

#include "autograd_errors.h"
#include "scan_ops.h"

namespace stc {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Forward = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>(std::string_view, const Tensor&,
                                                                        const OptionalTensors&, const OptionalTensor&,
                                                                        const OptionalTensor&, double,
                                                                        std::optional<double>, std::string_view, double,
                                                                        bool, bool, bool);
using Backward = std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor>(
    std::string_view, const OptionalTensor&, const OptionalTensors&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensors&, const OptionalTensor&, const OptionalTensor&, const Tensor&, at::ScalarType, double,
    std::optional<double>, std::string_view, double, bool, bool, bool, bool);
using BackwardInPlace = std::tuple<std::vector<Tensor>, Tensor, Tensor>(
    std::string_view, const OptionalTensor&, const OptionalTensors&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensors&, const OptionalTensor&, const OptionalTensor&, const Tensor&, double, std::optional<double>,
    std::string_view, double, bool, bool, bool, bool);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// All of a call but its tensors.
struct Call {
  std::string neuron;
  double v_threshold;
  std::optional<double> v_reset;
  std::string surrogate;
  double alpha;
  bool spiking, detach_reset, store_v_seq;
  at::ScalarType dtype;
  bool owns_saved;  // nobody else gets hold of what is saved

  c10::IValue packed() const {
    c10::impl::GenericList list(c10::AnyType::get());
    for (const c10::IValue& x :
         {c10::IValue(neuron), c10::IValue(v_threshold), c10::IValue(v_reset), c10::IValue(surrogate),
          c10::IValue(alpha), c10::IValue(spiking), c10::IValue(detach_reset), c10::IValue(store_v_seq),
          c10::IValue(int64_t(dtype)), c10::IValue(owns_saved)})
      list.push_back(x);
    return list;
  }
  static Call unpacked(const c10::IValue& packed) {
    const c10::ArrayRef<c10::IValue> x = packed.toListRef();
    return {x[0].toStringRef(), x[1].toDouble(), x[2].toOptional<double>(),
            x[3].toStringRef(), x[4].toDouble(), x[5].toBool(),
            x[6].toBool(),      x[7].toBool(),   at::ScalarType(x[8].toInt()),
            x[9].toBool()};
  }
};

using States = std::array<OptionalTensor, kMaxStates>;

OptionalTensors in_list(const States& states, int64_t count) {
  OptionalTensors list;
  list.reserve(count);
  for (int64_t i = 0; i < count; ++i) list.push_back(states[i]);
  return list;
}

std::tuple<Tensor, std::vector<Tensor>, Tensor, Tensor> forward(const Call& c, const Tensor& current,
                                                                const OptionalTensors& states,
                                                                const OptionalTensor& threshold,
                                                                const OptionalTensor& coefficients, bool save) {
  static const auto op = find<Forward>("stc_cuda::scan_forward");
  return op.call(c.neuron, current, states, threshold, coefficients, c.v_threshold, c.v_reset, c.surrogate, c.alpha,
                 c.spiking, c.store_v_seq, save);
}

// Whether a compiler records what is done to x, or another dispatch key stands between it and its memory.
bool is_traced(const Tensor& x) {
  constexpr c10::DispatchKeySet kWrapped({c10::DispatchKey::Python, c10::DispatchKey::Functionalize,
                                          c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  return c10::impl::TorchDispatchModeTLS::any_modes_set() || x.key_set().has_any(kWrapped);
}

// One backward pass at a time for each node that frees what it uses: a second thread would read what the first has
// overwritten. After the first, the version of the potentials tells.
class OnlyOne {
 public:
  explicit OnlyOne(const void* node) : node_(node) {
    const std::lock_guard lock(mutex());
    TORCH_CHECK(running().insert(node).second, kGraphIsFreed);
  }
  ~OnlyOne() {
    const std::lock_guard lock(mutex());
    running().erase(node_);
  }
  OnlyOne(const OnlyOne&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static std::unordered_set<const void*>& running() {
    static auto* const nodes = new std::unordered_set<const void*>;
    return *nodes;
  }
  const void* node_;
};

// Saved for backward: the potentials of every step and, where coefficients learn, the current. A backward pass that
// leaves no graph behind puts the gradient of the current in the place of the potentials, so it allocates nothing.
class ScanFunction : public torch::autograd::Function<ScanFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Call& call, const Tensor& current,
                               const OptionalTensor& threshold, const OptionalTensor& coefficients,
                               const OptionalTensor& s0, const OptionalTensor& s1, const OptionalTensor& s2) {
    static_assert(kMaxStates == 3);
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const States states{s0, s1, s2};
    const int64_t count = kScanTable[scan_neuron(call.neuron)].states;
    auto [spikes, after, v_seq, potentials] =
        stc::forward(call, current, in_list(states, count), threshold, coefficients, true);
    const bool learns = coefficients && coefficients->requires_grad();
    ctx->save_for_backward({learns ? current : Tensor(), threshold.value_or(Tensor()), coefficients.value_or(Tensor()),
                            potentials, s0.value_or(Tensor()), s1.value_or(Tensor()), s2.value_or(Tensor())});
    ctx->saved_data["call"] = call.packed();
    ctx->set_materialize_grads(false);
    variable_list outputs{spikes, v_seq};
    outputs.insert(outputs.end(), after.begin(), after.end());
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    require_no_second_derivative();
    const bool is_last = !torch::autograd::get_current_graph_task_keep_graph();
    std::optional<OnlyOne> only_one;
    if (is_last) only_one.emplace(ctx);
    const variable_list saved = saved_variables(*ctx);
    const Call c = Call::unpacked(ctx->saved_data.at("call"));
    const auto given = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    const OptionalTensor current = given(saved[0]), threshold = given(saved[1]), coefficients = given(saved[2]);
    const Tensor& potentials = saved[3];
    const int64_t count = int64_t(grads.size()) - 2;
    OptionalTensors states, grad_states;
    for (int64_t i = 0; i < count; ++i) {
      states.push_back(given(saved[4 + i]));
      grad_states.push_back(given(grads[2 + i]));
    }
    const OptionalTensor grad_spikes = given(grads[0]);
    const OptionalTensor grad_v_seq = c.store_v_seq ? given(grads[1]) : std::nullopt;
    // Those of forward's tensors that were given have an edge, in their order.
    std::array<bool, 3 + kMaxStates> needed{};
    for (size_t i = 0, edge = 0; i < needed.size(); ++i)
      if (i == 0 || (i < 3 ? saved[i] : saved[i + 1]).defined()) needed[i] = ctx->needs_input_grad(edge++);
    const bool learns_threshold = needed[1], learns_coefficients = needed[2];

    Tensor grad_current, grad_threshold, grad_coefficients;
    std::vector<Tensor> grad_before;
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    // Not on a GPU: a captured backward pass may be replayed twice after one forward pass.
    if (c.owns_saved && is_last && potentials.is_cpu() && potentials.size(0) == 1 &&
        potentials.scalar_type() == c.dtype && !is_traced(potentials)) {
      potentials.unsafeGetTensorImpl()->bump_version();
      static const auto op = find<BackwardInPlace>("stc_cuda::scan_backward_in_place");
      std::tie(grad_before, grad_threshold, grad_coefficients) =
          op.call(c.neuron, grad_spikes, grad_states, grad_v_seq, current, states, threshold, coefficients, potentials,
                  c.v_threshold, c.v_reset, c.surrogate, c.alpha, c.spiking, c.detach_reset, learns_threshold,
                  learns_coefficients);
      grad_current = potentials.select(0, 0);
    } else {
      static const auto op = find<Backward>("stc_cuda::scan_backward");
      std::tie(grad_current, grad_before, grad_threshold, grad_coefficients) =
          op.call(c.neuron, grad_spikes, grad_states, grad_v_seq, current, states, threshold, coefficients, potentials,
                  c.dtype, c.v_threshold, c.v_reset, c.surrogate, c.alpha, c.spiking, c.detach_reset, learns_threshold,
                  learns_coefficients);
    }

    // In the order of forward's arguments; the first is no tensor.
    variable_list found{Tensor(), grad_current, grad_threshold, grad_coefficients};
    found.insert(found.end(), grad_before.begin(), grad_before.end());
    found.resize(1 + needed.size());
    for (size_t i = 0; i < needed.size(); ++i)
      if (!needed[i]) found[1 + i] = Tensor();
    return found;
  }
};

using Outputs = std::tuple<Tensor, std::vector<Tensor>, Tensor>;

Call make_call(std::string_view neuron, const Tensor& current, double v_threshold, std::optional<double> v_reset,
               std::string_view surrogate, double alpha, bool spiking, bool detach_reset, bool store_v_seq) {
  return {std::string(neuron), v_threshold,           v_reset, std::string(surrogate), alpha, spiking, detach_reset,
          store_v_seq,         current.scalar_type(), false};
}

Outputs scan(std::string_view neuron, const Tensor& current, const OptionalTensors& states,
             const OptionalTensor& threshold, const OptionalTensor& coefficients, double v_threshold,
             std::optional<double> v_reset, std::string_view surrogate, double alpha, bool spiking, bool detach_reset,
             bool store_v_seq) {
  const Call call =
      make_call(neuron, current, v_threshold, v_reset, surrogate, alpha, spiking, detach_reset, store_v_seq);
  auto [spikes, after, v_seq, potentials] = forward(call, current, states, threshold, coefficients, false);
  return {spikes, after, v_seq};
}

Outputs scan_autograd(std::string_view neuron, const Tensor& current, const OptionalTensors& states,
                      const OptionalTensor& threshold, const OptionalTensor& coefficients, double v_threshold,
                      std::optional<double> v_reset, std::string_view surrogate, double alpha, bool spiking,
                      bool detach_reset, bool store_v_seq) {
  const auto learns = [](const OptionalTensor& x) { return x && x->requires_grad(); };
  bool any = current.requires_grad() || learns(threshold) || learns(coefficients);
  States before;
  TORCH_CHECK_VALUE(states.size() <= kMaxStates, "states: got ", states.size(), ", expected ", kMaxStates, " at most");
  for (size_t i = 0; i < states.size(); ++i) {
    before[i] = states.get(i);
    any |= learns(before[i]);
  }
  const auto has_tangent = [](const OptionalTensor& x) { return x && x->_fw_grad(0).defined(); };
  bool forward_mode = has_tangent(current) || has_tangent(threshold) || has_tangent(coefficients);
  for (const OptionalTensor& state : before) forward_mode |= has_tangent(state);
  TORCH_CHECK_NOT_IMPLEMENTED(!forward_mode, kNoForwardMode);
  if (!any || !at::GradMode::is_enabled()) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return scan(neuron, current, states, threshold, coefficients, v_threshold, v_reset, surrogate, alpha, spiking,
                detach_reset, store_v_seq);
  }
  Call call = make_call(neuron, current, v_threshold, v_reset, surrogate, alpha, spiking, detach_reset, store_v_seq);
  call.owns_saved = !at::SavedTensorDefaultHooks::get_hooks(true) && !c10::impl::TorchDispatchModeTLS::any_modes_set();
  const variable_list outputs =
      ScanFunction::apply(call, current, threshold, coefficients, before[0], before[1], before[2]);
  return {outputs[0], {outputs.begin() + 2, outputs.end()}, outputs[1]};
}

}  // namespace
}  // namespace stc

TORCH_LIBRARY_FRAGMENT(stc_cuda, m) {
  m.def(
      "scan(str neuron, Tensor current, Tensor?[] states, Tensor? threshold, Tensor? coefficients, float v_threshold, "
      "float? v_reset, str surrogate, float alpha, bool spiking, bool detach_reset, bool store_v_seq) "
      "-> (Tensor spikes, Tensor[] states, Tensor v_seq)");
}

TORCH_LIBRARY_IMPL(stc_cuda, CompositeExplicitAutograd, m) { m.impl("scan", &stc::scan); }

TORCH_LIBRARY_IMPL(stc_cuda, Autograd, m) { m.impl("scan", &stc::scan_autograd); }

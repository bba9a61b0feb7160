// The operators stc_cuda_emulated_kernels::*, with the schemas of stc_cuda::*: the CUDA kernels on CPU tensors.
// Every array that a kernel may touch is registered with the checker for the time of the call.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include <vector>

#include "cuda_runner.h"
#include "cuda_scan_runner.h"
#include "emu_control.h"

namespace stc {
namespace {

// The names of the states, by which reports and audits know them; the first is the membrane potential.
constexpr const char *kStates[] = {"v", "second"}, *kStatesOut[] = {"v_out", "second_out"},
                     *kGradStatesOut[] = {"grad_v_out", "grad_second_out"}, *kGradStates[] = {"grad_v", "grad_second"};

class EmulatedContext {
 public:
  template <class T>
  EmulatedContext(const StcForward<T>& p, const Tensor&) {
    const Shape& s = p.in.shape;
    inputs(p.in);
    const int64_t words = s.steps * s.samples * s.groups * s.height * s.width * ((s.channels / s.groups + 7) / 8);
    stored(p.spikes, s.steps * state(s), p.in.storage, "spikes");
    add(p.packed_spikes, words, "packed_spikes", EMU_OUTPUT);
    const CellTraits cell = CircuitCells::traits(p.in.neuron);
    for (int k = 0; k < cell.states; ++k) add(p.states[k], state(s), kStatesOut[k], EMU_OUTPUT);
    add(p.v_seq, s.steps * state(s), "v_seq", EMU_OUTPUT);
    add(p.potentials, cell.potentials * s.steps * state(s), "potentials", EMU_OUTPUT);
    add(p.norm_stats, s.steps * s.samples * s.norm_groups * kNorms * 2, "norm_stats", EMU_OUTPUT);
  }

  template <class T>
  EmulatedContext(const StcBackward<T>& p, const Tensor&) {
    const Shape& s = p.in.shape;
    inputs(p.in);
    const CellTraits cell = CircuitCells::traits(p.in.neuron);
    add(p.potentials, cell.potentials * s.steps * state(s), "potentials", EMU_INPUT);
    add(p.norm_stats, s.steps * s.samples * s.norm_groups * kNorms * 2, "norm_stats", EMU_INPUT);
    strided(p.grad_spikes_out, s, s.steps, p.in.storage, "grad_spikes_out");
    for (int k = 0; k < cell.states; ++k) {
      strided(p.grad_states_out[k], s, 1, Storage::kState, kGradStatesOut[k]);
      add(p.grad_states[k], state(s), kGradStates[k], EMU_OUTPUT);
    }
    add(p.grad_threshold, s.channels, "grad_threshold", EMU_OUTPUT);
    add(p.grad_coefficients, cell.coefficients * s.channels, "grad_coefficients", EMU_OUTPUT);
    strided(p.grad_v_seq_out, s, s.steps, Storage::kState, "grad_v_seq_out");
    stored(p.grad_current, s.steps * state(s), p.in.storage, "grad_current");
    stored(p.grad_spikes, state(s), p.in.storage, "grad_spikes");
    add(p.grad_temporal_weight, weights(s), "grad_temporal_weight", EMU_OUTPUT);
    add(p.grad_spatial_weight, weights(s), "grad_spatial_weight", EMU_OUTPUT);
    for (int norm = 0; norm < kNorms; ++norm) {
      add(p.grad_norm_weight[norm], s.channels, "grad_norm_weight", EMU_OUTPUT);
      add(p.grad_norm_bias[norm], s.channels, "grad_norm_bias", EMU_OUTPUT);
    }
  }

  template <class T>
  EmulatedContext(const ScanForward<T>& p, const Tensor&) {
    const ScanShape& s = p.in.shape;
    const int64_t sequence = s.steps * s.neurons;
    inputs(p.in);
    stored(p.spikes, sequence, p.in.storage, "spikes");
    for (T* state : p.states) add(state, s.neurons, "states_out", EMU_OUTPUT);
    add(p.v_seq, sequence, "v_seq", EMU_OUTPUT);
    add(p.potentials, kScanTable[p.in.neuron].potentials * sequence, "potentials", EMU_OUTPUT);
  }

  template <class T>
  EmulatedContext(const ScanBackward<T>& p, const Tensor&) {
    const ScanShape& s = p.in.shape;
    const CellInfo& cell = kScanTable[p.in.neuron];
    const int64_t sequence = s.steps * s.neurons;
    inputs(p.in);
    add(p.potentials, cell.potentials * sequence, "potentials", EMU_INPUT);
    stored(p.grad_spikes_out, p.grad_spikes_repeats ? s.neurons : sequence, p.in.storage, "grad_spikes_out", EMU_INPUT);
    for (const T* grad : p.grad_states_out) add(grad, s.neurons, "grad_states_out", EMU_INPUT);
    add(p.grad_v_seq_out, sequence, "grad_v_seq_out", EMU_INPUT);
    stored(p.grad_current, sequence, p.in.storage, "grad_current");
    for (T* grad : p.grad_states) add(grad, s.neurons, "grad_states", EMU_OUTPUT);
    add(p.grad_threshold, s.channels, "grad_threshold", EMU_OUTPUT);
    add(p.grad_coefficients, cell.coefficients * s.channels, "grad_coefficients", EMU_OUTPUT);
  }

  EmulatedContext(const EmulatedContext&) = delete;
  EmulatedContext& operator=(const EmulatedContext&) = delete;
  ~EmulatedContext() {
    for (void* start : registered_) emu_unregister(start);
  }

  void workspace(const Tensor& buffer) const {
    add(static_cast<uint8_t*>(buffer.mutable_data_ptr()), buffer.numel(), "workspace", EMU_OUTPUT);
  }
  static int code_capability(int capability) { return capability; }
  cuda::Stream stream() const { return nullptr; }
  static const char* advice(int) { return ""; }

 private:
  static int64_t state(const Shape& s) { return s.samples * s.channels * s.height * s.width; }
  static int64_t weights(const Shape& s) { return s.channels * (s.channels / s.groups) * s.kernel * s.kernel; }

  template <class T>
  void add(const T* start, int64_t count, const char* name, EmuRegionKind kind) const {
    if (!start || count == 0) return;
    registered_.push_back(const_cast<T*>(start));
    emu_register(registered_.back(), count * sizeof(T), name, kind);
  }

  // Of the current's type.
  template <class T>
  void stored(const T* start, int64_t count, Storage storage, const char* name, EmuRegionKind kind = EMU_OUTPUT) const {
    if (storage == Storage::kState) return add(start, count, name, kind);
    add(reinterpret_cast<const uint16_t*>(start), count, name, kind);
  }

  // From the first element to the last.
  template <class T>
  void strided(const Strided<const T>& x, const Shape& s, int64_t steps, Storage storage, const char* name) const {
    if (!x.data || steps == 0 || s.samples == 0) return;
    const int64_t last = (steps - 1) * x.step + (s.samples - 1) * x.sample + (s.channels - 1) * x.channel +
                         (s.height - 1) * x.row + (s.width - 1) * x.column;
    if (storage == Storage::kState)
      add(x.data, last + 1, name, EMU_INPUT);
    else
      add(reinterpret_cast<const uint16_t*>(x.data), last + 1, name, EMU_INPUT);
  }

  template <class T>
  void inputs(const StcInputs<T>& in) {
    const Shape& s = in.shape;
    strided(in.current, s, s.steps, in.storage, "current");
    const CellTraits cell = CircuitCells::traits(in.neuron);
    for (int k = 0; k < cell.states; ++k) strided(in.states[k], s, 1, Storage::kState, kStates[k]);
    add(in.threshold, s.channels, "threshold", EMU_INPUT);
    add(in.coefficients, cell.coefficients * s.channels, "coefficients", EMU_INPUT);
    strided(in.spikes, s, 1, in.storage, "spikes_before");
    add(in.temporal_weight, weights(s), "temporal_weight", EMU_INPUT);
    add(in.spatial_weight, weights(s), "spatial_weight", EMU_INPUT);
    for (int norm = 0; norm < kNorms; ++norm) {
      add(in.norm_weight[norm], s.channels, "norm_weight", EMU_INPUT);
      add(in.norm_bias[norm], s.channels, "norm_bias", EMU_INPUT);
    }
  }

  template <class T>
  void inputs(const ScanInputs<T>& in) {
    const ScanShape& s = in.shape;
    if (s.steps && s.neurons)
      stored(in.current, (s.steps - 1) * in.current_step + s.neurons, in.storage, "current", EMU_INPUT);
    for (const T* state : in.states) add(state, s.neurons, "states", EMU_INPUT);
    add(in.threshold, s.channels, "threshold", EMU_INPUT);
    add(in.coefficients, kScanTable[in.neuron].coefficients * s.channels, "coefficients", EMU_INPUT);
  }

  mutable std::vector<void*> registered_;
};

}  // namespace
}  // namespace stc

TORCH_LIBRARY(stc_cuda_emulated_kernels, m) {
  stc::define_operators(m);
  stc::define_scan_operators(m);
}

TORCH_LIBRARY_IMPL(stc_cuda_emulated_kernels, CPU, m) {
  stc::implement_operators<stc::CudaRunner<stc::EmulatedContext>>(m);
  stc::implement_scan_operators<stc::CudaScanRunner<stc::EmulatedContext>>(m);
}

// As in csrc/ops.cpp.
TORCH_LIBRARY_IMPL(stc_cuda_emulated, Autograd, m) {
  m.impl("stc_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("stc_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_backward_in_place", torch::autograd::autogradNotImplementedFallback());
}

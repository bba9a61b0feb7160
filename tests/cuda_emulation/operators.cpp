// The operators stc_cuda_emulated_kernels::*, with the schemas of stc_cuda::*: the CUDA kernels on CPU tensors.
// Every array that a kernel may touch is registered with the checker for the time of the call.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include <vector>

#include "cuda_runner.h"
#include "emu_control.h"

namespace stc {
namespace {

class EmulatedContext {
 public:
  template <class T>
  EmulatedContext(const StcForward<T>& p, const Tensor&) {
    const Shape& s = p.in.shape;
    inputs(p.in);
    const int64_t words = s.steps * s.samples * s.groups * s.height * s.width * ((s.channels / s.groups + 7) / 8);
    stored(p.spikes, s.steps * state(s), p.in.storage, "spikes");
    add(p.packed_spikes, words, "packed_spikes", EMU_OUTPUT);
    add(p.v, state(s), "v_out", EMU_OUTPUT);
    add(p.v_seq, s.steps * state(s), "v_seq", EMU_OUTPUT);
    add(p.u, s.steps * state(s), "u", EMU_OUTPUT);
    add(p.norm_stats, s.steps * s.samples * s.norm_groups * kNorms * 2, "norm_stats", EMU_OUTPUT);
  }

  template <class T>
  EmulatedContext(const StcBackward<T>& p, const Tensor&) {
    const Shape& s = p.in.shape;
    inputs(p.in);
    add(p.u, s.steps * state(s), "u", EMU_INPUT);
    add(p.norm_stats, s.steps * s.samples * s.norm_groups * kNorms * 2, "norm_stats", EMU_INPUT);
    strided(p.grad_spikes_out, s, s.steps, p.in.storage, "grad_spikes_out");
    strided(p.grad_v_out, s, 1, Storage::kState, "grad_v_out");
    strided(p.grad_v_seq_out, s, s.steps, Storage::kState, "grad_v_seq_out");
    stored(p.grad_current, s.steps * state(s), p.in.storage, "grad_current");
    add(p.grad_v, state(s), "grad_v", EMU_OUTPUT);
    stored(p.grad_spikes, state(s), p.in.storage, "grad_spikes");
    add(p.grad_temporal_weight, weights(s), "grad_temporal_weight", EMU_OUTPUT);
    add(p.grad_spatial_weight, weights(s), "grad_spatial_weight", EMU_OUTPUT);
    for (int norm = 0; norm < kNorms; ++norm) {
      add(p.grad_norm_weight[norm], s.channels, "grad_norm_weight", EMU_OUTPUT);
      add(p.grad_norm_bias[norm], s.channels, "grad_norm_bias", EMU_OUTPUT);
    }
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

  // An output of the current's type.
  template <class T>
  void stored(T* start, int64_t count, Storage storage, const char* name) const {
    if (storage == Storage::kState) return add(start, count, name, EMU_OUTPUT);
    add(reinterpret_cast<const uint16_t*>(start), count, name, EMU_OUTPUT);
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
    strided(in.v, s, 1, Storage::kState, "v");
    strided(in.spikes, s, 1, in.storage, "spikes_before");
    add(in.temporal_weight, weights(s), "temporal_weight", EMU_INPUT);
    add(in.spatial_weight, weights(s), "spatial_weight", EMU_INPUT);
    for (int norm = 0; norm < kNorms; ++norm) {
      add(in.norm_weight[norm], s.channels, "norm_weight", EMU_INPUT);
      add(in.norm_bias[norm], s.channels, "norm_bias", EMU_INPUT);
    }
  }

  mutable std::vector<void*> registered_;
};

}  // namespace
}  // namespace stc

TORCH_LIBRARY(stc_cuda_emulated_kernels, m) { stc::define_operators(m); }

TORCH_LIBRARY_IMPL(stc_cuda_emulated_kernels, CPU, m) {
  stc::implement_operators<stc::CudaRunner<stc::EmulatedContext>>(m);
}

// As in csrc/ops.cpp.
TORCH_LIBRARY_IMPL(stc_cuda_emulated, Autograd, m) {
  m.impl("stc_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("stc_backward", torch::autograd::autogradNotImplementedFallback());
}

#include "general.cuh"
#include "launch.h"
#include "launcher.h"
#include "workspace.h"

namespace stc::cuda {
namespace {

template <class T>
Workspace<T> carve_forward(WorkspaceCarver& carver, const Shape& s) {
  const Geometry geo(s);
  Workspace<T> w{};
  w.spikes = carver.take<T>(geo.state);
  w.z = carver.take<T>(2 * geo.state);
  return w;
}

template <class T>
Workspace<T> carve_backward(WorkspaceCarver& carver, const Shape& s, int states) {
  const Geometry geo(s);
  Workspace<T> w = carve_forward<T>(carver, s);
  for (int k = 0; k < states; ++k) w.states[k] = carver.take<T>(geo.state);
  w.grad = carver.take<T>(kNorms * geo.state);
  w.grad_spikes = carver.take<T>(geo.state);
  w.partial_sums = carver.take<double>(s.samples * s.channels * kChannelSums);
  return w;
}

// Calls f with an object of the call's cell.
template <class T, class F>
void with_cell(const StcInputs<T>& in, F f) {
  CircuitCells::visit(in.neuron, [&](auto tag) { f(typename decltype(tag)::template With<DeviceMath<T>>()); });
}

}  // namespace

template <class T>
int64_t general_forward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_forward<T>(carver, shape);
  return carver.used();
}

template <class T>
int64_t general_backward_workspace(const Shape& shape, int neuron) {
  WorkspaceCarver carver(nullptr);
  carve_backward<T>(carver, shape, CircuitCells::traits(neuron).states);
  return carver.used();
}

template <class T>
int general_forward(const StcForward<T>& p, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  WorkspaceCarver carver(workspace);
  Workspace<T> w = carve_forward<T>(carver, s);
  const int states = CircuitCells::traits(p.in.neuron).states;
  for (int k = 0; k < states; ++k) w.states[k] = p.states[k];
  Launcher launch(stream);
  launch.flat(load_state<T>, geo.state, p.in, w, states);
  const int64_t packed_step = s.samples * s.groups * geo.pixels * ((geo.in_group + 7) / 8);
  for (int64_t t = 0; t < s.steps; ++t) {
    launch.flat(gate_convolutions<T>, geo.state, p.in, w.spikes, w.z);
    with_cell<T>(p.in, [&](auto cell) {
      launch.blocks(update<decltype(cell), T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), p, w, t);
    });
    if (p.packed_spikes) launch.flat(pack_spikes<T>, packed_step, s, w.spikes, p.packed_spikes + t * packed_step);
  }
  return launch.error();
}

template <class T>
int general_backward(const StcBackward<T>& p, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  WorkspaceCarver carver(workspace);
  const CellTraits traits = CircuitCells::traits(p.in.neuron);
  const Workspace<T> w = carve_backward<T>(carver, s, traits.states);
  const int64_t weights = s.channels * geo.in_group * s.kernel * s.kernel;
  Launcher launch(stream);
  launch.flat(begin_backward<T>, geo.state, p, w, traits.states);
  if (s.steps == 0 || s.samples == 0) {
    launch.flat(zero<T>, weights, p.grad_temporal_weight, weights);
    launch.flat(zero<T>, weights, p.grad_spatial_weight, weights);
  }
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    with_cell<T>(p.in, [&](auto cell) {
      if (t > 0)
        launch.flat(restore_state<decltype(cell), T>, geo.state, p, w, t - 1);
      else
        launch.flat(load_state<T>, geo.state, p.in, w, traits.states);
      launch.flat(gate_convolutions<T>, geo.state, p.in, w.spikes, w.z);
      launch.blocks(differentiate<decltype(cell), T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), p, w, t);
    });
    launch.flat(weight_gradient<T>, s.samples ? weights : 0, p, w, t == s.steps - 1);
    if (!p.gradient_detach && (t > 0 || p.grad_spikes)) launch.flat(spike_gradient<T>, geo.state, p, w);
  }
  launch.flat(channel_gradients<T>, s.channels * kChannelSums, p, traits.coefficients, w.partial_sums);
  if (p.grad_spikes) launch.flat(copy_state<T>, geo.state, w.grad_spikes, p.grad_spikes, geo.state);
  return launch.error();
}

int device_limits(int* capability, int64_t* shared_bytes) {
  int bytes = 0;
  cudaError_t error = gpu::shared_memory_per_block(&bytes);
#if defined(__CUDACC__)
  int device = 0, major = 0, minor = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  *capability = 10 * major + minor;
#else
  *capability = 90;  // the emulation has the instructions of every card
#endif
  *shared_bytes = bytes;
  return int(error);
}

const char* error_string(int error) { return gpu::error_text(cudaError_t(error)); }

template int64_t general_forward_workspace<float>(const Shape&);
template int64_t general_forward_workspace<double>(const Shape&);
template int64_t general_backward_workspace<float>(const Shape&, int);
template int64_t general_backward_workspace<double>(const Shape&, int);
template int general_forward<float>(const StcForward<float>&, void*, Stream);
template int general_forward<double>(const StcForward<double>&, void*, Stream);
template int general_backward<float>(const StcBackward<float>&, void*, Stream);
template int general_backward<double>(const StcBackward<double>&, void*, Stream);

}  // namespace stc::cuda

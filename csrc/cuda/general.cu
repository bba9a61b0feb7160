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
Workspace<T> carve_backward(WorkspaceCarver& carver, const Shape& s) {
  const Geometry geo(s);
  Workspace<T> w = carve_forward<T>(carver, s);
  w.v = carver.take<T>(geo.state);
  w.grad = carver.take<T>(kNorms * geo.state);
  w.grad_spikes = carver.take<T>(geo.state);
  w.partial_norms = carver.take<double>(s.samples * s.channels * kNorms * 2);
  return w;
}

}  // namespace

template <class T>
int64_t general_forward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_forward<T>(carver, shape);
  return carver.used();
}

template <class T>
int64_t general_backward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_backward<T>(carver, shape);
  return carver.used();
}

template <class T>
int general_forward(const StcForward<T>& p, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  WorkspaceCarver carver(workspace);
  const Workspace<T> w = carve_forward<T>(carver, s);
  Launcher launch(stream);
  launch.flat(load_state<T>, geo.state, p.in, p.v, w.spikes);
  const int64_t packed_step = s.samples * s.groups * geo.pixels * ((geo.in_group + 7) / 8);
  for (int64_t t = 0; t < s.steps; ++t) {
    launch.flat(gate_convolutions<T>, geo.state, p.in, w.spikes, w.z);
    launch.blocks(update<T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), p, w.z, w.spikes, t);
    if (p.packed_spikes) launch.flat(pack_spikes<T>, packed_step, s, w.spikes, p.packed_spikes + t * packed_step);
  }
  return launch.error();
}

template <class T>
int general_backward(const StcBackward<T>& p, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  WorkspaceCarver carver(workspace);
  const Workspace<T> w = carve_backward<T>(carver, s);
  const int64_t weights = s.channels * geo.in_group * s.kernel * s.kernel;
  Launcher launch(stream);
  launch.flat(begin_backward<T>, geo.state, p, w);
  if (s.steps == 0 || s.samples == 0) {
    launch.flat(zero<T>, weights, p.grad_temporal_weight, weights);
    launch.flat(zero<T>, weights, p.grad_spatial_weight, weights);
  }
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    if (t > 0)
      launch.flat(restore_state<T>, geo.state, p.in, p.u + (t - 1) * geo.state, w.v, w.spikes);
    else
      launch.flat(load_state<T>, geo.state, p.in, w.v, w.spikes);
    launch.flat(gate_convolutions<T>, geo.state, p.in, w.spikes, w.z);
    launch.blocks(differentiate<T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), p, w, t);
    launch.flat(weight_gradient<T>, s.samples ? weights : 0, p, w, t == s.steps - 1);
    if (!p.gradient_detach && (t > 0 || p.grad_spikes)) launch.flat(spike_gradient<T>, geo.state, p, w);
  }
  launch.flat(norm_gradients<T>, s.channels, p, w.partial_norms);
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
template int64_t general_backward_workspace<float>(const Shape&);
template int64_t general_backward_workspace<double>(const Shape&);
template int general_forward<float>(const StcForward<float>&, void*, Stream);
template int general_forward<double>(const StcForward<double>&, void*, Stream);
template int general_backward<float>(const StcBackward<float>&, void*, Stream);
template int general_backward<double>(const StcBackward<double>&, void*, Stream);

}  // namespace stc::cuda

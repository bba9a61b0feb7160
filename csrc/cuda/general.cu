#include "general.cuh"
#include "launch.h"
#include "launcher.h"
#include "workspace.h"

namespace stc::cuda {
namespace {

template <class T>
int chunk_of(const Shape& s) {
  return conv_chunk<T>(s.channels / s.groups);
}

template <class T>
Workspace<T> carve_forward(WorkspaceCarver& carver, const Shape& s) {
  const Geometry geo(s);
  Workspace<T> w{};
  w.spikes = carver.take<T>(padded_elements(s));
  w.z = carver.take<T>(2 * geo.state);
  w.packed = carver.take<T>(packed_weights(s, chunk_of<T>(s)));
  return w;
}

template <class T>
Workspace<T> carve_backward(WorkspaceCarver& carver, const Shape& s, int states) {
  const Geometry geo(s);
  Workspace<T> w = carve_forward<T>(carver, s);
  for (int k = 0; k < states; ++k) w.states[k] = carver.take<T>(geo.state);
  w.grad = carver.take<T>(2 * padded_elements(s));
  w.grad_spikes = carver.take<T>(geo.state);
  w.partial_sums = carver.take<double>(s.samples * s.channels * kChannelSums);
  w.weight_sums = carver.take<T>(WeightTiles(s).sums(s));
  w.transposed = carver.take<T>(packed_weights(s, chunk_of<T>(s)));
  return w;
}

// Calls f(channels that a thread of the convolutions takes).
template <class T, class F>
void with_chunk(const Shape& s, F f) {
  if constexpr (sizeof(T) == 4)
    if (chunk_of<T>(s) == 8) return f(std::integral_constant<int, 8>());
  f(std::integral_constant<int, 4>());
}

template <class T, bool Transposed>
void pack(Launcher& launch, const StcInputs<T>& in, T* packed) {
  with_chunk<T>(in.shape, [&](auto chunk) {
    launch.flat(pack_gates<T, chunk(), Transposed>, packed_weights(in.shape, chunk()), in.shape, in.temporal_weight,
                in.spatial_weight, packed);
  });
}

// Calls f(kernel size), 0 where no kernel is made for it.
template <class F>
void with_kernel(const Shape& s, F f) {
  switch (s.kernel) {
    case 3:
      return f(std::integral_constant<int, 3>());
    case 5:
      return f(std::integral_constant<int, 5>());
    case 7:
      return f(std::integral_constant<int, 7>());
    default:
      return f(std::integral_constant<int, 0>());
  }
}

template <class T, bool Transposed>
void convolve(Launcher& launch, const Shape& s, const T* packed, const T* from, T* to) {
  with_chunk<T>(s, [&](auto chunk) {
    with_kernel(s, [&](auto kernel) {
      const int64_t blocks = conv_pixel_blocks<T>(s) * s.groups * conv_chunks(s.channels / s.groups, chunk());
      launch.start(gate_convolutions<T, chunk(), kernel(), Transposed>, dim3(unsigned(blocks)), kConvThreads, 0, s,
                   packed, from, to);
    });
  });
}

template <class T>
void sum_weights(Launcher& launch, const Shape& s, const Workspace<T>& w, bool first_step) {
  const WeightTiles cut(s);
  const bool five = WeightTiles::taps(s) == 5;
  const auto kernel = cut.maps ? (five ? weight_sums<T, 5, true> : weight_sums<T, 3, true>)
                               : (five ? weight_sums<T, 5, false> : weight_sums<T, 3, false>);
  launch.start(kernel, dim3(unsigned(cut.blocks())), kConvThreads, 0, s, cut, w.grad, w.spikes, w.weight_sums,
               first_step);
}

// Zeros around the maps, which no step writes.
template <class T>
void clear(Launcher& launch, T* padded, int64_t count) {
  launch.flat(zero<T>, count, padded, count);
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
  clear(launch, w.spikes, padded_elements(s));
  launch.flat(load_state<T>, geo.state, p.in, w, states);
  pack<T, false>(launch, p.in, w.packed);
  const int64_t packed_step = s.samples * s.groups * geo.pixels * ((geo.in_group + 7) / 8);
  for (int64_t t = 0; t < s.steps; ++t) {
    convolve<T, false>(launch, s, w.packed, w.spikes, w.z);
    with_cell<T>(p.in, [&](auto cell) {
      launch.start(update<decltype(cell), T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), kGroupThreads, 0, p,
                   w, t);
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
  clear(launch, w.spikes, padded_elements(s));
  clear(launch, w.grad, 2 * padded_elements(s));
  pack<T, false>(launch, p.in, w.packed);
  if (!p.gradient_detach) pack<T, true>(launch, p.in, w.transposed);
  for (int64_t t = s.steps - 1; t >= 0; --t) {
    with_cell<T>(p.in, [&](auto cell) {
      if (t > 0)
        launch.flat(restore_state<decltype(cell), T>, geo.state, p, w, t - 1);
      else
        launch.flat(load_state<T>, geo.state, p.in, w, traits.states);
      convolve<T, false>(launch, s, w.packed, w.spikes, w.z);
      launch.start(differentiate<decltype(cell), T>, dim3(unsigned(s.samples), unsigned(s.norm_groups)), kGroupThreads,
                   0, p, w, t);
    });
    if (s.samples) sum_weights(launch, s, w, t == s.steps - 1);
    if (!p.gradient_detach && (t > 0 || p.grad_spikes))
      convolve<T, true>(launch, s, w.transposed, w.grad, w.grad_spikes);
  }
  if (s.steps == 0 || s.samples == 0) {
    launch.flat(zero<T>, weights, p.grad_temporal_weight, weights);
    launch.flat(zero<T>, weights, p.grad_spatial_weight, weights);
  } else {
    launch.flat(weight_gradients<T>, weights, s, WeightTiles(s), w.weight_sums, p.grad_temporal_weight,
                p.grad_spatial_weight);
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

// What one compiled instruction set offers, as a table of functions, and the choice among them.
//
// Work is cut into tasks that any thread may run; each writes only its own outputs and sums in a fixed order, so the
// result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../params.h"
#include "scan_tasks.h"

namespace stc {

// Buffers that the caller provides, in elements. Packed weights are made by `pack` before `forward` or `backward`;
// partial sums are written by `backward` and added up by `reduce`.
struct CpuBufferSizes {
  int64_t gate_weights;        // T
  int64_t transposed_weights;  // T; only backward without gradient_detach reads them
  int64_t partial_weights;     // T, per sample; as large as gate_weights
  int64_t partial_sums;        // double, per sample: kChannelSums a channel
};

template <class T>
struct CpuBuffers {
  T* gate_weights;
  T* transposed_weights;  // null when not needed
  T* partial_weights;
  double* partial_sums;
};

// Pixels of a sample are packed and unpacked in tiles of this many.
constexpr int64_t kSpikeTile = 256;

// How one convolution of spikes is cut, and the buffer that the caller provides.
struct SpikeConvTasks {
  int64_t forward;         // tasks of spike_conv_forward
  int64_t maps, gradient;  // of spike_conv_maps and spike_conv_gradient
  int64_t maps_size;       // elements of SpikeConvGradient::maps
};

template <class T>
struct CpuKernels {
  CpuBufferSizes (*buffer_sizes)(const Shape&);
  // Tasks: convolution groups.
  void (*pack)(const StcInputs<T>&, const CpuBuffers<T>&, int64_t begin, int64_t end);
  // Tasks: samples x units (see ../plan.h). False when an initial spike of a task was neither 0 nor 1 in spiking mode;
  // the outputs are then meaningless.
  bool (*forward)(const StcForward<T>&, const CpuBuffers<T>&, int64_t begin, int64_t end);
  void (*backward)(const StcBackward<T>&, const CpuBuffers<T>&, int64_t begin, int64_t end);
  // Tasks: convolution groups.
  void (*reduce)(const StcBackward<T>&, const CpuBuffers<T>&, int64_t begin, int64_t end);

  // Element-wise neurons. Tasks: those of ScanTasks, each with its sums, [rows][width], in `partials`; rows = the
  // threshold and the coefficients. The partials may be null where neither is learnt.
  void (*scan_forward)(const ScanForward<T>&, int64_t begin, int64_t end);
  void (*scan_backward)(const ScanBackward<T>&, double* partials, int64_t begin, int64_t end);
  // Tasks: rows.
  void (*scan_reduce)(const ScanBackward<T>&, const double* partials, int64_t rows, int64_t begin, int64_t end);

  // Spikes to bits and back. Tasks: samples x tiles of kSpikeTile pixels. pack_spikes returns their number, or -1 where
  // a value is neither 0 nor 1 (the bits are then meaningless).
  int64_t (*pack_spikes)(const SpikeBits<const T>&, int64_t begin, int64_t end);
  void (*unpack_spikes)(const SpikeBits<T>&, int64_t begin, int64_t end);
  // The feed-forward convolution of spikes, by events; for the weight's gradient first all tasks of maps, then those of
  // gradient.
  SpikeConvTasks (*spike_conv_tasks)(const SpikeConvShape&);
  void (*spike_conv_forward)(const SpikeConvForward<T>&, int64_t begin, int64_t end);
  void (*spike_conv_maps)(const SpikeConvGradient<T>&, int64_t begin, int64_t end);
  void (*spike_conv_gradient)(const SpikeConvGradient<T>&, int64_t begin, int64_t end);
};

// One instruction set.
struct CpuCapability {
  const char* name;
  bool (*supported)();  // by the processor that runs
  const CpuKernels<float>* float32;
  const CpuKernels<double>* float64;
};

// Those compiled in, fastest first; the portable one is last and always supported. Ends with a null name.
const CpuCapability* cpu_capabilities();

// The one in use: the fastest supported, or the one named by the environment variable STC_CUDA_CPU_KERNEL.
// Throws std::runtime_error when that names none that is compiled in and supported.
const CpuCapability& cpu_capability();

// Its kernels of a type.
template <class T>
const CpuKernels<T>& cpu_kernels() {
  if constexpr (std::is_same_v<T, float>)
    return *cpu_capability().float32;
  else
    return *cpu_capability().float64;
}

namespace portable {
extern const CpuKernels<float> kFloat32;
extern const CpuKernels<double> kFloat64;
}  // namespace portable
namespace avx2 {
extern const CpuKernels<float> kFloat32;
extern const CpuKernels<double> kFloat64;
}  // namespace avx2
namespace avx512 {
extern const CpuKernels<float> kFloat32;
extern const CpuKernels<double> kFloat64;
}  // namespace avx512

}  // namespace stc

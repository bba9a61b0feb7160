// The table of functions of one instruction set. The including file has set up the instruction set.
#pragma once

#include "../channel_gradients.h"
#include "scan.h"
#include "spike_conv.h"
#include "stc_unit.h"

namespace stc::STC_SIMD_NAMESPACE {

template <class T>
CpuBufferSizes buffer_sizes(const Shape& shape) {
  const Layout<T> l(shape);
  return {shape.groups * l.gate_weights(), shape.groups * l.transposed_weights(), shape.groups * l.gate_weights(),
          shape.channels * kChannelSums};
}

template <class T>
void pack(const StcInputs<T>& in, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  const Layout<T> l(in.shape);
  const int64_t group_weights = l.in_group * l.in_group * l.kernel * l.kernel;
  const TapOrder order = in.cell.spiking ? TapOrder::kDescending : TapOrder::kAscending;
  for (int64_t g = begin; g < end; ++g) {
    const T* const weights[2] = {in.temporal_weight + g * group_weights, in.spatial_weight + g * group_weights};
    pack_gate_weights(l, weights, order, buffers.gate_weights + g * l.gate_weights());
    if (buffers.transposed_weights)
      pack_transposed_weights(l, weights, buffers.transposed_weights + g * l.transposed_weights());
  }
}

template <class T>
bool forward(const StcForward<T>& p, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  bool binary = true;
  CircuitCells::visit(p.in.neuron, [&](auto cell) {
    ForwardUnit<typename decltype(cell)::template With<Simd<T>>> unit(p, buffers.gate_weights);
    for (int64_t task = begin; task < end && binary; ++task) binary = unit.run(task);
  });
  return binary;
}

template <class T>
void backward(const StcBackward<T>& p, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  CircuitCells::visit(p.in.neuron, [&](auto cell) {
    BackwardUnit<typename decltype(cell)::template With<Simd<T>>> unit(p, buffers);
    for (int64_t task = begin; task < end; ++task) unit.run(task);
  });
}

template <class T>
void reduce(const StcBackward<T>& p, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  const Shape& shape = p.in.shape;
  const Layout<T> l(shape);
  const int64_t group_weights = l.in_group * l.in_group * l.kernel * l.kernel;
  const int coefficients = CircuitCells::traits(p.in.neuron).coefficients;
  Buffer<T> total(l.gate_weights());
  for (int64_t g = begin; g < end; ++g) {
    std::fill_n(total.data(), l.gate_weights(), T(0));
    for (int64_t n = 0; n < shape.samples; ++n) {
      const T* part = buffers.partial_weights + (n * shape.groups + g) * l.gate_weights();
      for (int64_t i = 0; i < l.gate_weights(); ++i) total.data()[i] += part[i];
    }
    T* const weights[2] = {p.grad_temporal_weight + g * group_weights, p.grad_spatial_weight + g * group_weights};
    unpack_gate_weights(l, total.data(), weights);
    for (int64_t c = g * l.in_group; c < (g + 1) * l.in_group; ++c) {
      double sums[kChannelSums] = {};
      for (int64_t n = 0; n < shape.samples; ++n) {
        const double* part = buffers.partial_sums + (n * shape.channels + c) * kChannelSums;
        for (int k = 0; k < kChannelSums; ++k) sums[k] += part[k];
      }
      for (int k = 0; k < kCoefficientSums + coefficients; ++k) store_channel_gradient(p, c, k, sums[k]);
    }
  }
}

template <class T>
constexpr CpuKernels<T> table() {
  return {buffer_sizes<T>,     pack<T>,
          forward<T>,          backward<T>,
          reduce<T>,           scan_forward<T>,
          scan_backward<T>,    scan_reduce<T>,
          pack_spikes<T>,      unpack_spikes<T>,
          spike_conv_tasks<T>, spike_conv_forward<T>,
          spike_conv_maps<T>,  spike_conv_gradient<T>};
}

const CpuKernels<float> kFloat32 = table<float>();
const CpuKernels<double> kFloat64 = table<double>();

}  // namespace stc::STC_SIMD_NAMESPACE

// The table of functions of one instruction set. The including file has set up the instruction set.
#pragma once

#include "stc_unit.h"

namespace stc::STC_SIMD_NAMESPACE {

template <class T>
CpuBufferSizes buffer_sizes(const Shape& shape) {
  const Layout<T> l(shape);
  return {shape.groups * l.gate_weights(), shape.groups * l.transposed_weights(), shape.groups * l.gate_weights(),
          shape.channels * kNorms * 2};
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
  ForwardUnit<T> unit(p, buffers.gate_weights);
  for (int64_t task = begin; task < end; ++task)
    if (!unit.run(task)) return false;
  return true;
}

template <class T>
void backward(const StcBackward<T>& p, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  BackwardUnit<T> unit(p, buffers);
  for (int64_t task = begin; task < end; ++task) unit.run(task);
}

template <class T>
void reduce(const StcBackward<T>& p, const CpuBuffers<T>& buffers, int64_t begin, int64_t end) {
  const Shape& shape = p.in.shape;
  const Layout<T> l(shape);
  const int64_t group_weights = l.in_group * l.in_group * l.kernel * l.kernel;
  Buffer<T> total(l.gate_weights());
  for (int64_t g = begin; g < end; ++g) {
    std::fill_n(total.data(), l.gate_weights(), T(0));
    for (int64_t n = 0; n < shape.samples; ++n) {
      const T* part = buffers.partial_weights + (n * shape.groups + g) * l.gate_weights();
      for (int64_t i = 0; i < l.gate_weights(); ++i) total.data()[i] += part[i];
    }
    T* const weights[2] = {p.grad_temporal_weight + g * group_weights, p.grad_spatial_weight + g * group_weights};
    unpack_gate_weights(l, total.data(), weights);
    for (int64_t c = g * l.in_group; c < (g + 1) * l.in_group; ++c)
      for (int norm = 0; norm < kNorms; ++norm) {
        if (!p.grad_norm_weight[norm]) continue;
        double weight = 0, bias = 0;
        for (int64_t n = 0; n < shape.samples; ++n) {
          const double* part = buffers.partial_norms + ((n * shape.channels + c) * kNorms + norm) * 2;
          weight += part[0];
          bias += part[1];
        }
        p.grad_norm_weight[norm][c] = T(weight);
        p.grad_norm_bias[norm][c] = T(bias);
      }
  }
}

const CpuKernels<float> kFloat32 = {buffer_sizes<float>, pack<float>, forward<float>, backward<float>, reduce<float>};
const CpuKernels<double> kFloat64 = {buffer_sizes<double>, pack<double>, forward<double>, backward<double>,
                                     reduce<double>};

}  // namespace stc::STC_SIMD_NAMESPACE

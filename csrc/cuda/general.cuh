// General kernels: any channels per group, kernel size, map and mixture of groups, float and double, hard and soft
// spikes. One step is a convolution launch and a launch that normalises and updates; the state lives in global memory.
#pragma once

#include "../cell.h"
#include "../channel_gradients.h"
#include "../group_norm.h"
#include "../params.h"
#include "device_math.cuh"
#include "gpu.cuh"
#include "launcher.h"

namespace stc::cuda {

// Per call, in device memory. Sequence-free arrays [N, C, H, W] unless said otherwise.
template <class T>
struct Workspace {
  T* spikes;              // s_{t-1}
  T* states[kMaxStates];  // of step t - 1; in the forward pass these are the outputs
  T* z;                   // [2, N, C, H, W]: both gate convolutions
  T* grad;                // [kNorms, N, C, H, W]: of the norms' outputs, then of their inputs
  T* grad_spikes;         // of s_t through the gates of step t + 1
  double* partial_sums;   // [N, C, kChannelSums]; summed over the steps
};

struct Geometry {
  int64_t pixels, in_group, norm_channels, state;  // state: elements of [N, C, H, W]

  STC_HD explicit Geometry(const Shape& s)
      : pixels(s.height * s.width),
        in_group(s.channels / s.groups),
        norm_channels(s.channels / s.norm_groups),
        state(s.samples * s.channels * s.height * s.width) {}
};

template <class T>
STC_HD T at(const Strided<const T>& x, const Shape& s, int64_t t, int64_t n, int64_t c, int64_t pixel) {
  const int at = int(pixel), width = int(s.width);  // a map has less than 2^30 pixels
  return x.data[t * x.step + n * x.sample + c * x.channel + at / width * x.row + at % width * x.column];
}

__device__ inline int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }

// ---- forward -----------------------------------------------------------------------------------------------------

// The state before the first step into contiguous arrays; zero where none is given.
template <class T>
__global__ void load_state(StcInputs<T> in, Workspace<T> w, int states) {
  const Geometry geo(in.shape);
  const int64_t i = global_thread();
  if (i >= geo.state) return;
  const int64_t pixel = i % geo.pixels, c = i / geo.pixels % in.shape.channels, n = i / geo.pixels / in.shape.channels;
  for (int k = 0; k < states; ++k)
    w.states[k][i] = in.states[k].data ? at(in.states[k], in.shape, 0, n, c, pixel) : T(0);
  w.spikes[i] = in.spikes.data ? at(in.spikes, in.shape, 0, n, c, pixel) : T(0);
}

// z = gconv(s_{t-1}; W) of both pathways, one output neuron a thread.
template <class T>
__global__ void gate_convolutions(StcInputs<T> in, const T* spikes, T* z) {
  const Shape& s = in.shape;
  const Geometry geo(s);
  const int64_t i = global_thread();
  if (i >= geo.state) return;
  const int64_t pixel = i % geo.pixels, plane = i / geo.pixels, c = plane % s.channels;
  const int64_t y = pixel / s.width, x = pixel % s.width, pad = s.kernel / 2;
  const T* input = spikes + (plane - c + c / geo.in_group * geo.in_group) * geo.pixels;
  const int64_t weights = c * geo.in_group * s.kernel * s.kernel;
  const T *temporal = in.temporal_weight + weights, *spatial = in.spatial_weight + weights;
  T total_a = 0, total_b = 0;
  for (int64_t ci = 0; ci < geo.in_group; ++ci) {
    T a = 0, b = 0;  // of this input alone: short sums round less than one running total
    for (int64_t ky = 0; ky < s.kernel; ++ky)
      for (int64_t kx = 0; kx < s.kernel; ++kx, ++temporal, ++spatial) {
        const int64_t iy = y + ky - pad, ix = x + kx - pad;
        if (iy < 0 || iy >= s.height || ix < 0 || ix >= s.width) continue;
        const T spike = input[ci * geo.pixels + iy * s.width + ix];
        a += *temporal * spike;
        b += *spatial * spike;
      }
    total_a += a;
    total_b += b;
  }
  z[i] = total_a;
  z[geo.state + i] = total_b;
}

// Sum over the block, the same in every thread; `scratch` has one element a warp. All threads of the block call it.
__device__ inline double block_sum(double value, double* scratch) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kThreads / 32; ++w) total += scratch[w];
  return total;
}

// Calls f(channel in the norm group, pixel) over a norm group, the elements dealt to the threads of the block.
template <class F>
__device__ void for_group(const Geometry& geo, F f) {
  const int pixels = int(geo.pixels), next_c = kThreads / pixels, next_pixel = kThreads % pixels;
  int64_t c = int(threadIdx.x) / pixels;
  int pixel = int(threadIdx.x) % pixels;
  while (c < geo.norm_channels) {
    f(c, pixel);
    c += next_c;
    pixel += next_pixel;
    if (pixel >= pixels) {
      pixel -= pixels;
      ++c;
    }
  }
}

// Statistics of value(c, pixel) over a norm group: the mean first, from differences to one element, then the variance.
template <class F>
__device__ Moments group_moments(const Geometry& geo, double eps, double* scratch, F value) {
  const double count = double(geo.norm_channels * geo.pixels), shift = value(0, 0);
  double sum = 0, squares = 0;
  for_group(geo, [&](int64_t c, int64_t pixel) { sum += value(c, pixel) - shift; });
  Moments m;
  m.mean = shift + block_sum(sum, scratch) / count;
  for_group(geo, [&](int64_t c, int64_t pixel) {
    const double d = value(c, pixel) - m.mean;
    squares += d * d;
  });
  m.rstd = 1.0 / std::sqrt(block_sum(squares, scratch) / count + eps);
  return m;
}

template <class T>
STC_HD ChannelNorm<DeviceMath<T>> channel_norm(const StcInputs<T>& in, int norm, const Moments& m, int64_t c) {
  if (!in.norm_weight[norm]) return {};
  return {Statistics<DeviceMath<T>>(m), in.norm_weight[norm][c], in.norm_bias[norm][c]};
}

template <class Cell, class T>
__device__ typename Cell::K coefficients(const StcInputs<T>& in, int64_t c) {
  typename Cell::K k;
  k.threshold = in.threshold ? in.threshold[c] : in.cell.threshold;
#pragma unroll
  for (int i = 0; i < Cell::kCoefficients; ++i) k.of[i] = in.coefficients[i * in.shape.channels + c];
  return k;
}

// Normalises, and updates states and spikes. One block a (norm group, sample).
template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) update(StcForward<T> p, Workspace<T> w, int64_t t) {
  GPU_SHARED(double, scratch, [kThreads / 32]);
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t n = blockIdx.x, group = blockIdx.y, first = group * geo.norm_channels;
  const auto index = [&](int64_t c, int64_t pixel) { return (n * s.channels + first + c) * geo.pixels + pixel; };
  const auto current = [&](int64_t c, int64_t pixel) { return at(p.in.current, s, t, n, first + c, pixel); };

  Moments m[kNorms];
  if (p.in.norm_weight[kCurrent]) m[kCurrent] = group_moments(geo, p.in.eps, scratch, current);
#pragma unroll
  for (int path = 0; path < 2; ++path)
    if (p.in.norm_weight[kTemporal + path])
      m[kTemporal + path] = group_moments(
          geo, p.in.eps, scratch, [&](int64_t c, int64_t pixel) { return w.z[path * geo.state + index(c, pixel)]; });
  if (p.norm_stats && threadIdx.x == 0) {
    double* stats = p.norm_stats + ((t * s.samples + n) * s.norm_groups + group) * kNorms * 2;
#pragma unroll
    for (int norm = 0; norm < kNorms; ++norm) {
      stats[2 * norm] = m[norm].mean;
      stats[2 * norm + 1] = m[norm].rstd;
    }
  }

  for_group(geo, [&](int64_t c, int64_t pixel) {
    const int64_t i = index(c, pixel), out = t * geo.state + i;
    const T a = channel_norm(p.in, kTemporal, m[kTemporal], first + c)(w.z[i]);
    const T b = channel_norm(p.in, kSpatial, m[kSpatial], first + c)(w.z[geo.state + i]);
    const T x = channel_norm(p.in, kCurrent, m[kCurrent], first + c)(current(c, pixel));
    const auto k = coefficients<Cell>(p.in, first + c);
    T states[Cell::kStates], potentials[Cell::kPotentials];
#pragma unroll
    for (int j = 0; j < Cell::kStates; ++j) states[j] = w.states[j][i];
    Cell::integrate(states, x, a, b, k, potentials);
    const T spike = Cell::settle(potentials, k, p.in.cell, states);
#pragma unroll
    for (int j = 0; j < Cell::kStates; ++j) w.states[j][i] = states[j];
    w.spikes[i] = spike;
    if (p.spikes) p.spikes[out] = spike;
    if (p.potentials)
#pragma unroll
      for (int j = 0; j < Cell::kPotentials; ++j) p.potentials[j * s.steps * geo.state + out] = potentials[j];
    if (p.v_seq) p.v_seq[out] = states[0];
  });
}

// Spikes of step t as bits, one byte a thread.
template <class T>
__global__ void pack_spikes(Shape s, const T* spikes, uint8_t* packed) {
  const Geometry geo(s);
  const int64_t bytes = (geo.in_group + 7) / 8, i = global_thread();
  if (i >= s.samples * s.groups * geo.pixels * bytes) return;
  const int64_t byte = i % bytes, pixel = i / bytes % geo.pixels, group = i / bytes / geo.pixels;
  const T* plane = spikes + group * geo.in_group * geo.pixels + pixel;
  unsigned bits = 0;
  for (int64_t c = byte * 8; c < geo.in_group && c < byte * 8 + 8; ++c)
    bits |= unsigned(plane[c * geo.pixels] != T(0)) << (c % 8);
  packed[i] = uint8_t(bits);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// States and spikes of step t from its potentials.
template <class Cell, class T>
__global__ void restore_state(StcBackward<T> p, Workspace<T> w, int64_t t) {
  const Geometry geo(p.in.shape);
  const int64_t i = global_thread();
  if (i >= geo.state) return;
  T potentials[Cell::kPotentials], states[Cell::kStates];
#pragma unroll
  for (int j = 0; j < Cell::kPotentials; ++j) potentials[j] = p.potentials[(j * p.in.shape.steps + t) * geo.state + i];
  w.spikes[i] =
      Cell::settle(potentials, coefficients<Cell>(p.in, i / geo.pixels % p.in.shape.channels), p.in.cell, states);
#pragma unroll
  for (int j = 0; j < Cell::kStates; ++j) w.states[j][i] = states[j];
}

// grad_states = the upstream gradients of the last states, grad_spikes = 0, sums over the channels = 0.
template <class T>
__global__ void begin_backward(StcBackward<T> p, Workspace<T> w, int states) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t i = global_thread();
  if (i >= geo.state) return;
  const int64_t pixel = i % geo.pixels, plane = i / geo.pixels;
  for (int k = 0; k < states; ++k) {
    const Strided<const T>& upstream = p.grad_states_out[k];
    p.grad_states[k][i] = upstream.data ? at(upstream, s, 0, plane / s.channels, plane % s.channels, pixel) : T(0);
  }
  w.grad_spikes[i] = T(0);
  if (pixel == 0)
    for (int k = 0; k < kChannelSums; ++k) w.partial_sums[plane * kChannelSums + k] = 0;
}

// Through the cell and the three norms: grad_current, grad_states in place, and the gradients of both convolutions into
// w.grad. One block a (norm group, sample).
template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) differentiate(StcBackward<T> p, Workspace<T> w, int64_t t) {
  GPU_SHARED(double, scratch, [kThreads / 32]);
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t n = blockIdx.x, group = blockIdx.y, first = group * geo.norm_channels;
  const double share = 1.0 / double(geo.norm_channels * geo.pixels);
  Moments m[kNorms];
#pragma unroll
  for (int norm = 0; norm < kNorms; ++norm) {
    const double* stats = p.norm_stats + (((t * s.samples + n) * s.norm_groups + group) * kNorms + norm) * 2;
    m[norm].mean = stats[0];
    m[norm].rstd = stats[1];
  }
  const auto input = [&](int norm, int64_t c, int64_t pixel) {
    const int64_t i = (n * s.channels + c) * geo.pixels + pixel;
    return norm == kCurrent ? at(p.in.current, s, t, n, c, pixel) : w.z[(norm - kTemporal) * geo.state + i];
  };

  double mean_grad[kNorms] = {}, mean_product[kNorms] = {};
  for (int64_t c = first; c < first + geo.norm_channels; ++c) {
    double product[kNorms] = {}, plain[kNorms] = {}, threshold = 0, of_coefficients[kMaxCoefficients] = {};
    const auto k = coefficients<Cell>(p.in, c);
    for (int64_t pixel = threadIdx.x; pixel < geo.pixels; pixel += kThreads) {
      const int64_t i = (n * s.channels + c) * geo.pixels + pixel;
      T grad_s = w.grad_spikes[i], before[Cell::kStates], grad_states[Cell::kStates];
      T potentials[Cell::kPotentials], grad_potentials[Cell::kPotentials];
#pragma unroll
      for (int j = 0; j < Cell::kStates; ++j) {
        before[j] = w.states[j][i];
        grad_states[j] = p.grad_states[j][i];
      }
#pragma unroll
      for (int j = 0; j < Cell::kPotentials; ++j) potentials[j] = p.potentials[(j * s.steps + t) * geo.state + i];
      if (p.grad_spikes_out.data) grad_s += at(p.grad_spikes_out, s, t, n, c, pixel);
      if (p.grad_v_seq_out.data) grad_states[0] += at(p.grad_v_seq_out, s, t, n, c, pixel);
      T xhat[kNorms], y[kNorms];
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        const auto channel = channel_norm(p.in, norm, m[norm], c);
        xhat[norm] = channel.standardise(input(norm, c, pixel));
        y[norm] = channel.affine(xhat[norm]);
      }
      typename Cell::K grad_k{};
      Cell::settle_backward(potentials, grad_s, grad_states, k, p.in.cell, grad_potentials, grad_k);
      const auto g = Cell::integrate_backward(before, y[kCurrent], y[kTemporal], y[kSpatial], potentials,
                                              grad_potentials, k, grad_states, grad_k);
#pragma unroll
      for (int j = 0; j < Cell::kStates; ++j) p.grad_states[j][i] = grad_states[j];
      threshold += grad_k.threshold;
#pragma unroll
      for (int j = 0; j < Cell::kCoefficients; ++j) of_coefficients[j] += grad_k.of[j];
      const T grads[kNorms] = {g.current, g.temporal, g.spatial};
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        w.grad[norm * geo.state + i] = grads[norm];
        product[norm] += double(grads[norm]) * xhat[norm];
        plain[norm] += grads[norm];
      }
    }
#pragma unroll
    for (int norm = 0; norm < kNorms; ++norm) {
      if (!p.in.norm_weight[norm]) continue;
      const double sum_product = block_sum(product[norm], scratch), sum_plain = block_sum(plain[norm], scratch);
      mean_product[norm] += p.in.norm_weight[norm][c] * sum_product * share;
      mean_grad[norm] += p.in.norm_weight[norm][c] * sum_plain * share;
      if (threadIdx.x == 0) {
        double* sums = w.partial_sums + (n * s.channels + c) * kChannelSums + 2 * norm;
        sums[0] += sum_product;
        sums[1] += sum_plain;
      }
    }
    const auto add = [&](int sum, double value) {
      value = block_sum(value, scratch);
      if (threadIdx.x == 0) w.partial_sums[(n * s.channels + c) * kChannelSums + sum] += value;
    };
    if (p.grad_threshold) add(kThresholdSum, threshold);
    if (p.grad_coefficients)
#pragma unroll
      for (int j = 0; j < Cell::kCoefficients; ++j) add(kCoefficientSums + j, of_coefficients[j]);
  }
  // a thread reads back only what it wrote: both loops deal pixels of a channel the same way
  for (int64_t c = first; c < first + geo.norm_channels; ++c)
    for (int64_t pixel = threadIdx.x; pixel < geo.pixels; pixel += kThreads)
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        const int64_t i = (n * s.channels + c) * geo.pixels + pixel;
        const auto channel = channel_norm(p.in, norm, m[norm], c);
        const T grad = channel.backward(w.grad[norm * geo.state + i], channel.standardise(input(norm, c, pixel)),
                                        T(mean_grad[norm]), T(mean_product[norm]));
        (norm == kCurrent ? p.grad_current + t * geo.state : w.grad + norm * geo.state)[i] = grad;
      }
}

// W' += z' correlated with s_{t-1}; one weight of both pathways a thread, summed in a fixed order.
template <class T>
__global__ void weight_gradient(StcBackward<T> p, Workspace<T> w, bool first_step) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t i = global_thread(), taps = s.kernel * s.kernel, pad = s.kernel / 2;
  if (i >= s.channels * geo.in_group * taps) return;
  const int64_t kx = i % s.kernel - pad, ky = i / s.kernel % s.kernel - pad, ci = i / taps % geo.in_group;
  const int64_t co = i / taps / geo.in_group, input = co / geo.in_group * geo.in_group + ci;
  const int64_t y_begin = ky < 0 ? -ky : 0, y_end = ky > 0 ? s.height - ky : s.height;
  const int64_t x_begin = kx < 0 ? -kx : 0, x_end = kx > 0 ? s.width - kx : s.width;
  T total_a = 0, total_b = 0;
  for (int64_t n = 0; n < s.samples; ++n) {
    const T* spikes = w.spikes + (n * s.channels + input) * geo.pixels;
    const T* grad_a = w.grad + kTemporal * geo.state + (n * s.channels + co) * geo.pixels;
    const T* grad_b = grad_a + geo.state;
    for (int64_t y = y_begin; y < y_end; ++y) {
      T a = 0, b = 0;  // of this row alone: short sums round less than one running total
      for (int64_t x = x_begin; x < x_end; ++x) {
        const T spike = spikes[(y + ky) * s.width + x + kx];
        a += grad_a[y * s.width + x] * spike;
        b += grad_b[y * s.width + x] * spike;
      }
      total_a += a;
      total_b += b;
    }
  }
  p.grad_temporal_weight[i] = first_step ? total_a : p.grad_temporal_weight[i] + total_a;
  p.grad_spatial_weight[i] = first_step ? total_b : p.grad_spatial_weight[i] + total_b;
}

// grad_spikes = gconv_transpose(z'_a; W_temporal) + gconv_transpose(z'_b; W_spatial), one input neuron a thread.
template <class T>
__global__ void spike_gradient(StcBackward<T> p, Workspace<T> w) {
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t i = global_thread();
  if (i >= geo.state) return;
  const int64_t pixel = i % geo.pixels, plane = i / geo.pixels, c = plane % s.channels, n = plane / s.channels;
  const int64_t y = pixel / s.width, x = pixel % s.width, pad = s.kernel / 2, taps = s.kernel * s.kernel;
  const int64_t first = c / geo.in_group * geo.in_group;
  T total = 0;
  for (int64_t co = first; co < first + geo.in_group; ++co) {
    const T* grad_a = w.grad + kTemporal * geo.state + (n * s.channels + co) * geo.pixels;
    const T* grad_b = grad_a + geo.state;
    const int64_t weights = (co * geo.in_group + c - first) * taps;
    T sum = 0;
    for (int64_t ky = 0; ky < s.kernel; ++ky)
      for (int64_t kx = 0; kx < s.kernel; ++kx) {
        const int64_t oy = y + pad - ky, ox = x + pad - kx;
        if (oy < 0 || oy >= s.height || ox < 0 || ox >= s.width) continue;
        const int64_t tap = weights + ky * s.kernel + kx, out = oy * s.width + ox;
        sum += grad_a[out] * p.in.temporal_weight[tap] + grad_b[out] * p.in.spatial_weight[tap];
      }
    total += sum;
  }
  w.grad_spikes[i] = total;
}

// Gradients of the channels' parameters from the sums over the samples, one sum of a channel a thread.
template <class T>
__global__ void channel_gradients(StcBackward<T> p, int coefficients, const double* partial) {
  const int64_t sums = p.in.shape.channels * kChannelSums, i = global_thread();
  const int sum = int(i % kChannelSums);
  // the others were not written
  const int count = p.grad_threshold || p.grad_coefficients ? kCoefficientSums + coefficients : kThresholdSum;
  if (i >= sums || sum >= count) return;
  double total = 0;
#pragma unroll 8
  for (int64_t n = 0; n < p.in.shape.samples; ++n) total += partial[n * sums + i];
  store_channel_gradient(p, i / kChannelSums, sum, total);
}

template <class T>
__global__ void copy_state(const T* from, T* to, int64_t count) {
  const int64_t i = global_thread();
  if (i < count) to[i] = from[i];
}

template <class T>
__global__ void zero(T* to, int64_t count) {
  const int64_t i = global_thread();
  if (i < count) to[i] = T(0);
}

}  // namespace stc::cuda

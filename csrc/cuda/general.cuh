// General kernels: any channels per group, kernel size, map and mixture of groups, float and double, hard and soft
// spikes. One step is a launch of the convolutions (general_conv.cuh) and one that normalises and updates; the state
// lives in global memory.
#pragma once

#include "../cell.h"
#include "../channel_gradients.h"
#include "../group_norm.h"
#include "../params.h"
#include "device_math.cuh"
#include "general_conv.cuh"
#include "gpu.cuh"
#include "launcher.h"

namespace stc::cuda {

// Per call, in device memory. Sequence-free arrays [N, C, H, W] unless said otherwise.
template <class T>
struct Workspace {
  T* spikes;              // [N, C, padded map]: s_{t-1}
  T* states[kMaxStates];  // of step t - 1; in the forward pass these are the outputs
  T* z;                   // [2, N, C, H, W]: both gate convolutions
  T* grad;                // [2, N, C, padded map]: of the gates' norms, then of their inputs
  T* grad_spikes;         // of s_t through the gates of step t + 1
  double* partial_sums;   // [N, C, kChannelSums]; summed over the steps
  T* weight_sums;         // as WeightTiles cuts them; summed over the steps
  T* packed;              // the gates' weights as gate_convolutions reads them
  T* transposed;          // and as its transpose does
};

struct Geometry {
  int64_t pixels, in_group, norm_channels, state;  // state: elements of [N, C, H, W]
  PaddedMap map;
  int width;

  STC_HD explicit Geometry(const Shape& s)
      : pixels(s.height * s.width),
        in_group(s.channels / s.groups),
        norm_channels(s.channels / s.norm_groups),
        state(s.samples * s.channels * s.height * s.width),
        map(s),
        width(int(s.width)) {}

  // Where a pixel lies in [N, C, padded map]; a map has less than 2^30 of them.
  STC_HD int64_t padded(int64_t plane, int64_t pixel) const {
    return plane * map.area + map.at(int(pixel) / width, int(pixel) % width);
  }
};

// Threads of a block that owns a norm group.
constexpr int kGroupThreads = 512, kGroupWarps = kGroupThreads / 32;

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
  w.spikes[geo.padded(i / geo.pixels, pixel)] = in.spikes.data ? at(in.spikes, in.shape, 0, n, c, pixel) : T(0);
}

// The same in all lanes of a warp.
__device__ inline double warp_sum(double value) {
  for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
  return value;
}

// Each value's sum over a block of kGroupThreads, the same in every thread; `scratch` has Count elements a warp. All
// threads of the block call it.
template <int Count>
__device__ void block_sums(double (&values)[Count], double* scratch) {
  double of_warp[Count];
#pragma unroll
  for (int i = 0; i < Count; ++i) of_warp[i] = warp_sum(values[i]);
  __syncthreads();  // the last sums have been read
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < Count; ++i) scratch[threadIdx.x / 32 * Count + i] = of_warp[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    values[i] = 0;
    for (int w = 0; w < kGroupWarps; ++w) values[i] += scratch[w * Count + i];
  }
}

// Calls f(channel in the norm group, pixel) over a norm group, the elements dealt to the threads of the block.
template <class F>
__device__ void for_group(const Geometry& geo, F f) {
  const int pixels = int(geo.pixels), next_c = kGroupThreads / pixels, next_pixel = kGroupThreads % pixels;
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

// Statistics of value(norm, c, pixel) over a norm group, of the norms that are `wanted`: the means first, from
// differences to one element, then the variances.
template <class F>
__device__ void group_moments(const Geometry& geo, double eps, double* scratch, const bool (&wanted)[kNorms], F value,
                              Moments (&m)[kNorms]) {
  const double count = double(geo.norm_channels * geo.pixels);
  double shift[kNorms], sums[kNorms] = {}, squares[kNorms] = {};
#pragma unroll
  for (int norm = 0; norm < kNorms; ++norm) shift[norm] = wanted[norm] ? value(norm, 0, 0) : 0;
  for_group(geo, [&](int64_t c, int64_t pixel) {
#pragma unroll
    for (int norm = 0; norm < kNorms; ++norm)
      if (wanted[norm]) sums[norm] += value(norm, c, pixel) - shift[norm];
  });
  block_sums(sums, scratch);
#pragma unroll
  for (int norm = 0; norm < kNorms; ++norm)
    if (wanted[norm]) m[norm].mean = shift[norm] + sums[norm] / count;
  for_group(geo, [&](int64_t c, int64_t pixel) {
#pragma unroll
    for (int norm = 0; norm < kNorms; ++norm) {
      const double d = wanted[norm] ? value(norm, c, pixel) - m[norm].mean : 0;
      squares[norm] += d * d;
    }
  });
  block_sums(squares, scratch);
#pragma unroll
  for (int norm = 0; norm < kNorms; ++norm)
    if (wanted[norm]) m[norm].rstd = 1.0 / std::sqrt(squares[norm] / count + eps);
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
__global__ void __launch_bounds__(kGroupThreads) update(StcForward<T> p, Workspace<T> w, int64_t t) {
  GPU_SHARED(double, scratch, [kNorms * kGroupWarps]);
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t n = blockIdx.x, group = blockIdx.y, first = group * geo.norm_channels;
  const auto index = [&](int64_t c, int64_t pixel) { return (n * s.channels + first + c) * geo.pixels + pixel; };
  const auto current = [&](int64_t c, int64_t pixel) { return at(p.in.current, s, t, n, first + c, pixel); };

  const auto value = [&](int norm, int64_t c, int64_t pixel) {
    return norm == kCurrent ? current(c, pixel) : w.z[(norm - kTemporal) * geo.state + index(c, pixel)];
  };

  Moments m[kNorms];
  const bool wanted[kNorms] = {p.in.norm_weight[0] != nullptr, p.in.norm_weight[1] != nullptr,
                               p.in.norm_weight[2] != nullptr};
  group_moments(geo, p.in.eps, scratch, wanted, value, m);
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
    w.spikes[geo.padded(n * s.channels + first + c, pixel)] = spike;
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
  const T* plane = spikes + geo.padded(group * geo.in_group, pixel);
  unsigned bits = 0;
  for (int64_t c = byte * 8; c < geo.in_group && c < byte * 8 + 8; ++c)
    bits |= unsigned(plane[c * geo.map.area] != T(0)) << (c % 8);
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
  w.spikes[geo.padded(i / geo.pixels, i % geo.pixels)] =
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
// w.grad. One block a (norm group, sample); a warp has a channel, or, where there are fewer channels than warps, one of
// the `parts` of its pixels.
template <class Cell, class T>
__global__ void __launch_bounds__(kGroupThreads) differentiate(StcBackward<T> p, Workspace<T> w, int64_t t) {
  GPU_SHARED(double, scratch, [2 * kNorms * kGroupWarps]);
  GPU_SHARED(double, of_parts, [kGroupWarps][kChannelSums]);
  const Shape& s = p.in.shape;
  const Geometry geo(s);
  const int64_t n = blockIdx.x, group = blockIdx.y, first = group * geo.norm_channels;
  const int warp = int(threadIdx.x / 32), lane = int(threadIdx.x % 32);
  const int parts = geo.norm_channels < kGroupWarps ? kGroupWarps / int(geo.norm_channels) : 1;
  const int64_t items = geo.norm_channels * parts;
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
  // The gradient of a norm's output, and then of its input.
  const auto grad_of = [&](int norm, int64_t c, int64_t pixel) -> T& {
    const int64_t plane = n * s.channels + c;
    if (norm == kCurrent) return p.grad_current[t * geo.state + plane * geo.pixels + pixel];
    return w.grad[(norm - kTemporal) * s.samples * s.channels * geo.map.area + geo.padded(plane, pixel)];
  };

  double means[2 * kNorms] = {};  // of each norm, of the gradient times the standardised input, and of the gradient
  for (int64_t item = warp; item < items; item += kGroupWarps) {
    const int64_t c = first + item / parts;
    double sums[kChannelSums] = {};
    const auto k = coefficients<Cell>(p.in, c);
    for (int64_t pixel = item % parts * 32 + lane; pixel < geo.pixels; pixel += parts * 32) {
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
      sums[kThresholdSum] += grad_k.threshold;
#pragma unroll
      for (int j = 0; j < Cell::kCoefficients; ++j) sums[kCoefficientSums + j] += grad_k.of[j];
      const T grads[kNorms] = {g.current, g.temporal, g.spatial};
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        grad_of(norm, c, pixel) = grads[norm];
        sums[2 * norm] += double(grads[norm]) * xhat[norm];
        sums[2 * norm + 1] += grads[norm];
      }
    }
#pragma unroll
    for (int i = 0; i < kCoefficientSums + Cell::kCoefficients; ++i) {
      const double sum = warp_sum(sums[i]);
      if (lane) continue;
      if (parts == 1)
        w.partial_sums[(n * s.channels + c) * kChannelSums + i] += sum;
      else
        of_parts[warp][i] = sum;
      if (i < 2 * kNorms && p.in.norm_weight[i / 2]) means[i] += p.in.norm_weight[i / 2][c] * sum * share;
    }
  }
  block_sums(means, scratch);  // its barriers are also those of of_parts
  if (parts > 1 && threadIdx.x < geo.norm_channels * kChannelSums) {
    const int c = int(threadIdx.x) / kChannelSums, i = int(threadIdx.x) % kChannelSums;
    if (i < kCoefficientSums + Cell::kCoefficients) {
      double sum = 0;
      for (int part = 0; part < parts; ++part) sum += of_parts[c * parts + part][i];
      w.partial_sums[(n * s.channels + first + c) * kChannelSums + i] += sum;
    }
  }
  // a thread reads back only what it wrote: both loops deal the pixels the same way
  for (int64_t item = warp; item < items; item += kGroupWarps) {
    const int64_t c = first + item / parts;
    for (int64_t pixel = item % parts * 32 + lane; pixel < geo.pixels; pixel += parts * 32)
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        const auto channel = channel_norm(p.in, norm, m[norm], c);
        T& grad = grad_of(norm, c, pixel);
        grad = channel.backward(grad, channel.standardise(input(norm, c, pixel)), T(means[2 * norm + 1]),
                                T(means[2 * norm]));
      }
  }
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

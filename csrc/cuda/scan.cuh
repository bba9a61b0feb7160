// The element-wise neurons over all steps in one launch: `Width` neighbouring neurons a thread, their state in
// registers. The current is read once and the spikes are written once.
#pragma once

#include "../cell.h"
#include "../params.h"
#include "device_math.cuh"
#include "gpu.cuh"
#include "launcher.h"
#include "storage.cuh"

namespace stc::cuda {

// Neighbours in one access.
template <class T, int Width>
struct alignas(sizeof(T) * Width) Packet {
  T of[Width];
};

template <int Width, class T>
__device__ __forceinline__ void load(const T* array, int64_t first, T (&to)[Width]) {
  const auto packet = *reinterpret_cast<const Packet<T, Width>*>(array + first);
#pragma unroll
  for (int j = 0; j < Width; ++j) to[j] = packet.of[j];
}

// An absent array is 0.
template <int Width, class T>
__device__ __forceinline__ void load_or_zero(const T* array, int64_t first, T (&to)[Width]) {
  if (array) return load<Width>(array, first, to);
#pragma unroll
  for (int j = 0; j < Width; ++j) to[j] = T(0);
}

template <int Width, class T>
__device__ __forceinline__ void store(T* array, int64_t first, const T (&from)[Width]) {
  Packet<T, Width> packet;
#pragma unroll
  for (int j = 0; j < Width; ++j) packet.of[j] = from[j];
  *reinterpret_cast<Packet<T, Width>*>(array + first) = packet;
}

// The same for the current, the spikes and their gradients.
template <int Width, class T>
__device__ __forceinline__ void load_stored(const T* array, int64_t first, Storage storage, T (&to)[Width]) {
  if constexpr (sizeof(T) == 4) {
    if (storage != Storage::kState && array) {
      uint16_t narrowed[Width];
      load<Width>(reinterpret_cast<const uint16_t*>(array), first, narrowed);
#pragma unroll
      for (int j = 0; j < Width; ++j) to[j] = widen(narrowed[j], storage);
      return;
    }
  }
  load_or_zero<Width>(array, first, to);
}

template <int Width, class T>
__device__ __forceinline__ void store_stored(T* array, int64_t first, Storage storage, const T (&from)[Width]) {
  if constexpr (sizeof(T) == 4) {
    if (storage != Storage::kState) {
      uint16_t narrowed[Width];
#pragma unroll
      for (int j = 0; j < Width; ++j) narrowed[j] = narrow(from[j], storage);
      return store<Width>(reinterpret_cast<uint16_t*>(array), first, narrowed);
    }
  }
  store<Width>(array, first, from);
}

// The coefficients of neighbours, whose channels follow from that of the first.
template <class Cell, int Width, class T>
__device__ __forceinline__ void coefficients(const ScanInputs<T>& in, int64_t first, typename Cell::K (&k)[Width]) {
  const ScanShape& s = in.shape;
  int64_t c, place;
  if (s.neurons <= int64_t(UINT32_MAX)) {
    const uint32_t plane = uint32_t(first) / uint32_t(s.channel_stride);
    c = plane % uint32_t(s.channels);
    place = uint32_t(first) - plane * uint32_t(s.channel_stride);
  } else {
    c = first / s.channel_stride % s.channels;
    place = first % s.channel_stride;
  }
#pragma unroll
  for (int j = 0; j < Width; ++j) {
    k[j].threshold = in.threshold ? in.threshold[c] : in.cell.threshold;
#pragma unroll
    for (int i = 0; i < Cell::kCoefficients; ++i) k[j].of[i] = in.coefficients[i * s.channels + c];
    if (++place == s.channel_stride) {
      place = 0;
      if (++c == s.channels) c = 0;
    }
  }
}

// One neuron's numbers out of `Width` of each.
template <int Count, int Width, class T>
__device__ __forceinline__ void pick(const T (&from)[Count][Width], int j, T (&to)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) to[i] = from[i][j];
}
template <int Count, int Width, class T>
__device__ __forceinline__ void place(const T (&from)[Count], int j, T (&to)[Count][Width]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) to[i][j] = from[i];
}

template <template <class> class C, class T, int Width>
__global__ void __launch_bounds__(kThreads) scan_forward(ScanForward<T> p) {
  using Cell = C<DeviceMath<T>>;
  constexpr int kStates = Cell::kStates, kPotentials = Cell::kPotentials;
  const ScanShape& shape = p.in.shape;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width;
  if (first >= shape.neurons) return;
  typename Cell::K k[Width];
  coefficients<Cell>(p.in, first, k);
  T states[kStates][Width];
#pragma unroll
  for (int i = 0; i < kStates; ++i) load_or_zero<Width>(p.in.states[i], first, states[i]);

  T next[Width];
  if (shape.steps > 0) load_stored<Width>(p.in.current, first, p.in.storage, next);
#pragma unroll 1
  for (int64_t t = 0; t < shape.steps; ++t) {
    T x[Width], spikes[Width], potentials[kPotentials][Width];
#pragma unroll
    for (int j = 0; j < Width; ++j) x[j] = next[j];
    if (t + 1 < shape.steps) load_stored<Width>(p.in.current, (t + 1) * p.in.current_step + first, p.in.storage, next);
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      T state[kStates], potential[kPotentials];
      pick(states, j, state);
      Cell::integrate(state, x[j], k[j], p.in.cell, potential);
      spikes[j] = Cell::settle(potential, k[j], p.in.cell, state);
      place(state, j, states);
      place(potential, j, potentials);
    }
    const int64_t out = t * shape.neurons + first;
    store_stored<Width>(p.spikes, out, p.in.storage, spikes);
    if (p.v_seq) store<Width>(p.v_seq, out, states[0]);
    if (p.potentials)
#pragma unroll
      for (int i = 0; i < kPotentials; ++i)
        store<Width>(p.potentials, i * shape.steps * shape.neurons + out, potentials[i]);
  }
#pragma unroll
  for (int i = 0; i < kStates; ++i) store<Width>(p.states[i], first, states[i]);
}

// Left alone (0), ptxas spills a few bytes of some neurons in double precision to seat more blocks.
template <class T>
constexpr int kLeastBlocks = sizeof(T) == 8 ? 1 : 0;

// With Learns also the sums over the steps for the gradients of threshold and coefficients: of each neuron, [1 +
// kCoefficients][neurons], or, where the neighbours of a thread are `together` in one channel, of each thread.
template <template <class> class C, class T, int Width, bool Learns>
__global__ void __launch_bounds__(kThreads, kLeastBlocks<T>) scan_backward(ScanBackward<T> p, T* sums, bool together) {
  using Cell = C<DeviceMath<T>>;
  using K = typename Cell::K;
  constexpr int kStates = Cell::kStates, kPotentials = Cell::kPotentials;
  const ScanShape& shape = p.in.shape;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Width;
  if (first >= shape.neurons) return;
  K k[Width], sum[Width];
  coefficients<Cell>(p.in, first, k);
#pragma unroll
  for (int j = 0; j < Width; ++j) sum[j] = K{};
  T grads[kStates][Width], potentials[kPotentials][Width];
#pragma unroll
  for (int i = 0; i < kStates; ++i) load_or_zero<Width>(p.grad_states_out[i], first, grads[i]);
  const auto load_potentials = [&](int64_t t) {
#pragma unroll
    for (int i = 0; i < kPotentials; ++i)
      load<Width>(p.potentials, (i * shape.steps + t) * shape.neurons + first, potentials[i]);
  };
  if (shape.steps > 0) load_potentials(shape.steps - 1);

#pragma unroll 1
  for (int64_t t = shape.steps - 1; t >= 0; --t) {
    const int64_t at = t * shape.neurons + first;
    T current[Width], grad_spikes[Width], grad_v_seq[Width], grad_current[Width];
    T potentials_now[kPotentials][Width], before[kStates][Width];
    load_stored<Width>(p.grad_spikes_out, p.grad_spikes_repeats ? first : at, p.in.storage, grad_spikes);
    load_or_zero<Width>(p.grad_v_seq_out, at, grad_v_seq);
    load_stored<Width>(Learns ? p.in.current : nullptr, t * p.in.current_step + first, p.in.storage, current);
#pragma unroll
    for (int i = 0; i < kPotentials; ++i)
#pragma unroll
      for (int j = 0; j < Width; ++j) potentials_now[i][j] = potentials[i][j];
    if (t > 0) {
      load_potentials(t - 1);
#pragma unroll
      for (int j = 0; j < Width; ++j) {
        T potential[kPotentials], state[kStates];
        pick(potentials, j, potential);
        Cell::settle(potential, k[j], p.in.cell, state);
        place(state, j, before);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kStates; ++i) load_or_zero<Width>(p.in.states[i], first, before[i]);
    }
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      T potential[kPotentials], grad_potential[kPotentials], grad_state[kStates], state[kStates], grad_before[kStates];
      pick(potentials_now, j, potential);
      pick(grads, j, grad_state);
      pick(before, j, state);
      grad_state[0] += grad_v_seq[j];
      Cell::settle_backward(potential, grad_spikes[j], grad_state, k[j], p.in.cell, grad_potential, sum[j]);
      Cell::integrate_backward(state, current[j], potential, grad_potential, k[j], p.in.cell, grad_before,
                               grad_current[j], sum[j]);
      place(grad_before, j, grads);
    }
    store_stored<Width>(p.grad_current, at, p.in.storage, grad_current);
  }
#pragma unroll
  for (int i = 0; i < kStates; ++i) store<Width>(p.grad_states[i], first, grads[i]);
  if constexpr (Learns) {
#pragma unroll
    for (int i = 0; i <= Cell::kCoefficients; ++i) {
      T row[Width];
#pragma unroll
      for (int j = 0; j < Width; ++j) row[j] = i == 0 ? sum[j].threshold : sum[j].of[i > 0 ? i - 1 : 0];
      if (together) {
        T total = row[0];
#pragma unroll
        for (int j = 1; j < Width; ++j) total += row[j];
        sums[(i * shape.neurons + first) / Width] = total;
      } else {
        store<Width>(sums, i * shape.neurons + first, row);
      }
    }
  }
}

// How the sums of neurons become those of channels: `lanes` channels a block, each with a column of threads, and each
// channel's neurons cut into `splits`.
struct ChannelSums {
  int64_t lanes, splits;

  explicit ChannelSums(const ScanShape& s)
      : lanes(s.channel_stride < 32 ? 32 : 1),  // neighbours in memory go to neighbours in a warp
        splits(s.neurons / s.channels / 8192 + 1) {
    if (splits > kMostSplits) splits = kMostSplits;
  }
  STC_HD int64_t blocks(const ScanShape& s) const { return (s.channels + lanes - 1) / lanes * splits; }

 private:
  static constexpr int64_t kMostSplits = 128;
};

// One block a (channels, split) and row; partials [rows][channels][splits].
template <class T>
__global__ void __launch_bounds__(kThreads)
    channel_partials(ScanShape s, ChannelSums cut, const T* sums, double* partials) {
  GPU_SHARED(double, scratch, [kThreads]);
  const int thread = int(threadIdx.x), lane = thread % int(cut.lanes), part = thread / int(cut.lanes);
  const int parts = kThreads / int(cut.lanes);
  const int64_t split = blockIdx.x % cut.splits, c = blockIdx.x / cut.splits * cut.lanes + lane, row = blockIdx.y;
  double sum = 0;
  if (c < s.channels) {
    const int64_t count = s.neurons / s.channels, end = (split + 1) * count / cut.splits;
    for (int64_t i = split * count / cut.splits + part; i < end; i += parts)
      sum += double(
          sums[row * s.neurons + (i / s.channel_stride * s.channels + c) * s.channel_stride + i % s.channel_stride]);
  }
  scratch[thread] = sum;
  for (int half = parts / 2; half; half /= 2) {
    __syncthreads();
    if (part < half) scratch[thread] += scratch[thread + half * int(cut.lanes)];
  }
  if (part == 0 && c < s.channels) partials[(row * s.channels + c) * cut.splits + split] = scratch[thread];
}

// One row and channel a thread.
template <class T>
__global__ void channel_sums(ScanBackward<T> p, ChannelSums cut, int64_t rows, const double* partials) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, channels = p.in.shape.channels;
  if (i >= rows * channels) return;
  double sum = 0;
  if (p.in.shape.neurons > 0)
    for (int64_t split = 0; split < cut.splits; ++split) sum += partials[i * cut.splits + split];
  if (i < channels) {
    if (p.grad_threshold) p.grad_threshold[i] = T(sum);
  } else if (p.grad_coefficients) {
    p.grad_coefficients[i - channels] = T(sum);
  }
}

}  // namespace stc::cuda

// The persistent forward kernel: all steps of one (sample, group) in one block, one launch for a whole sequence.
//
// Per step and thread block:
//   gate convolutions of the spikes, while the current arrives  ->  means and variances of the current and of both
//   gates  ->  barrier  ->  gates, membrane, spikes, reset; new spikes into the map  ->  barrier
//
// The code of a step is more than the instruction caches near the cores hold, so what can be a loop is one.
#pragma once

#include <type_traits>

#include "persistent.cuh"
#include "spread.cuh"

namespace stc::cuda {

// Four spikes, bit j of `fired` the one at pixel j, to element `first` on of an array of the given storage.
__device__ __forceinline__ void store_spikes(float* array, int64_t first, unsigned fired, Storage storage) {
  if (storage == Storage::kState) {
    const auto spike = [&](int j) { return float(fired >> j & 1u); };
    *reinterpret_cast<float4*>(array + first) = make_float4(spike(0), spike(1), spike(2), spike(3));
  } else {
    const auto pair = [&](unsigned bits) { return ((bits & 1u) | (bits & 2u) << 15) * one_in(storage); };
    *reinterpret_cast<uint2*>(reinterpret_cast<uint16_t*>(array) + first) = make_uint2(pair(fired), pair(fired >> 2));
  }
}
// One of them, 0 or 1.
__device__ __forceinline__ void store_spike(float* array, int64_t place, unsigned spike, Storage storage) {
  if (storage == Storage::kState)
    array[place] = float(spike);
  else
    reinterpret_cast<uint16_t*>(array)[place] = uint16_t(spike * one_in(storage));
}

// ResidentWeights: in shared memory, and with them the spikes as fp16 numbers, where there is room; else weights stream
// through the first-level cache, and spikes are bits.
// cached_current: the current, too, is fetched into shared memory. far_state: where the state of a cell that has a
// second one lies, [N, groups][warps][kSlots][32]; null: in shared memory.
template <int Channels, int Kernel, int Runs, bool ResidentWeights, class Cell>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    persistent_forward(StcForward<float> p, PackedWeights packed, float4* far_state, bool cached_current) {
  using B = Block<Channels, Kernel, Runs>;
  using Product = typename B::Product;
  using Word = typename B::Word;
  using Map = std::conditional_t<ResidentWeights, SpikeNumbers<B>, SpikeBits<B>>;
  using Sums = Spread<kNorms>;
  constexpr int kTiles = B::kTiles, kStates = Cell::kStates;
  static_assert(kStates <= 2 && Cell::kPotentials == kStates);

  GPU_SHARED(uint16_t, runs, [B::kMaxRuns]);
  GPU_SHARED(float, spreads, [kMaxWarps][Sums::kNumbers]);
  GPU_SHARED(float, affine, [kNorms][2][Channels]);  // weight, bias
  GPU_SHARED(float, scale, [2][Channels]);           // of the gate weights
  GPU_SHARED(float, constants, [1 + Cell::kCoefficients][Channels]);
  GPU_SHARED(Word, words, [ResidentWeights ? 1 : B::kWords]);  // the map of spike bits
  gpu::SharedCarver carver;
  uint4* chunks =  // the map of spike numbers
      ResidentWeights ? carver.take<uint4>(kTiles * SpikeNumbers<B>::plane(p.in.shape)) : nullptr;
  // Of these arrays each element belongs to one thread.
  float4* v = carver.take<float4>(B::kSlots * int(blockDim.x));
  uint4* resident = ResidentWeights ? carver.take<uint4>(Product::kFragments) : nullptr;
  float4* second = v;
  if constexpr (kStates > 1)
    second = far_state ? far_state + int64_t(B::index()) * B::kSlots * int(blockDim.x)
                       : carver.take<float4>(B::kSlots * int(blockDim.x));

  B block(p.in.shape, runs);
  const Map map = [&] {  // the spikes before this step
    if constexpr (ResidentWeights)
      return SpikeNumbers<B>(block, chunks, p.in.shape);
    else
      return SpikeBits<B>(block, words);
  }();
  const auto fragments = [&] { return packed.fragments + B::group() * Product::kFragments; };
  const int terms = p.in.short_weights ? 1 : 2;
  const Storage storage = p.in.storage;
  CellOptions<float> cell = p.in.cell;
  cell.spiking = true;  // soft spikes run on the general kernels
  // The first element of this unit at step t of a contiguous sequence.
  const auto unit = [&](int64_t t) {
    return ((t * p.in.shape.samples + B::sample()) * p.in.shape.channels + B::first()) * block.pixels;
  };

  map.clear();
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * Channels; i += blockDim.x)
    scale[i / Channels][i % Channels] = packed.scale[B::group() * 2 * Channels + i];
  load_affine<Channels>(p.in, B::first(), affine);
  load_constants<Cell>(p.in, B::first(), constants);
  if constexpr (ResidentWeights)
#pragma unroll 1
    for (int i = threadIdx.x; i < Product::kFragments; i += blockDim.x) resident[i] = fragments()[i];
  const Current<B> current(block, p.in, cached_current ? carver.take<float4>(B::kSlots * int(blockDim.x)) : v,
                           cached_current);
  __syncthreads();  // the halo is zero before spikes are put inside it, and the slots before the current arrives there
  if (p.in.shape.steps > 0) current.fetch(0);
#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m) {
      const int64_t channel = B::first() + m * 8 + block.row;
      float4 spike = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        float4 state = make_float4(0.f, 0.f, 0.f, 0.f);
        if (p.in.states[k].data) state = load4(block, p.in.states[k], Storage::kState, 0, B::sample(), channel, i);
        (k ? second : v)[block.slot(i, m)] = state;
      }
      if (p.in.spikes.data) spike = load4(block, p.in.spikes, storage, 0, B::sample(), channel, i);
      unsigned fired = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) fired |= unsigned(component(spike, j) != 0.f) << j;
      const unsigned bits = block.channel_bits(fired);
      if (block.gathers(i)) map.put(block.gathered(i), m, bits);
    }
  __syncthreads();

  for (int t = 0; t < int(p.in.shape.steps); ++t) {
    block.forget();
    float z[Runs][2][kTiles][4];
    {
      const uint4* streamed = ResidentWeights ? nullptr : fragments();
      block.convolve_by_terms(
          map, terms, [&](int i) { return ResidentWeights ? resident[i] : __ldg(streamed + i); }, z);
    }
    Sums sums;
    sums.count = float(block.neurons());
    const float share = sums.count > 0.f ? 1.f / sums.count : 0.f;
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const float temporal = scale[0][m * 8 + block.row], spatial = scale[1][m * 8 + block.row];
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // pixel j of the thread: n tile j / 2, accumulators j % 2 (temporal) and 2 + j % 2 (spatial)
          float &a = z[i][j / 2][m][j % 2], &b = z[i][j / 2][m][2 + j % 2];
          a *= temporal;
          b *= spatial;
          if (j < block.left(i)) {
            sums.mean[kTemporal] += a;
            sums.mean[kSpatial] += b;
          }
        }
    }
    sums.mean[kTemporal] *= share;
    sums.mean[kSpatial] *= share;
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j < block.left(i))
#pragma unroll
            for (int path = 0; path < 2; ++path) {
              const float d = z[i][j / 2][m][2 * path + j % 2] - sums.mean[kTemporal + path];
              sums.variance[kTemporal + path] += d * d * share;
            }
    current.arrive();
    float shift = 0.f;
    if (p.in.norm_weight[kCurrent]) {
      // differences to one element of the group, so that a large common offset costs no digits; those of a thread to
      // the first of them, so that its few squares cancel nothing either
      shift = load_first(p.in.current, storage,
                         t * p.in.current.step + B::sample() * p.in.current.sample + B::first() * p.in.current.channel);
      float origin = 0.f, sum = 0.f, squares = 0.f;
      float4 next{};
#pragma unroll 1
      for (int k = -1; k < B::kSlots; ++k) {  // reads one four ahead
        const float4 x = next;
        if (k + 1 < B::kSlots) next = current(t, (k + 1) / kTiles, (k + 1) % kTiles);
        if (k < 0) {
          if (block.left(0) > 0) origin = next.x - shift;
          continue;
        }
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j < block.left(k / kTiles)) {
            const float d = component_of(x, j) - shift - origin;
            sum += d;
            squares += d * d * share;
          }
      }
      sum *= share;
      sums.mean[kCurrent] = origin + sum;
      sums.variance[kCurrent] = squares - sum * sum;
    }
    sums.publish(spreads);
    __syncthreads();
    sums.collect(spreads);

    Statistics<FastMath> stats[kNorms];
#pragma unroll
    for (int norm = 0; norm < kNorms; ++norm)
      if (p.in.norm_weight[norm]) {
        // below zero by rounding only; NaN stays NaN
        const float variance = sums.variance[norm] < 0.f ? 0.f : sums.variance[norm];
        const float mean = norm == kCurrent ? shift + sums.mean[norm] : sums.mean[norm];
        stats[norm] = {mean, norm == kCurrent ? (shift - mean) + sums.mean[norm] : 0.f,
                       1.f / sqrtf(variance + float(p.in.eps))};
      }
    if (p.norm_stats && threadIdx.x == 0) {
      double* out =
          p.norm_stats + ((t * p.in.shape.samples + B::sample()) * p.in.shape.groups + B::group()) * kNorms * 2;
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        out[2 * norm] = double(stats[norm].high) + double(stats[norm].low);
        out[2 * norm + 1] = double(stats[norm].rstd);
      }
    }

#pragma unroll 1
    for (int i = 0; i < Runs; ++i) {
      block.forget();
      const int left = block.left(i);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        const float4 input = current(t, i, m);
        const int slot = block.slot(i, m), c = m * 8 + block.row;
        float4 after = v[slot], u;
        unsigned fired = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const auto apply = [&](int norm, float x) {
            return ChannelNorm<FastMath>(stats[norm], affine[norm][0][c], affine[norm][1][c])(x);
          };
          float state[kStates] = {component(after, j)}, potential[kStates];
          // one by one: four of them would take registers that the gates need
          if constexpr (kStates > 1) state[1] = component(second[slot], j);
          const typename Cell::K k = coefficients<Cell>(constants, c);
          Cell::integrate(state, apply(kCurrent, component_of(input, j)), apply(kTemporal, z[0][j / 2][m][j % 2]),
                          apply(kSpatial, z[0][j / 2][m][2 + j % 2]), k, potential);
          fired |= unsigned(Cell::settle(potential, k, cell, state) != 0.f) << j;
          component(u, j) = potential[0];
          component(after, j) = state[0];
          if constexpr (kStates > 1) component(second[slot], j) = state[1];
        }
        v[slot] = after;
        const int64_t out = unit(t) + block.offset(i, m);
        float* seconds = p.potentials;  // a state that passes the reset as it is
        if constexpr (kStates > 1)
          if (seconds) seconds += unit(p.in.shape.steps);
        if (block.whole && left >= 4) {
          if (p.spikes) store_spikes(p.spikes, out, fired, storage);
          if (p.potentials) *reinterpret_cast<float4*>(p.potentials + out) = u;
          if constexpr (kStates > 1)
            if (seconds) *reinterpret_cast<float4*>(seconds + out) = second[slot];
          if (p.v_seq) *reinterpret_cast<float4*>(p.v_seq + out) = after;
        } else {
#pragma unroll 1
          for (int j = 0; j < 4 && j < left; ++j) {
            if (p.spikes) store_spike(p.spikes, out + j, fired >> j & 1u, storage);
            if (p.potentials) p.potentials[out + j] = component_of(u, j);
            if constexpr (kStates > 1)
              if (seconds) seconds[out + j] = component_of(second[slot], j);
            if (p.v_seq) p.v_seq[out + j] = component_of(after, j);
          }
        }
        const unsigned bits = block.channel_bits(fired);
        if (block.gathers(i)) {
          map.put(block.gathered(i), m, bits);
          if (p.packed_spikes) {
            const int64_t first =
                ((t * p.in.shape.samples + B::sample()) * p.in.shape.groups + B::group()) * block.pixels;
            const int pixel = block.y(i) * block.width + block.x(i) + block.row;
            p.packed_spikes[first * kTiles + (pixel * kTiles + m)] = uint8_t(bits);
          }
        }
      }
      // registers have no index: the gates of the next run move to where those of this one were
#pragma unroll
      for (int next = 1; next < Runs; ++next)
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
          for (int m = 0; m < kTiles; ++m)
#pragma unroll
            for (int e = 0; e < 4; ++e) z[next - 1][h][m][e] = z[next][h][m][e];
    }
    __syncthreads();
    if (t + 1 < int(p.in.shape.steps)) current.fetch(t + 1);
  }

#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        store4(p.states[k] + unit(0) + block.offset(i, m), (k ? second : v)[block.slot(i, m)], block.left(i),
               block.whole);
}

}  // namespace stc::cuda

// The persistent backward kernel: all steps of one (sample, group) from last to first in one block. Gates are computed
// again from the spikes; nothing but the current, u, the norms' statistics and the gradients that arrive is read.
//
// u' = dL/du_t of the step at hand lies on chip. Per step and thread block:
//   spikes before the step from u_{t-1} -> barrier -> gate convolutions -> sums over the group of the norms' gradients
//   -> barriers -> the same values again, now through the norms: grad_current, z' to global memory, and u' of step t-1
//   -> attached: the transposed convolutions of z', four output channels at a time through shared memory, give
//      s'_{t-1}, whose part of that u' is added
//
// The weight gradient is a second launch (weight_gradient.cuh) over z' and the spike bits that this one leaves behind.
#pragma once

#include "persistent.cuh"

namespace stc::cuda {

// The transposed convolutions as a matrix product. Neither operand is exact here: both are the sum of three bf16
// numbers, and the six products that matter are taken.
//
//   A rows     input channels;  K columns: four taps x four gate outputs (tap = k / 4, output = k % 4);  N: pixels
template <int Channels, int Kernel>
struct TransposedProduct {
  static constexpr int kChunk = 4;                       // gate outputs at a time
  static constexpr int kChunks = 2 * Channels / kChunk;  // of both pathways
  static constexpr int kTaps = Kernel * Kernel;
  static constexpr int kSteps = (kTaps + 3) / 4;  // along K, of one chunk
  static constexpr int kTerms = 3;
  static constexpr int kFragments = kChunks * kSteps * kTerms * 32;  // uint4, of one group
};

// The three bf16 numbers whose sum is x to 24 bits.
__device__ __forceinline__ uint16_t bf16_term(float x, int term) {
  __nv_bfloat16 part = __float2bfloat16_rn(x);
  for (int i = 0; i < term; ++i) {
    x -= __bfloat162float(part);
    part = __float2bfloat16_rn(x);
  }
  return __bfloat16_as_ushort(part);
}

__device__ __forceinline__ uint32_t bf16_pair(float low, float high, int term) {
  return uint32_t(bf16_term(low, term)) | uint32_t(bf16_term(high, term)) << 16;
}

constexpr int kPackTransposedThreads = 256;

// A fragments [group][chunk][step][term][lane]. Grid (groups, chunks).
template <int Channels, int Kernel>
__global__ void __launch_bounds__(kPackTransposedThreads)
    pack_transposed_weights(StcInputs<float> in, uint4* fragments) {
  using Product = TransposedProduct<Channels, Kernel>;
  const int chunk = int(blockIdx.y), output = chunk * Product::kChunk;
  const float* w = (output < Channels ? in.temporal_weight : in.spatial_weight) +
                   (int64_t(blockIdx.x) * Channels + output % Channels) * Channels * Product::kTaps;
  uint32_t* out = reinterpret_cast<uint32_t*>(fragments) +
                  (int64_t(blockIdx.x) * Product::kChunks + chunk) * Product::kSteps * Product::kTerms * 128;
  for (int i = threadIdx.x; i < Product::kSteps * 128; i += kPackTransposedThreads) {
    const int r = i % 4, lane = i / 4 % 32, step = i / 128, ci = lane / 4 + r % 2 * 8;
    float values[2] = {};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = 2 * (lane % 4) + e + r / 2 * 8, tap = step * 4 + k / 4;
      if (tap < Product::kTaps && ci < Channels)
        values[e] = w[(k % 4 * Channels + ci) * Product::kTaps + Product::kTaps - 1 - tap];
    }
#pragma unroll
    for (int term = 0; term < Product::kTerms; ++term)
      out[(step * Product::kTerms + term) * 128 + i % 128] = bf16_pair(values[0], values[1], term);
  }
}

// cached_u, cached_current: whether there is room on chip for u_{t-1} (else it is in slots.kept_u) and for the current.
template <int Channels, int Kernel, int Runs, bool Attached, class Cell>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    persistent_backward(StcBackward<float> p, PackedWeights packed, const uint4* transposed, BackwardTrace trace,
                        BackwardSlots slots, bool cached_u, bool cached_current) {
  using B = Block<Channels, Kernel, Runs>;
  using Product = typename B::Product;
  using Transposed = TransposedProduct<Channels, Kernel>;
  using Word = typename B::Word;
  using K = typename Cell::K;
  constexpr int kTiles = B::kTiles, kStates = Cell::kStates, kCoefficients = Cell::kCoefficients;
  static_assert(kStates <= 2 && Cell::kPotentials == kStates && kCoefficients <= kMaxCoefficients);
  constexpr int kSums = 2 * kNorms;  // of gradient x xhat, and of the gradient, for each norm

  GPU_SHARED(Word, words, [B::kWords]);
  GPU_SHARED(uint16_t, runs, [B::kMaxRuns]);
  GPU_SHARED(float, channel_sums, [Channels][kSums]);  // of this step
  GPU_SHARED(double, totals, [Channels][kSums]);       // of all steps so far
  GPU_SHARED(float, statistics, [kNorms][3]);          // high, low, rstd
  GPU_SHARED(float, means, [kNorms][2]);               // over the group, of weight x gradient and of that x xhat
  GPU_SHARED(float, affine, [kNorms][2][Channels]);    // weight, bias
  GPU_SHARED(float, constants, [1 + kCoefficients][Channels]);
  GPU_SHARED(BackwardSlots, of_block, );  // its part of them: read each time, it takes no registers
  gpu::SharedCarver carver;
  // Of the arrays of fours each element belongs to one thread.
  float4* grad_u = carver.take<float4>(B::kSlots * int(blockDim.x));
  // a run that is not whole sticks out of the last row
  const int area = (int(p.in.shape.height) + Kernel - 1) * (int(p.in.shape.width) + Kernel - 1) +
                   (p.in.shape.width % kRunPixels ? kRunPixels : 0);
  // In turn: [kMaxWarps][Channels][kSums] sums of the warps; [kTerms][area][kChunk] bf16 numbers of z', with a zero
  // halo
  float* arena = carver.take<float>(
      max(kMaxWarps * Channels * kSums, Attached ? Transposed::kTerms * area * Transposed::kChunk / 2 : 0));
  float4* grad_second = grad_u;
  if constexpr (kStates > 1)
    grad_second = slots.grad_second ? slots.grad_second + int64_t(B::index()) * B::kSlots * int(blockDim.x)
                                    : carver.take<float4>(B::kSlots * int(blockDim.x));
  // u of the step before the one at hand, or before the first step v; later ds/du of that step
  float4* kept = cached_u ? carver.take<float4>(B::kSlots * int(blockDim.x))
                          : slots.kept_u + int64_t(B::index()) * B::kSlots * int(blockDim.x);
  const auto kept_u = [&](int slot) -> float4& { return of_block.kept_u[slot]; };
  float4* kept_current = cached_current ? carver.take<float4>(B::kSlots * int(blockDim.x)) : grad_u;

  B block(p.in.shape, runs);
  const int steps = int(p.in.shape.steps);
  const Storage storage = p.in.storage;
  const Current<B> current(block, p.in, kept_current, cached_current);
  CellOptions<float> cell = p.in.cell;
  cell.spiking = true;  // soft spikes run on the general kernels
  const auto channel = [&](int m) { return B::first() + m * 8 + block.row; };
  // The first element of this unit at step t of a contiguous sequence.
  const auto unit = [&](int64_t t) {
    return ((t * p.in.shape.samples + B::sample()) * p.in.shape.channels + B::first()) * block.pixels;
  };
  const auto load = [&](const float* array, int i, int m) {
    return load4(array + block.offset(i, m), 1, block.left(i), block.whole);
  };
  const auto store = [&](float* array, int i, int m, const float4& value) {
    store4(array + block.offset(i, m), value, block.left(i), block.whole);
  };
  // Gradient so far of constant k, in the thread's channel of m tile m.
  const auto grad_constant = [&](int k, int m) -> float& {
    return of_block.constants[(k * kTiles + m) * int(blockDim.x) + int(threadIdx.x)];
  };
  // Gradient of u of step t from that which arrives at its v from later steps, and from outside at its spikes and v. A
  // second potential passes the reset as it is, and so does its gradient. Attached: leaves ds/du of step t as well, for
  // what comes through the gates.
  //
  // Like all that can, a loop that stays one: unrolled code would not fit the instruction cache.
  const auto fold = [&](int t) {
    const auto arriving = [&](int slot) {
      if (!p.grad_spikes_out.data) return make_float4(0.f, 0.f, 0.f, 0.f);
      return load4(block, p.grad_spikes_out, storage, t, B::sample(), channel(slot % kTiles), slot / kTiles);
    };
    float4 next{};
#pragma unroll 1
    for (int slot = -1; slot < B::kSlots; ++slot) {  // reads one four ahead
      const float4 grad_s = next;
      if (slot + 1 < B::kSlots) next = arriving(slot + 1);
      if (slot < 0) continue;
      const int i = slot / kTiles, m = slot % kTiles, place = block.slot(0, slot);
      float4 grad_v = grad_u[place], slopes;
      const float4 u = kept_u(place);
      if (p.grad_v_seq_out.data) {
        const float4 more = load4(block, p.grad_v_seq_out, Storage::kState, t, B::sample(), channel(m), i);
#pragma unroll
        for (int j = 0; j < 4; ++j) component(grad_v, j) += component_of(more, j);
      }
      const K k = coefficients<Cell>(constants, m * 8 + block.row);
      K grad{};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float potential[kStates] = {component_of(u, j)}, grad_state[kStates] = {component_of(grad_v, j)};
        float result[kStates];
        K of_neuron{};
        Cell::settle_backward(potential, component_of(grad_s, j), grad_state, k, cell, result, of_neuron);
        if (j < block.left(i)) grad.threshold += of_neuron.threshold;
        component(grad_v, j) = result[0];
        if constexpr (Attached) component(slopes, j) = Cell::spike_slope(potential[0], k.threshold, cell);
      }
      grad_u[place] = grad_v;
      if constexpr (Attached) kept_u(place) = slopes;
      if (p.grad_threshold) grad_constant(0, m) += grad.threshold;
    }
  };

  for (int i = threadIdx.x; i < B::kWords; i += blockDim.x) words[i] = 0;
  for (int i = threadIdx.x; i < Channels * kSums; i += blockDim.x) totals[i / kSums][i % kSums] = 0.0;
  load_affine<Channels>(p.in, B::first(), affine);
  load_constants<Cell>(p.in, B::first(), constants);
  if (threadIdx.x == 0) {
    of_block.kept_u = kept;
    of_block.constants = slots.constants + int64_t(B::index()) * (1 + kCoefficients) * kTiles * int(blockDim.x);
  }
  __syncthreads();
  if (slots.constants)
    for (int k = 0; k < (1 + kCoefficients) * kTiles; ++k) grad_constant(0, k) = 0.f;
  if (steps > 0) current.fetch(steps - 1);
#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m) {
      const auto upstream = [&](int k) {
        const Strided<const float>& grad = p.grad_states_out[k];
        return grad.data ? load4(block, grad, Storage::kState, 0, B::sample(), channel(m), i)
                         : make_float4(0.f, 0.f, 0.f, 0.f);
      };
      if constexpr (kStates > 1) grad_second[block.slot(i, m)] = upstream(1);
      grad_u[block.slot(i, m)] = upstream(0);
      if (steps > 0) kept_u(block.slot(i, m)) = load(p.potentials + unit(steps - 1), i, m);
    }
  if (steps > 0) fold(steps - 1);

#pragma unroll 1
  for (int t = steps - 1; t >= 0; --t) {
    block.forget();
    if (threadIdx.x < kNorms) {
      const double* stats =
          p.norm_stats +
          (((t * p.in.shape.samples + B::sample()) * p.in.shape.groups + B::group()) * kNorms + threadIdx.x) * 2;
      Moments moments;
      moments.mean = stats[0];
      moments.rstd = stats[1];
      const Statistics<FastMath> s(moments);
      statistics[threadIdx.x][0] = s.high;
      statistics[threadIdx.x][1] = s.low;
      statistics[threadIdx.x][2] = s.rstd;
    }
    const auto state_before = [&](int slot) {
      const int i = slot / kTiles, m = slot % kTiles;
      if (t > 0) return load(p.potentials + unit(t - 1), i, m);
      if (p.in.states[0].data) return load4(block, p.in.states[0], Storage::kState, 0, B::sample(), channel(m), i);
      return make_float4(0.f, 0.f, 0.f, 0.f);
    };
    float4 next{};
#pragma unroll 1
    for (int slot = -1; slot < B::kSlots; ++slot) {  // reads one four ahead
      float4 before = next;
      if (slot + 1 < B::kSlots) next = state_before(slot + 1);
      if (slot < 0) continue;
      const int i = slot / kTiles, m = slot % kTiles;
      unsigned fired = 0;
      if (t > 0) {
#pragma unroll
        for (int j = 0; j < 4; ++j) fired |= unsigned(component(before, j) >= constants[0][m * 8 + block.row]) << j;
      } else if (p.in.spikes.data) {
        float4 spikes = load4(block, p.in.spikes, storage, 0, B::sample(), channel(m), i);
#pragma unroll
        for (int j = 0; j < 4; ++j) fired |= unsigned(component(spikes, j) != 0.f) << j;
      }
      kept_u(block.slot(0, slot)) = before;
      block.put_spikes(words, i, m, fired);
    }
    __syncthreads();
    {
      Word* out = reinterpret_cast<Word*>(trace.spikes) +
                  ((t * p.in.shape.samples + B::sample()) * p.in.shape.groups + B::group()) * block.pixels;
      for (int i = threadIdx.x; i < block.pixels; i += blockDim.x)
        out[i] = words[(i / block.width + B::kPad) * block.stride + i % block.width + B::kPad];
    }

    const auto statistics_of = [&](int norm) {
      return Statistics<FastMath>(statistics[norm][0], statistics[norm][1], statistics[norm][2]);
    };
    float z[Runs][2][kTiles][4];
    {
      const uint4* fragments = packed.fragments + B::group() * Product::kFragments;
      block.convolve(words, p.in.short_weights ? 1 : 2, [&](int i) { return __ldg(fragments + i); }, z);
    }
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int path = 0; path < 2; ++path) {
        const float scale = packed.scale[(B::group() * 2 + path) * Channels + m * 8 + block.row];
        const Statistics<FastMath> of_path = statistics_of(kTemporal + path);
#pragma unroll
        for (int i = 0; i < Runs; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float& value = z[i][j / 2][m][2 * path + j % 2];
            value = of_path.centre(value * scale) * of_path.rstd;  // zhat
          }
      }
    current.arrive();
    block.forget();

    // The second potential of step t, or for t < 0 the second state before the first step; only the gradients of the
    // coefficients want them.
    const auto load_second = [&](int t, int i, int m, int j) {
      block.forget();
      if (j >= block.left(i)) return 0.f;
      if (t >= 0) return p.potentials[unit(p.in.shape.steps + t) + block.offset(i, m) + j];
      const Strided<const float>& x = p.in.states[1];
      return x.data ? x.data[place4(block, x, 0, B::sample(), channel(m), i) + j * x.column] : 0.f;
    };

    // The neurons are visited twice or three times, by the same code: it is long, and the instruction cache is small.
    //   kCoefficientPass  the gradients of the coefficients, where they are wanted
    //   kSumPass          sums over the group of the norms' gradients; per channel first, which the norms' parameters
    //                     want
    //   kGradientPass     the gradients themselves
    enum { kCoefficientPass, kSumPass, kGradientPass };
#pragma unroll 1
    for (int pass = kCoefficients > 0 && p.grad_coefficients ? kCoefficientPass : kSumPass; pass <= kGradientPass;
         ++pass) {
#pragma unroll 1
      for (int m = 0; m < kTiles; ++m) {
        float sums[kSums] = {};
#pragma unroll 1
        for (int i = 0; i < Runs; ++i) {
          block.forget();
          const int slot = block.slot(i, m);
          const float4 before = kept_u(slot), input = current(t, i, m), gu = grad_u[slot];
          float4 grad_current, grad_v;
          float of_coefficients[kCoefficients > 0 ? kCoefficients : 1] = {};
          int c = m * 8 + block.row;
          const auto zhat = [&](int path, int j) -> float& { return z[0][j / 2][0][2 * path + j % 2]; };
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const Statistics<FastMath> of_current = statistics_of(kCurrent);
            const float xhat[kNorms] = {of_current.centre(component_of(input, j)) * of_current.rstd, zhat(0, j),
                                        zhat(1, j)};
            gpu::forget(c);
            const K k = coefficients<Cell>(constants, c);
            float normed[kNorms];
#pragma unroll
            for (int norm = 0; norm < kNorms; ++norm)
              normed[norm] = xhat[norm] * affine[norm][0][c] + affine[norm][1][c];
            float state[kStates] = {component_of(before, j)}, potential[kStates] = {}, grad[kStates];
            float grad_before[kStates];
            // one by one: fours of them would take registers that the gates need
            if constexpr (kStates > 1) {
              if (pass == kCoefficientPass) {
                state[1] = load_second(t - 1, i, m, j);
                potential[1] = load_second(t, i, m, j);
              } else {
                state[1] = 0.f;
              }
              grad[1] = component(grad_second[slot], j);
            }
            if (t > 0) {
              const float fired = Cell::fire(state[0], k.threshold, cell);
              state[0] = Cell::reset(state[0], fired, k.threshold, cell);
            }
            grad[0] = component_of(gu, j);
            K grad_k{};
            const CircuitGradients<float> g = Cell::integrate_backward(
                state, normed[kCurrent], normed[kTemporal], normed[kSpatial], potential, grad, k, grad_before, grad_k);
            const float grads[kNorms] = {g.current, g.temporal, g.spatial};
            if (pass == kGradientPass) {
              component(grad_v, j) = grad_before[0];
              if constexpr (kStates > 1) component(grad_second[slot], j) = grad_before[1];
              const auto through_norm = [&](int norm) {
                const ChannelNorm<FastMath> f(Statistics<FastMath>(0.f, 0.f, statistics[norm][2]), affine[norm][0][c],
                                              0.f);
                return f.backward(grads[norm], xhat[norm], means[norm][0], means[norm][1]);
              };
              component(grad_current, j) = through_norm(kCurrent);
              zhat(0, j) = through_norm(kTemporal);  // z' in the place of zhat, which nobody needs any more
              zhat(1, j) = through_norm(kSpatial);
            } else if (j < block.left(i)) {
#pragma unroll
              for (int norm = 0; norm < kNorms; ++norm) {
                sums[2 * norm] += grads[norm] * xhat[norm];
                sums[2 * norm + 1] += grads[norm];
              }
#pragma unroll
              for (int k = 0; k < kCoefficients; ++k) of_coefficients[k] += grad_k.of[k];
            }
          }
          if (kCoefficients > 0 && pass == kCoefficientPass)
#pragma unroll
            for (int k = 0; k < kCoefficients; ++k) grad_constant(1 + k, m) += of_coefficients[k];
          if (pass == kGradientPass) {
            block.forget();
            store4(p.grad_current, unit(t) + block.offset(i, m), grad_current, block.left(i), block.whole, storage);
#pragma unroll
            for (int path = 0; path < 2; ++path)
              store(trace.grad_gates[path] + unit(t), i, m,
                    make_float4(zhat(path, 0), zhat(path, 1), zhat(path, 2), zhat(path, 3)));
            grad_u[slot] = grad_v;
          }
          // Registers have no index: the gates of the next run come to where those of this one were, and these to the
          // end.
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float first = z[0][h][0][e];
#pragma unroll
              for (int next = 1; next < Runs; ++next) z[next - 1][h][0][e] = z[next][h][0][e];
              z[Runs - 1][h][0][e] = first;
            }
        }
        // and those of the next m tile to where those of this one were
#pragma unroll
        for (int i = 0; i < Runs; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const float first = z[i][h][0][e];
              z[i][h][0][e] = z[i][h][kTiles - 1][e];
              z[i][h][kTiles - 1][e] = first;
            }
        if (pass == kSumPass)
#pragma unroll
          for (int k = 0; k < kSums; ++k) {
            sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], 1);
            sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], 2);
            if (block.quad == 0) arena[(B::warp() * Channels + m * 8 + block.row) * kSums + k] = sums[k];
          }
      }
      if (pass != kSumPass) continue;
      __syncthreads();
      for (int i = threadIdx.x; i < Channels * kSums; i += blockDim.x) {
        float sum = 0.f;
        for (int w = 0; w < int(blockDim.x) / 32; ++w) sum += arena[w * Channels * kSums + i];
        channel_sums[i / kSums][i % kSums] = sum;
        totals[i / kSums][i % kSums] += double(sum);
      }
      __syncthreads();
      if (threadIdx.x < 2 * kNorms) {
        const int norm = threadIdx.x / 2, product = 1 - threadIdx.x % 2;
        float mean = 0.f;
        if (p.in.norm_weight[norm])
          for (int c = 0; c < Channels; ++c)
            mean += affine[norm][0][c] * channel_sums[c][2 * norm + 1 - product] / float(Channels * block.pixels);
        means[norm][product] = mean;
      }
      __syncthreads();
    }
    // before the first step is nothing but the states, whose gradient this is
    if (t > 0) fold(t - 1);
    if (t > 0) current.fetch(t - 1);

    if constexpr (Attached) {
      if (t > 0 || p.grad_spikes) {
        uint32_t* map = reinterpret_cast<uint32_t*>(arena);  // pairs of bf16 numbers
        for (int i = threadIdx.x; i < Transposed::kTerms * area * Transposed::kChunk / 2; i += blockDim.x) map[i] = 0u;
        // Tensor cores cut sums off. So the five products with a small factor, most of all, have sums of their own,
        // where that costs nothing.
        float sum[Runs][2][4], small[Runs][2][4];
#pragma unroll
        for (int i = 0; i < Runs; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[i][h][e] = small[i][h][e] = 0.f;
#pragma unroll 1
        for (int chunk = 0; chunk < Transposed::kChunks; ++chunk) {
          __syncthreads();  // the map is zero, or the products of the chunk before are done
          const int output = chunk * Transposed::kChunk, path = output / Channels, c = output % Channels;
          if (block.row / 4 == c % 8 / 4) {
            // threads that own a channel of this chunk spread what they stored
            uint16_t* numbers = reinterpret_cast<uint16_t*>(map);
#pragma unroll
            for (int i = 0; i < Runs; ++i) {
              const float4 g = load((path ? trace.grad_gates[1] : trace.grad_gates[0]) + unit(t), i, c / 8);
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                if (j >= block.left(i)) continue;
                const int position = (block.y(i) + B::kPad) * block.stride + block.x(i) + j + B::kPad;
                for (int term = 0; term < Transposed::kTerms; ++term)
                  numbers[(term * area + position) * Transposed::kChunk + block.row % 4] =
                      bf16_term(component_of(g, j), term);
              }
            }
          }
          __syncthreads();
          const uint4* a_chunk = transposed + B::group() * Transposed::kFragments +
                                 chunk * Transposed::kSteps * Transposed::kTerms * 32 + block.lane;
#pragma unroll 1
          for (int s = 0; s < Transposed::kSteps; ++s) {
            // nvcc would keep addresses for the whole loop, and spill them
            block.forget();
            uint4 a[Transposed::kTerms];
#pragma unroll
            for (int term = 0; term < Transposed::kTerms; ++term)
              a[term] = __ldg(a_chunk + (s * Transposed::kTerms + term) * 32);
            // columns 2q, 2q + 1 of K are tap q / 2, and those of the upper half two taps later; past the last tap the
            // weights are zero
            const int tap = min(s * 4 + block.quad / 2, Transposed::kTaps - 1);
            const int later = min(s * 4 + block.quad / 2 + 2, Transposed::kTaps - 1);
            const int offset = tap / Kernel * block.stride + tap % Kernel;
            const int later_offset = later / Kernel * block.stride + later % Kernel;
#pragma unroll
            for (int i = 0; i < Runs; ++i)
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                const int origin = block.origin(i) + 2 * h;
                uint2 b[Transposed::kTerms];
#pragma unroll
                for (int term = 0; term < Transposed::kTerms; ++term)
                  b[term] = make_uint2(map[(term * area + origin + offset) * 2 + block.quad % 2],
                                       map[(term * area + origin + later_offset) * 2 + block.quad % 2]);
#pragma unroll
                for (int total = Transposed::kTerms - 1; total >= 0; --total)
#pragma unroll
                  for (int term = 0; term <= total; ++term)
                    gpu::mma_m16n8k16_bf16(total ? small[i][h] : sum[i][h], a[term], b[total - term]);
              }
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < Runs; ++i) {
            float4 grad_s;
#pragma unroll
            for (int j = 0; j < 4; ++j)
              component(grad_s, j) = sum[i][j / 2][2 * m + j % 2] + small[i][j / 2][2 * m + j % 2];
            if (t > 0) {
              block.forget();
              const float4 slopes = kept_u(block.slot(i, m));
              float4 total = grad_u[block.slot(i, m)];
              float sum = 0.f;
#pragma unroll
              for (int j = 0; j < 4; ++j) {
                const float part = component_of(grad_s, j) * component_of(slopes, j);
                component(total, j) += part;
                if (j < block.left(i)) sum += part;
              }
              grad_u[block.slot(i, m)] = total;
              if (p.grad_threshold) grad_constant(0, m) -= sum;
            } else {
              kept_u(block.slot(i, m)) = grad_s;
            }
          }
        if (t == 0)
#pragma unroll 1
          for (int slot = 0; slot < B::kSlots; ++slot)
            store4(p.grad_spikes, unit(0) + block.offset(slot / kTiles, slot % kTiles), kept_u(block.slot(0, slot)),
                   block.left(slot / kTiles), block.whole, storage);
      }
    }
    __syncthreads();  // statistics, words and the arena are free for the next step
  }

#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int k = 0; k < kStates; ++k)
        store(p.grad_states[k] + unit(0), i, m, (k ? grad_second : grad_u)[block.slot(i, m)]);
  double* partial_sums = trace.partial_sums + (B::sample() * p.in.shape.channels + B::first()) * kChannelSums;
  for (int i = threadIdx.x; i < Channels * kSums; i += blockDim.x)
    partial_sums[i / kSums * kChannelSums + i % kSums] = totals[i / kSums][i % kSums];
  if (!slots.constants) return;
#pragma unroll 1
  for (int k = 0; k <= kCoefficients; ++k) {
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float sum = grad_constant(k, m);
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (block.quad == 0) arena[B::warp() * Channels + m * 8 + block.row] = sum;
    }
    __syncthreads();
    for (int c = threadIdx.x; c < Channels; c += blockDim.x) {
      double sum = 0.0;
      for (int w = 0; w < int(blockDim.x) / 32; ++w) sum += double(arena[w * Channels + c]);
      partial_sums[c * kChannelSums + kThresholdSum + k] = sum;
    }
    __syncthreads();
  }
}

}  // namespace stc::cuda

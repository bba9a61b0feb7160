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

// What the backward kernel leaves for the weight gradient, in device memory.
struct BackwardTrace {
  float* grad_gates[2];   // z' of both gates: [T, N, C, H, W]
  uint8_t* spikes;        // s_{t-1}, one word of Channels bits a pixel: [T, N, groups, H, W]
  double* partial_norms;  // [N, C, kNorms, 2] = weight, bias; summed over the steps
};

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

// A fragments [group][chunk][step][term][lane]; one block a group.
template <int Channels, int Kernel>
__global__ void __launch_bounds__(kPackThreads) pack_transposed_weights(StcInputs<float> in, uint4* fragments) {
  using Product = TransposedProduct<Channels, Kernel>;
  const int64_t first = int64_t(blockIdx.x) * Channels;
  uint32_t* out = reinterpret_cast<uint32_t*>(fragments + int64_t(blockIdx.x) * Product::kFragments);
  for (int i = threadIdx.x; i < Product::kFragments * 4; i += blockDim.x) {
    const int r = i % 4, lane = i / 4 % 32, term = i / 128 % Product::kTerms;
    const int step = i / 128 / Product::kTerms % Product::kSteps, chunk = i / 128 / Product::kTerms / Product::kSteps;
    const int ci = lane / 4 + r % 2 * 8, output = chunk * Product::kChunk, path = output / Channels;
    const float* w = path ? in.spatial_weight : in.temporal_weight;
    uint32_t pair = 0;
    for (int e = 0; e < 2; ++e) {
      const int k = 2 * (lane % 4) + e + r / 2 * 8, tap = step * 4 + k / 4, co = output % Channels + k % 4;
      if (tap >= Product::kTaps || ci >= Channels) continue;
      const float value = w[((first + co) * Channels + ci) * Product::kTaps + Product::kTaps - 1 - tap];
      pair |= uint32_t(bf16_term(value, term)) << (16 * e);
    }
    out[i] = pair;
  }
}

// cached_u, cached_current: whether there is room on chip for u_{t-1} and for the current.
template <int Channels, int Kernel, int Runs, bool Attached>
__global__ void __launch_bounds__(kMaxWarps * 32, 1)
    persistent_backward(StcBackward<float> p, PackedWeights packed, const uint4* transposed, BackwardTrace trace,
                        bool cached_u, bool cached_current) {
  using B = Block<Channels, Kernel, Runs>;
  using Product = typename B::Product;
  using Transposed = TransposedProduct<Channels, Kernel>;
  using Word = typename B::Word;
  using Cell = StcLif<FastMath>;
  constexpr int kTiles = B::kTiles;
  constexpr int kSums = 2 * kNorms;  // of gradient x xhat, and of the gradient, for each norm

  GPU_SHARED(Word, words, [B::kWords]);
  GPU_SHARED(uint16_t, runs, [B::kMaxRuns]);
  GPU_SHARED(float, channel_sums, [Channels][kSums]);  // of this step
  GPU_SHARED(double, totals, [Channels][kSums]);       // of all steps so far
  GPU_SHARED(float, statistics, [kNorms][3]);          // high, low, rstd
  GPU_SHARED(float, means, [kNorms][2]);               // over the group, of weight x gradient and of that x xhat
  GPU_SHARED(float, affine, [kNorms][2][Channels]);    // weight, bias
  gpu::SharedCarver carver;
  // Of these arrays each element belongs to one thread.
  float4* grad_u = carver.take<float4>(B::kSlots * int(blockDim.x));
  float4* kept_u = cached_u ? carver.take<float4>(B::kSlots * int(blockDim.x)) : grad_u;
  float4* kept_current = cached_current ? carver.take<float4>(B::kSlots * int(blockDim.x)) : grad_u;
  // a run that is not whole sticks out of the last row
  const int area = (int(p.in.shape.height) + Kernel - 1) * (int(p.in.shape.width) + Kernel - 1) +
                   (p.in.shape.width % kRunPixels ? kRunPixels : 0);
  // In turn: [kMaxWarps][Channels][kSums] sums of the warps; [kTerms][area][kChunk] bf16 numbers of z', with a zero
  // halo
  float* arena = carver.take<float>(
      max(kMaxWarps * Channels * kSums, Attached ? Transposed::kTerms * area * Transposed::kChunk / 2 : 0));

  B block(p.in.shape, runs);
  const int steps = int(p.in.shape.steps);
  const Storage storage = p.in.storage;
  const uint4* fragments = packed.fragments + B::group() * Product::kFragments;
  const Current<B> current(block, p.in, kept_current, cached_current);
  CellOptions<float> cell = p.in.cell;
  cell.spiking = true;  // soft spikes run on the general kernels
  const auto channel = [&](int m) { return B::first() + m * 8 + block.row; };
  // The first element of this unit at step t of a contiguous sequence.
  const auto unit = [&](int64_t t) {
    return ((t * p.in.shape.samples + B::sample()) * p.in.shape.channels + B::first()) * block.pixels;
  };
  const auto load = [&](const float* array, int i, int m) {
    return load4(array + block.offset(i, m), 1, block.valid(i), block.whole);
  };
  const auto store = [&](float* array, int i, int m, const float4& value) {
    store4(array + block.offset(i, m), value, block.valid(i), block.whole);
  };
  // u' of step t from the gradient that arrives at its v from later steps, and from outside at its spikes and v.
  const auto fold = [&](int t, int i, int m, const float4& u, float4 grad_v) {
    float4 grad_s = make_float4(0.f, 0.f, 0.f, 0.f);
    if (p.grad_spikes_out.data) grad_s = load4(block, p.grad_spikes_out, storage, t, B::sample(), channel(m), i);
    if (p.grad_v_seq_out.data) {
      const float4 more = load4(block, p.grad_v_seq_out, Storage::kState, t, B::sample(), channel(m), i);
#pragma unroll
      for (int j = 0; j < 4; ++j) component(grad_v, j) += component_of(more, j);
    }
    float4 result;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      component(result, j) = Cell::grad_u(component_of(u, j), component_of(grad_s, j), component_of(grad_v, j), cell);
    grad_u[block.slot(i, m)] = result;
  };

  for (int i = threadIdx.x; i < B::kWords; i += blockDim.x) words[i] = 0;
  for (int i = threadIdx.x; i < Channels * kSums; i += blockDim.x) totals[i / kSums][i % kSums] = 0.0;
  load_affine<Channels>(p.in, B::first(), affine);
  __syncthreads();
  if (steps > 0) current.fetch(steps - 1);
#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m) {
      float4 grad_v = make_float4(0.f, 0.f, 0.f, 0.f);
      if (p.grad_v_out.data) grad_v = load4(block, p.grad_v_out, Storage::kState, 0, B::sample(), channel(m), i);
      if (steps > 0)
        fold(steps - 1, i, m, load(p.u + unit(steps - 1), i, m), grad_v);
      else
        grad_u[block.slot(i, m)] = grad_v;
    }

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
#pragma unroll 1
    for (int i = 0; i < Runs; ++i)
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        unsigned fired = 0;
        float4 before = make_float4(0.f, 0.f, 0.f, 0.f);
        if (t > 0) {
          before = load(p.u + unit(t - 1), i, m);
          if (cached_u) kept_u[block.slot(i, m)] = before;
        } else if (p.in.spikes.data) {
          before = load4(block, p.in.spikes, storage, 0, B::sample(), channel(m), i);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float value = component(before, j);
          const bool spike = t > 0 ? value >= cell.threshold : value != 0.f;
          fired |= unsigned(spike && j < block.valid(i)) << j;
        }
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
    block.convolve(words, p.in.short_weights ? 1 : 2, [&](int i) { return __ldg(fragments + i); }, z);
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

    // u_{t-1}; before the first step v.
    const auto load_before = [&](int i, int m) {
      if (t > 0) return cached_u ? kept_u[block.slot(i, m)] : load(p.u + unit(t - 1), i, m);
      if (p.in.v.data) return load4(block, p.in.v, Storage::kState, 0, B::sample(), channel(m), i);
      return make_float4(0.f, 0.f, 0.f, 0.f);
    };
    // Calls use(j, xhat of the three norms, gradients of the cell) for the four neurons of (run i, m tile m).
    const auto visit = [&](int i, int m, auto use) {
      block.forget();
      const float4 before = load_before(i, m);
      const int c = m * 8 + block.row;
      const float4 input = current(t, i, m), gu = grad_u[block.slot(i, m)];
      const Statistics<FastMath> of_current = statistics_of(kCurrent);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float xhat[kNorms] = {of_current.centre(component_of(input, j)) * of_current.rstd, z[i][j / 2][m][j % 2],
                                    z[i][j / 2][m][2 + j % 2]};
        float normed[kNorms];
#pragma unroll
        for (int norm = 0; norm < kNorms; ++norm) normed[norm] = xhat[norm] * affine[norm][0][c] + affine[norm][1][c];
        const float x = component_of(before, j);
        const float v_before = t > 0 ? Cell::reset(x, Cell::fire(x, cell), cell) : x;
        use(j, xhat,
            Cell::backward(v_before, normed[kCurrent], normed[kTemporal], normed[kSpatial], component_of(gu, j)));
      }
      return before;
    };

    // Sums over the group; per channel first, which the norms' parameters want.
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float sums[kSums] = {};
#pragma unroll
      for (int i = 0; i < Runs; ++i)
        visit(i, m, [&](int j, const float (&xhat)[kNorms], const typename Cell::Gradients& g) {
          if (j >= block.valid(i)) return;
          const float grads[kNorms] = {g.current, g.temporal, g.spatial};
#pragma unroll
          for (int norm = 0; norm < kNorms; ++norm) {
            sums[2 * norm] += grads[norm] * xhat[norm];
            sums[2 * norm + 1] += grads[norm];
          }
        });
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], 1);
        sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], 2);
        if (block.quad == 0) arena[(threadIdx.x / 32 * Channels + m * 8 + block.row) * kSums + k] = sums[k];
      }
    }
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

#pragma unroll
    for (int m = 0; m < kTiles; ++m)
#pragma unroll
      for (int i = 0; i < Runs; ++i) {
        float4 out[kNorms], grad_v;
        const float4 before = visit(i, m, [&](int j, const float (&xhat)[kNorms], const typename Cell::Gradients& g) {
          const float grads[kNorms] = {g.current, g.temporal, g.spatial};
          component(grad_v, j) = g.v;
#pragma unroll
          for (int norm = 0; norm < kNorms; ++norm) {
            const ChannelNorm<FastMath> f(Statistics<FastMath>(0.f, 0.f, statistics[norm][2]),
                                          affine[norm][0][m * 8 + block.row], 0.f);
            component(out[norm], j) = f.backward(grads[norm], xhat[norm], means[norm][0], means[norm][1]);
          }
        });
        store4(p.grad_current, unit(t) + block.offset(i, m), out[kCurrent], block.valid(i), block.whole, storage);
        store(trace.grad_gates[0] + unit(t), i, m, out[kTemporal]);
        store(trace.grad_gates[1] + unit(t), i, m, out[kSpatial]);
        if (t > 0)
          fold(t - 1, i, m, before, grad_v);
        else
          grad_u[block.slot(i, m)] = grad_v;  // nothing is before the first step but v
      }
    if (t > 0) current.fetch(t - 1);

    if constexpr (Attached) {
      if (t > 0 || p.grad_spikes) {
        uint32_t* map = reinterpret_cast<uint32_t*>(arena);  // pairs of bf16 numbers
        for (int i = threadIdx.x; i < Transposed::kTerms * area * Transposed::kChunk / 2; i += blockDim.x) map[i] = 0u;
        float sum[Runs][2][4];
#pragma unroll
        for (int i = 0; i < Runs; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[i][h][e] = 0.f;
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
                if (j >= block.valid(i)) continue;
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
                  for (int term = 0; term <= total; ++term) gpu::mma_m16n8k16_bf16(sum[i][h], a[term], b[total - term]);
              }
          }
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int i = 0; i < Runs; ++i) {
            const float4 grad_s =
                make_float4(sum[i][0][2 * m], sum[i][0][2 * m + 1], sum[i][1][2 * m], sum[i][1][2 * m + 1]);
            if (t > 0) {
              block.forget();
              const float4 u = load_before(i, m);
              float4 total = grad_u[block.slot(i, m)];
#pragma unroll
              for (int j = 0; j < 4; ++j)
                component(total, j) += component_of(grad_s, j) * Cell::spike_slope(component_of(u, j), cell);
              grad_u[block.slot(i, m)] = total;
            } else {
              store4(p.grad_spikes, unit(0) + block.offset(i, m), grad_s, block.valid(i), block.whole, storage);
            }
          }
      }
    }
    __syncthreads();  // statistics, words and the arena are free for the next step
  }

#pragma unroll 1
  for (int i = 0; i < Runs; ++i)
#pragma unroll 1
    for (int m = 0; m < kTiles; ++m) store(p.grad_v + unit(0), i, m, grad_u[block.slot(i, m)]);
  for (int i = threadIdx.x; i < Channels * kSums; i += blockDim.x)
    trace.partial_norms[((B::sample() * p.in.shape.channels + B::first() + i / kSums) * kNorms) * 2 + i % kSums] =
        totals[i / kSums][i % kSums];
}

}  // namespace stc::cuda

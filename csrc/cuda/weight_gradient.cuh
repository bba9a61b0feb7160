// The weight gradient of the persistent backward pass: W'[output][input][tap] = sum over steps, samples and pixels of
// z'[output][pixel] s[input][pixel + tap], as matrix products with an exact operand.
//
//   A rows: gate outputs, the temporal ones first;  N columns: input channels;  K columns: 16 pixels of a row, column
//   2q + e of the lower half = pixel 4q + e, of the upper half = pixel 4q + 2 + e, so that a thread reads four
//   neighbours
//
// z' needs range: it is the sum of three bf16 numbers. Each warp splits one m tile of a run of pixels into those and
// puts the fragments into shared memory, for all; then it multiplies one m tile with one kernel row, over a part of the
// runs. The z' of the next batch of runs is on its way meanwhile. Tensor cores cut sums off instead of rounding them,
// so they add no more than one run; the sums of the runs are ordinary ones. The parts of a block are added in shared
// memory, and the sums of the blocks by a second kernel, all in a fixed order.
#pragma once

#include "launcher.h"
#include "persistent_backward.cuh"

namespace stc::cuda {

template <int Channels, int Kernel>
struct WeightProduct {
  static constexpr int kOutputTiles = Channels / 8;     // m tiles: 2 * Channels outputs
  static constexpr int kInputTiles = Channels / 8;      // n tiles
  static constexpr int kTiles = kOutputTiles * Kernel;  // m tile and kernel row: of a warp
  static constexpr int kParts = 4 / kOutputTiles;       // of the runs of a batch
  static constexpr int kWarps = kTiles * kParts;        // 4 * Kernel: as many in each quarter of a multiprocessor
  static constexpr int kBatch = kWarps / kOutputTiles;  // runs of which the fragments are in shared memory together
  static constexpr int kTerms = 3;
  static constexpr int kSums = Kernel * kInputTiles;                          // fours of sums of a thread
  static constexpr int kWeights = 2 * Channels * Channels * Kernel * Kernel;  // of one group, both pathways
  static_assert(kTiles * kSums * 32 * 4 == kWeights);
  // Two batches; at the end the sums of all parts but one.
  static constexpr int kFragments = 2 * kWarps * kTerms * 32;  // uint4
  static constexpr int kArriving = kWarps * 2 * 32;            // float4, z' of one batch
  static constexpr size_t kDynamicBytes = (kFragments + kArriving) * sizeof(uint4);
  static_assert((kParts - 1) * kTiles * kSums * 32 <= kFragments);
};

// The spikes of Kernel + 3 neighbouring pixels that a thread's four see of one kernel row.
template <int Channels>
struct SpikeSpan;
template <>
struct SpikeSpan<16> {
  using Four = uint2;
  Four of[2];
  // In the lower half the spikes of pixel i, in the upper half those of pixel i + 1.
  __device__ __forceinline__ uint32_t pair(int i) const {
    const uint32_t word[] = {of[0].x, of[0].y, of[1].x, of[1].y};
    return i % 2 ? __byte_perm(word[i / 2], word[i / 2 + 1], 0x5432) : word[i / 2];
  }
};
template <>
struct SpikeSpan<8> {
  using Four = uint32_t;
  Four of[2];
  __device__ __forceinline__ uint32_t pair(int i) const { return __byte_perm(of[0], of[1], i | (i + 1) << 8); }
};

// Two numbers as pairs of their bf16 terms: cut off, eight of the 24 bits each, so that nothing is lost.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t (&terms)[3]) {
#pragma unroll
  for (int term = 0; term < 3; ++term) {
    terms[term] = __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
    low -= __uint_as_float(__float_as_uint(low) & 0xFFFF0000u);
    high -= __uint_as_float(__float_as_uint(high) & 0xFFFF0000u);
  }
}

// Grid (groups, splits): split k takes the (step, sample) pairs k, k + splits, ... partial: [splits, groups, m tile,
// kernel row, kernel column, n tile, lane], four accumulators each.
template <int Channels, int Kernel>
__global__ void __launch_bounds__(WeightProduct<Channels, Kernel>::kWarps * 32)
    weight_gradient_partials(Shape shape, BackwardTrace trace, float4* partial) {
  using Product = WeightProduct<Channels, Kernel>;
  using Word = typename SpikeWord<Channels>::type;
  using Span = SpikeSpan<Channels>;
  constexpr int kPad = Kernel / 2, kThreads = Product::kWarps * 32;
  // A row is a multiple of four pixels, and so a thread's four and those right of them are two accesses.
  constexpr int kMaxStride = (kMaxMap + Kernel - 1 + 3) / 4 * 4;
  GPU_SHARED(alignas(16) Word, words, [2][(kMaxMap + Kernel - 1) * kMaxStride + kRunPixels]);
  GPU_SHARED(alignas(4) Word, map, [kMaxMap * kMaxMap]);  // of the next pair, each word its thread's own
  gpu::SharedCarver carver;
  uint4* fragments = carver.take<uint4>(Product::kFragments);  // [2][run][m tile][term][lane]
  float4* arriving = carver.take<float4>(Product::kArriving);  // [run][m tile][2][lane], each its thread's own

  const int height = int(shape.height), width = int(shape.width), pixels = height * width;
  const int stride = (width + Kernel - 1 + 3) / 4 * 4;
  const int wide = width > kRunPixels;  // a row is two runs
  const int runs = height << wide;
  const int pairs = int(shape.steps * shape.samples), map_batches = (runs + Product::kBatch - 1) / Product::kBatch;
  const int copied = pixels % (4 / sizeof(Word)) ? 1 : 4 / sizeof(Word);  // words of the map at a time
  // Asked each time, outside the products: as variables what follows from it would take registers.
  const auto thread = [] {
    int x = int(threadIdx.x);
    gpu::forget(x);
    return x;
  };

  // Starts to fetch the next batch: z' of the warp's run and m tile, at its start also the spikes of the map.
  const auto fetch = [&](int batch) {
    const int pair = int(blockIdx.y) + batch / map_batches * int(gridDim.y);
    const int base = batch % map_batches * Product::kBatch;
    if (pair >= pairs) return;
    const int warp = thread() / 32, lane = thread() % 32, run = base + warp / Product::kOutputTiles;
    if (run < runs) {
      const int x = (run & wide) * kRunPixels + lane % 4 * 4, left = width - x;
      const bool whole = (width | pixels) % 4 == 0 && left >= 4;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const int output = warp % Product::kOutputTiles * 16 + half * 8 + lane / 4;
        const int64_t channel = int64_t(pair) * shape.channels + int64_t(blockIdx.x) * Channels + output % Channels;
        const float* from = (output < Channels ? trace.grad_gates[0] : trace.grad_gates[1]) + channel * pixels +
                            (run >> wide) * width + x;
        float4* to = arriving + (warp * 2 + half) * 32 + lane;
        if (whole) {
          gpu::cp_async<16>(to, from);
        } else {
#pragma unroll 1
          for (int j = 0; j < 4; ++j)
            gpu::cp_async_zero_fill<4>(reinterpret_cast<float*>(to) + j, j < left ? from + j : from, j < left ? 4 : 0);
        }
      }
    }
    if (base == 0) {
      const Word* from =
          reinterpret_cast<const Word*>(trace.spikes) + (int64_t(pair) * shape.groups + blockIdx.x) * pixels;
#pragma unroll 1
      for (int i = thread() * copied; i < pixels; i += kThreads * copied)
        if (copied > 1)
          gpu::cp_async<4>(map + i, from + i);
        else
          map[i] = from[i];
    }
    gpu::cp_async_commit();
  };
  const auto put = [&](int batch) {
    const int base = batch % map_batches * Product::kBatch;
    const int warp = thread() / 32, lane = thread() % 32;
    uint4* to = fragments + batch % 2 * (Product::kFragments / 2);
    gpu::cp_async_wait<0>();
    if (base + warp / Product::kOutputTiles < runs) {
      const float4 upper = arriving[warp * 64 + lane], lower = arriving[warp * 64 + 32 + lane];
      uint32_t x[4][Product::kTerms];
      split_pair(upper.x, upper.y, x[0]);
      split_pair(lower.x, lower.y, x[1]);
      split_pair(upper.z, upper.w, x[2]);
      split_pair(lower.z, lower.w, x[3]);
#pragma unroll
      for (int term = 0; term < Product::kTerms; ++term)
        to[(warp * Product::kTerms + term) * 32 + lane] = make_uint4(x[0][term], x[1][term], x[2][term], x[3][term]);
    }
    if (base == 0)
#pragma unroll 1
      for (int i = thread() * copied; i < pixels; i += kThreads * copied)
        for (int j = i; j < i + copied; ++j)
          words[batch / map_batches % 2][(j / width + kPad) * stride + j % width + kPad] = map[j];
  };

  float sum[Kernel][Product::kInputTiles][4];
#pragma unroll
  for (int kx = 0; kx < Kernel; ++kx)
#pragma unroll
    for (int k = 0; k < Product::kInputTiles; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[kx][k][e] = 0.f;

  fetch(0);
  for (int i = threadIdx.x; i < int(sizeof words[0] / sizeof(Word)); i += kThreads) words[0][i] = words[1][i] = 0;
  __syncthreads();  // the halo is zero
#pragma unroll 1
  for (int batch = 0; int(blockIdx.y) + batch / map_batches * int(gridDim.y) < pairs; ++batch) {
    put(batch);
    __syncthreads();  // the batch is there, and the products with the other half of the fragments are done
    fetch(batch + 1);

    const int lane = thread() % 32, row = lane / 4, quad = lane % 4;
    const int tile = thread() / 32 % Product::kTiles, part = thread() / 32 / Product::kTiles;
    const int first = batch % map_batches * Product::kBatch, end = min(runs, first + Product::kBatch);
    const uint4* from = fragments + batch % 2 * (Product::kFragments / 2) +
                        (part * Product::kOutputTiles + tile / Kernel) * Product::kTerms * 32 + lane;
    const Word* map_words = words[batch / map_batches % 2] + tile % Kernel * stride + 4 * quad;
#pragma unroll 1
    for (int run = first + part; run < end; run += Product::kParts) {
      uint4 a[Product::kTerms];
#pragma unroll
      for (int term = 0; term < Product::kTerms; ++term) a[term] = from[term * 32];
      from += Product::kParts * Product::kOutputTiles * Product::kTerms * 32;
      const auto* fours =
          reinterpret_cast<const typename Span::Four*>(map_words + (run >> wide) * stride + (run & wide) * kRunPixels);
      const Span seen{{fours[0], fours[1]}};
#pragma unroll
      for (int kx = 0; kx < Kernel; ++kx) {
        float run_sum[Product::kInputTiles][4];
#pragma unroll
        for (int k = 0; k < Product::kInputTiles; ++k) {
          // a spike is 2, the one number near 1 that is a single bit in bf16
          const auto spikes = [&](int i) {
            const uint32_t pair_of = seen.pair(i);
            return __funnelshift_l(pair_of, pair_of, unsigned(14 - 8 * k - row)) & 0x40004000u;
          };
          const uint2 b = make_uint2(spikes(kx), spikes(kx + 2));
#pragma unroll
          for (int e = 0; e < 4; ++e) run_sum[k][e] = 0.f;
#pragma unroll
          for (int term = Product::kTerms - 1; term >= 0; --term) gpu::mma_m16n8k16_bf16(run_sum[k], a[term], b);
        }
#pragma unroll
        for (int k = 0; k < Product::kInputTiles; ++k)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[kx][k][e] += run_sum[k][e];
      }
    }
  }

  float4* others = reinterpret_cast<float4*>(fragments);  // [kParts - 1][kTiles][kSums][lane]
  const int lane = thread() % 32, warp = thread() / 32;
  const int tile = warp % Product::kTiles, part = warp / Product::kTiles;
  __syncthreads();  // the products with the last fragments are done
  if (part > 0) {
#pragma unroll
    for (int i = 0; i < Product::kSums; ++i) {
      const float (&own)[4] = sum[i / Product::kInputTiles][i % Product::kInputTiles];
      others[((warp - Product::kTiles) * Product::kSums + i) * 32 + lane] = make_float4(own[0], own[1], own[2], own[3]);
    }
  }
  __syncthreads();
  if (part > 0) return;
  float4* out =
      partial + ((int64_t(blockIdx.y) * shape.groups + blockIdx.x) * Product::kTiles + tile) * Product::kSums * 32;
#pragma unroll
  for (int i = 0; i < Product::kSums; ++i) {
    float (&own)[4] = sum[i / Product::kInputTiles][i % Product::kInputTiles];
#pragma unroll
    for (int p = 0; p < Product::kParts - 1; ++p) {
      const float4 other = others[((p * Product::kTiles + tile) * Product::kSums + i) * 32 + lane];
#pragma unroll
      for (int e = 0; e < 4; ++e) own[e] += component_of(other, e);
    }
    out[i * 32 + lane] = make_float4(0.5f * own[0], 0.5f * own[1], 0.5f * own[2], 0.5f * own[3]);
  }
}

// One weight a thread, in the order of the partial sums.
template <int Channels, int Kernel>
__global__ void sum_weight_gradients(StcBackward<float> p, const float* partial, int count) {
  using Product = WeightProduct<Channels, Kernel>;
  const int64_t groups = p.in.shape.groups, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= groups * Product::kWeights) return;
  float total = 0.f;
#pragma unroll 8
  for (int k = 0; k < count; ++k) total += partial[k * groups * Product::kWeights + i];
  const int64_t group = i / Product::kWeights;
  int rest = int(i % Product::kWeights);
  const auto take = [&](int size) {
    const int index = rest % size;
    rest /= size;
    return index;
  };
  const int e = take(4), lane = take(32), k = take(Product::kInputTiles), kx = take(Kernel), ky = take(Kernel);
  const int output = rest * 16 + lane / 4 + e / 2 * 8, input = k * 8 + 2 * (lane % 4) + e % 2;
  const int64_t channel = group * Channels + output % Channels;
  (output < Channels ? p.grad_temporal_weight
                     : p.grad_spatial_weight)[((channel * Channels + input) * Kernel + ky) * Kernel + kx] = total;
}

// partial: [splits, groups, kWeights].
template <int Channels, int Kernel>
void start_weight_gradient(Launcher& launch, const StcBackward<float>& p, const BackwardTrace& trace, int splits,
                           float4* partial) {
  using Product = WeightProduct<Channels, Kernel>;
  const Shape& s = p.in.shape;
  launch.start(weight_gradient_partials<Channels, Kernel>, dim3(unsigned(s.groups), unsigned(splits)),
               Product::kWarps * 32, Product::kDynamicBytes, s, trace, partial);
  launch.flat(sum_weight_gradients<Channels, Kernel>, s.groups * Product::kWeights, p,
              reinterpret_cast<const float*>(partial), splits);
}

}  // namespace stc::cuda

// The weight gradient of the persistent backward pass: W'[output][input][tap] = sum over steps, samples and pixels of
// z'[output][pixel] s[input][pixel + tap], as matrix products with an exact operand.
//
//   A rows: gate outputs, the temporal ones first;  N columns: input channels;  K columns: 16 pixels of a row, column
//   2q + e of the lower half = pixel 4q + e, of the upper half = pixel 4q + 2 + e, so that a thread reads four
//   neighbours
//
// z' needs range: it is the sum of three bf16 numbers. The warps of a block split as many runs of pixels into those,
// put the fragments into shared memory, and then each takes one kernel row of a part of the runs. Its sums stay in its
// accumulators to the end; the partial sums are added in a fixed order by a second kernel.
#pragma once

#include "persistent_backward.cuh"

namespace stc::cuda {

template <int Channels, int Kernel>
struct WeightProduct {
  static constexpr int kParts = 2;  // of the pixels of a map
  static constexpr int kWarps = kParts * Kernel;
  static constexpr int kOutputTiles = Channels / 8;  // m tiles: 2 * Channels outputs
  static constexpr int kInputTiles = Channels / 8;   // n tiles
  static constexpr int kTerms = 3;
  static constexpr int kFragments = kOutputTiles * kTerms;                    // of a run
  static constexpr int kWeights = 2 * Channels * Channels * Kernel * Kernel;  // of one group, both pathways
};

// Grid (groups, splits): split k takes the (step, sample) pairs k, k + splits, ... partial: [splits * kParts, groups,
// kWeights].
template <int Channels, int Kernel>
__global__ void __launch_bounds__(WeightProduct<Channels, Kernel>::kWarps * 32)
    weight_gradient_partials(Shape shape, BackwardTrace trace, float* partial) {
  using Product = WeightProduct<Channels, Kernel>;
  using Word = typename SpikeWord<Channels>::type;
  constexpr int kPad = Kernel / 2, kSpan = Kernel + 3;  // words that four neighbouring pixels see of one kernel row
  GPU_SHARED(Word, words, [(kMaxMap + Kernel - 1) * (kMaxMap + Kernel - 1) + kRunPixels]);
  GPU_SHARED(uint4, fragments, [Product::kWarps][Product::kFragments][32]);  // of a run a warp

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, quad = lane % 4;
  const int ky = warp % Kernel, part = warp / Kernel;
  const int height = int(shape.height), width = int(shape.width), stride = width + Kernel - 1, pixels = height * width;
  const int runs_per_row = (width + kRunPixels - 1) / kRunPixels, runs = height * runs_per_row;
  const int64_t pairs = shape.steps * shape.samples, first = int64_t(blockIdx.x) * Channels;
  const bool whole = (width | pixels) % 4 == 0;

  float sum[Kernel][Product::kOutputTiles][Product::kInputTiles][4];
#pragma unroll
  for (int kx = 0; kx < Kernel; ++kx)
#pragma unroll
    for (int m = 0; m < Product::kOutputTiles; ++m)
#pragma unroll
      for (int k = 0; k < Product::kInputTiles; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[kx][m][k][e] = 0.f;

  for (int i = threadIdx.x; i < int(sizeof words / sizeof(Word)); i += blockDim.x) words[i] = 0;
  for (int64_t pair = blockIdx.y; pair < pairs; pair += gridDim.y) {
    __syncthreads();  // the halo is zero, or the products with the map before are done
    const Word* from = reinterpret_cast<const Word*>(trace.spikes) + (pair * shape.groups + blockIdx.x) * pixels;
    for (int i = threadIdx.x; i < pixels; i += blockDim.x)
      words[(i / width + kPad) * stride + i % width + kPad] = from[i];

    const int64_t maps = (pair * shape.channels + first) * pixels;
#pragma unroll 1
    for (int base = 0; base < runs; base += Product::kWarps) {
      const int end = min(runs, base + Product::kWarps);
      __syncthreads();  // the products with the fragments before are done
      if (base + warp < end) {
        const int y = (base + warp) / runs_per_row, x = (base + warp) % runs_per_row * kRunPixels + 4 * quad;
        const auto gradients = [&](int output) {
          const float* map = trace.grad_gates[output / Channels] + maps + output % Channels * pixels;
          return load4(map + y * width + x, 1, width - x, whole);
        };
#pragma unroll
        for (int m = 0; m < Product::kOutputTiles; ++m) {
          const float4 g = gradients(m * 16 + row), h = gradients(m * 16 + row + 8);
#pragma unroll
          for (int term = 0; term < Product::kTerms; ++term)
            fragments[warp][m * Product::kTerms + term][lane] =
                make_uint4(bf16_pair(g.x, g.y, term), bf16_pair(h.x, h.y, term), bf16_pair(g.z, g.w, term),
                           bf16_pair(h.z, h.w, term));
        }
      }
      __syncthreads();
#pragma unroll 1
      for (int run = base + part; run < end; run += Product::kParts) {
        const int y = run / runs_per_row, x = run % runs_per_row * kRunPixels + 4 * quad;
        uint4 a[Product::kFragments];
#pragma unroll
        for (int k = 0; k < Product::kFragments; ++k) a[k] = fragments[run - base][k][lane];
        uint32_t seen[kSpan];
#pragma unroll
        for (int i = 0; i < kSpan; ++i) seen[i] = uint32_t(words[(y + ky) * stride + x + i]) >> row;
#pragma unroll
        for (int kx = 0; kx < Kernel; ++kx)
#pragma unroll
          for (int k = 0; k < Product::kInputTiles; ++k) {
            const auto bit = [&](int i) { return seen[kx + i] >> (8 * k) & 1u; };
            const uint2 b = make_uint2((bit(0) | bit(1) << 16) * 0x3F80u, (bit(2) | bit(3) << 16) * 0x3F80u);
#pragma unroll
            for (int m = 0; m < Product::kOutputTiles; ++m)
#pragma unroll
              for (int term = Product::kTerms - 1; term >= 0; --term)
                gpu::mma_m16n8k16_bf16(sum[kx][m][k], a[m * Product::kTerms + term], b);
          }
      }
    }
  }

  float* out =
      partial + ((int64_t(blockIdx.y) * Product::kParts + part) * shape.groups + blockIdx.x) * Product::kWeights;
#pragma unroll
  for (int kx = 0; kx < Kernel; ++kx)
#pragma unroll
    for (int m = 0; m < Product::kOutputTiles; ++m)
#pragma unroll
      for (int k = 0; k < Product::kInputTiles; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int output = m * 16 + row + e / 2 * 8, input = k * 8 + 2 * quad + e % 2;
          out[((output * Channels + input) * Kernel + ky) * Kernel + kx] = sum[kx][m][k][e];
        }
}

// One weight a thread.
template <int Channels, int Kernel>
__global__ void sum_weight_gradients(StcBackward<float> p, const float* partial, int count) {
  using Product = WeightProduct<Channels, Kernel>;
  const int64_t groups = p.in.shape.groups, i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= groups * Product::kWeights) return;
  float total = 0.f;
  for (int k = 0; k < count; ++k) total += partial[k * groups * Product::kWeights + i];
  const int64_t group = i / Product::kWeights, weight = i % Product::kWeights, half = Product::kWeights / 2;
  (weight < half ? p.grad_temporal_weight : p.grad_spatial_weight)[group * half + weight % half] = total;
}

}  // namespace stc::cuda

// The persistent forward kernel: all steps of one (sample, group) in one block, one launch for a whole sequence.
//
// Per step and thread block:
//   statistics of the current  ->  barrier  ->  gate convolutions of the spike bits  ->  barrier (means)  ->  barrier
//   (variances)  ->  gates, membrane, spikes, reset; new spike bits  ->  barrier
#pragma once

#include "persistent.cuh"

namespace stc::cuda {

// Roomy: the weights are held in shared memory, for cards that give a block more than 99 KB; else they stream through
// L1.
template <int Channels, int Kernel, int Runs, bool Roomy>
__global__ void __launch_bounds__(kMaxWarps * 32, 1) persistent_forward(StcForward<float> p, PackedWeights packed) {
  using B = Block<Channels, Kernel, Runs>;
  using Product = typename B::Product;
  using Word = typename B::Word;
  using Cell = StcLif<FastMath>;
  constexpr int kTiles = B::kTiles;

  GPU_SHARED(Word, words, [B::kWords]);  // the spikes before this step, with a zero halo
  GPU_SHARED(uint16_t, runs, [B::kMaxRuns]);
  GPU_SHARED(float, sum_current, [kMaxWarps][1]);
  GPU_SHARED(float, sum_gates, [kMaxWarps][2]);
  GPU_SHARED(float, square_current, [kMaxWarps][1]);
  GPU_SHARED(float, square_gates, [kMaxWarps][2]);
  gpu::SharedCarver carver;
  float4* v = carver.take<float4>(Runs * kTiles * int(blockDim.x));  // each element belongs to one thread
  uint4* resident = Roomy ? carver.take<uint4>(Product::kFragments) : nullptr;

  const B block(p.in.shape, runs);
  const int64_t group = blockIdx.x, n = blockIdx.y, first = group * Channels;
  const float count = float(Channels * block.pixels);
  const uint4* fragments = packed.fragments + group * Product::kFragments;
  CellOptions<float> cell = p.in.cell;
  cell.spiking = true;  // soft spikes run on the general kernels
  const auto channel = [&](int m) { return first + m * 8 + block.row; };
  // The first element of this unit at step t of a contiguous sequence, and of the current.
  const auto unit = [&](int64_t t) {
    return ((t * p.in.shape.samples + n) * p.in.shape.channels + first) * block.pixels;
  };
  const float* current = p.in.current.data + n * p.in.current.sample + first * p.in.current.channel;

  for (int i = threadIdx.x; i < B::kWords; i += blockDim.x) words[i] = 0;
  if constexpr (Roomy)
    for (int i = threadIdx.x; i < Product::kFragments; i += blockDim.x) resident[i] = fragments[i];
  __syncthreads();  // the halo is zero before spikes are put inside it
#pragma unroll
  for (int i = 0; i < Runs; ++i)
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float4 state = make_float4(0.f, 0.f, 0.f, 0.f), spike = state;
      if (p.in.v.data) state = load4(block, p.in.v, 0, n, channel(m), i);
      if (p.in.spikes.data) spike = load4(block, p.in.spikes, 0, n, channel(m), i);
      v[(i * kTiles + m) * blockDim.x + threadIdx.x] = state;
      unsigned fired = 0;
      for (int j = 0; j < 4; ++j) fired |= unsigned(component(spike, j) != 0.f) << j;
      block.put_spikes(words, i, m, fired);
    }
  __syncthreads();

  for (int t = 0; t < int(p.in.shape.steps); ++t) {
    if (p.in.norm_weight[kCurrent]) {
      // differences to one element of the group, so that a large common offset costs no digits
      const float shift = current[t * p.in.current.step];
      float4 d[Runs][kTiles];
      float sum[1] = {0.f}, square[1] = {0.f};
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          d[i][m] = load4(block, p.in.current, t, n, channel(m), i);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            component(d[i][m], j) -= shift;
            if (j < block.valid(i)) sum[0] += component(d[i][m], j);
          }
        }
      publish(sum, sum_current);
      __syncthreads();
      collect(sum, sum_current);
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float e = component(d[i][m], j) - sum[0] / count;
            if (j < block.valid(i)) square[0] += e * e;
          }
      publish(square, square_current);
    }

    float z[Runs][2][kTiles][4];
    block.convolve(words, [&](int i) { return Roomy ? resident[i] : __ldg(fragments + i); }, z);
    float mean[2] = {0.f, 0.f};
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      const float* scale = packed.scale + group * 2 * Channels + m * 8 + block.row;
      const float temporal = scale[0], spatial = scale[Channels];
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // pixel j of the thread: n tile j / 2, accumulators j % 2 (temporal) and 2 + j % 2 (spatial)
          float &a = z[i][j / 2][m][j % 2], &b = z[i][j / 2][m][2 + j % 2];
          a *= temporal;
          b *= spatial;
          if (j < block.valid(i)) {
            mean[0] += a;
            mean[1] += b;
          }
        }
    }
    publish(mean, sum_gates);
    __syncthreads();
    collect(mean, sum_gates);
    mean[0] /= count;
    mean[1] /= count;
    float square[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < Runs; ++i)
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j < block.valid(i))
#pragma unroll
            for (int path = 0; path < 2; ++path) {
              const float e = z[i][j / 2][m][2 * path + j % 2] - mean[path];
              square[path] += e * e;
            }
    publish(square, square_gates);
    __syncthreads();
    collect(square, square_gates);

    Statistics<FastMath> stats[kNorms];
    if (p.in.norm_weight[kCurrent]) {
      float sum[1], squares[1];
      collect(sum, sum_current);
      collect(squares, square_current);
      stats[kCurrent] = {current[t * p.in.current.step], sum[0] / count,
                         1.f / sqrtf(squares[0] / count + float(p.in.eps))};
    }
#pragma unroll
    for (int path = 0; path < 2; ++path)
      if (p.in.norm_weight[kTemporal + path])
        stats[kTemporal + path] = {mean[path], 0.f, 1.f / sqrtf(square[path] / count + float(p.in.eps))};
    if (p.norm_stats && threadIdx.x == 0) {
      double* out = p.norm_stats + ((t * p.in.shape.samples + n) * p.in.shape.groups + group) * kNorms * 2;
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        out[2 * norm] = double(stats[norm].high) + double(stats[norm].low);
        out[2 * norm + 1] = double(stats[norm].rstd);
      }
    }

#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      float weight[kNorms], bias[kNorms];
#pragma unroll
      for (int norm = 0; norm < kNorms; ++norm) {
        weight[norm] = p.in.norm_weight[norm] ? p.in.norm_weight[norm][channel(m)] : 1.f;
        bias[norm] = p.in.norm_weight[norm] ? p.in.norm_bias[norm][channel(m)] : 0.f;
      }
      const auto apply = [&](int norm, float x) {
        return ChannelNorm<FastMath>(stats[norm], weight[norm], bias[norm])(x);
      };
#pragma unroll
      for (int i = 0; i < Runs; ++i) {
        const int valid = block.valid(i);
        float4 input = load4(block, p.in.current, t, n, channel(m), i);
        float4& potential = v[(i * kTiles + m) * blockDim.x + threadIdx.x];
        float4 before = potential, u, s, after;
        unsigned fired = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const auto next =
              Cell::step(component(before, j), apply(kCurrent, component(input, j)),
                         apply(kTemporal, z[i][j / 2][m][j % 2]), apply(kSpatial, z[i][j / 2][m][2 + j % 2]), cell);
          component(u, j) = next.u;
          component(s, j) = next.s;
          component(after, j) = next.v;
          fired |= unsigned(next.s != 0.f && j < valid) << j;
        }
        potential = after;
        const int64_t out = unit(t) + block.offset(i, m);
        if (p.spikes) store4(p.spikes + out, s, valid, block.whole);
        if (p.u) store4(p.u + out, u, valid, block.whole);
        if (p.v_seq) store4(p.v_seq + out, after, valid, block.whole);
        block.put_spikes(words, i, m, fired);
      }
    }
    __syncthreads();
    if (p.packed_spikes) {
      Word* out = reinterpret_cast<Word*>(p.packed_spikes) +
                  ((t * p.in.shape.samples + n) * p.in.shape.groups + group) * block.pixels;
      for (int i = threadIdx.x; i < block.pixels; i += blockDim.x)
        out[i] = words[(i / block.width + B::kPad) * block.stride + i % block.width + B::kPad];
    }
  }

#pragma unroll
  for (int i = 0; i < Runs; ++i)
#pragma unroll
    for (int m = 0; m < kTiles; ++m)
      store4(p.v + unit(0) + block.offset(i, m), v[(i * kTiles + m) * blockDim.x + threadIdx.x], block.valid(i),
             block.whole);
}

}  // namespace stc::cuda

// What the persistent kernels share: one thread block runs all steps of one (sample, group), with the spikes, the
// membrane potential and the weights on chip.
//
// The gate convolutions are matrix products on tensor cores (mma.m16n8k16): M = outputs, N = pixels, K = 16 (tap, input
// channel) pairs. Spikes are exact in fp16; a weight, scaled by a power of two per output channel, is the sum of two
// fp16 numbers to 22 bits, so two products give sums as good as fp32 ones.
//
//   A rows      m tile i: rows 0-7 = temporal outputs 8i..8i+7, rows 8-15 = the spatial outputs of the same
//               channels, so that the accumulators of a thread are both gates of the same neurons
//   K columns   16 channels a group: one tap;  8 channels: two taps, the second of the last pair zero when K*K is odd
//   N columns   a pair of tiles covers 16 pixels of a row: column n of tile h is pixel 4 (n / 2) + n % 2 + 2 h, so
//               that a thread owns the four consecutive pixels 4q..4q+3 (q = lane % 4) of channel lane / 4, one
//               128-bit access
#pragma once

#include "../cell.h"
#include "../group_norm.h"
#include "../params.h"
#include "gpu.cuh"
#include "storage.cuh"

namespace stc::cuda {

constexpr int kMaxMap = 32;     // rows and columns
constexpr int kRunPixels = 16;  // of a pair of n tiles
constexpr int kMaxWarps = 16;

// Approximations of the hardware: relative error some 2^-21 in a gate, far inside the threshold band.
struct FastMath {
  using Real = float;
  using Scalar = float;
  static __device__ __forceinline__ float exp(float x) { return __expf(x); }
  static __device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.f, x); }
  static __device__ __forceinline__ float atan(float x) { return atanf(x); }
  static __device__ __forceinline__ float erf(float x) { return erff(x); }
  static __device__ __forceinline__ float abs(float x) { return x < 0.f ? -x : x; }
  static __device__ __forceinline__ float select(bool condition, float yes, float no) { return condition ? yes : no; }
};

template <int Channels>
struct SpikeWord;
template <>
struct SpikeWord<8> {
  using type = uint8_t;
};
template <>
struct SpikeWord<16> {
  using type = uint16_t;
};

// The tensor-core product for Channels channels a group and a Kernel x Kernel convolution.
template <int Channels, int Kernel>
struct GateProduct {
  static constexpr int kTiles = Channels / 8;  // m tiles
  static constexpr int kTaps = Kernel * Kernel;
  static constexpr int kTapsPerStep = 16 / Channels;
  static constexpr int kSteps = (kTaps + kTapsPerStep - 1) / kTapsPerStep;  // along K
  static constexpr int kTerms = 2;                                          // fp16 numbers a weight
  static constexpr int kFragments = kSteps * kTiles * kTerms * 32;          // uint4, of one group

  // Input channel and tap of column k in step s; the tap may be past the last.
  static __device__ __forceinline__ int tap(int s, int k) { return s * kTapsPerStep + (Channels == 8 ? k / 8 : 0); }
  static __device__ __forceinline__ int channel(int k) { return k % Channels; }
};

// Weights of all groups in A-fragment order [group][step][m tile][term][lane], and the scale that undoes theirs,
// [group][path][channel].
struct PackedWeights {
  uint4* fragments;
  float* scale;
};

// What the backward kernel leaves for the weight gradient, in device memory.
struct BackwardTrace {
  float* grad_gates[2];  // z' of both gates: [T, N, C, H, W]
  uint8_t* spikes;       // s_{t-1}, one word of Channels bits a pixel: [T, N, groups, H, W]
  double* partial_sums;  // [N, C, kChannelSums]; summed over the steps
};

// What has no place on chip: arrays of each block of which each element belongs to one thread.
struct BackwardSlots {
  float4* grad_second;  // [warps][kSlots][32]: gradients of a second potential; null: in shared memory
  float4* kept_u;       // [warps][kSlots][32]: u of the step before; null: in shared memory
  float* constants;     // [1 + kCoefficients][kTiles][threads]: gradients of threshold and coefficients so far
};

constexpr int kPackChannels = 2;                      // of a block of pack_weights
constexpr int kPackThreads = 2 * kPackChannels * 32;  // a warp an output

// Grid (groups, Channels / kPackChannels): a block packs both gates of its channels.
template <int Channels, int Kernel>
__global__ void __launch_bounds__(kPackThreads) pack_weights(StcInputs<float> in, PackedWeights packed) {
  using Product = GateProduct<Channels, Kernel>;
  constexpr int kWeights = Channels * Product::kTaps;  // of one output
  GPU_SHARED(float, weights, [2][kPackChannels][kWeights]);
  const int first = int(blockIdx.y) * kPackChannels;  // of the group's channels
  {
    const int lane = threadIdx.x % 32, path = threadIdx.x / 32 / kPackChannels, c = threadIdx.x / 32 % kPackChannels;
    const float* w =
        (path ? in.spatial_weight : in.temporal_weight) + (int64_t(blockIdx.x) * Channels + first + c) * kWeights;
    float largest = 0.f;
    for (int i = lane; i < kWeights; i += 32) {
      const float value = w[i];
      weights[path][c][i] = value;
      largest = fmaxf(largest, fabsf(value));
    }
#pragma unroll
    for (int distance = 16; distance; distance /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    // brings the largest weight to [2^13, 2^14), inside fp16 with its small neighbours; as far as fp32 has the scale
    const int exponent = largest > 0.f ? min(13 - ilogbf(largest), 126) : 0;
    for (int i = lane; i < kWeights; i += 32) weights[path][c][i] *= ldexpf(1.f, exponent);
    if (lane == 0) packed.scale[(int64_t(blockIdx.x) * 2 + path) * Channels + first + c] = ldexpf(1.f, -exponent);
  }
  __syncthreads();
  uint32_t* out = reinterpret_cast<uint32_t*>(packed.fragments + int64_t(blockIdx.x) * Product::kFragments);
  for (int i = threadIdx.x; i < Product::kSteps * kPackChannels * 16; i += kPackThreads) {
    // PTX ISA, fragments of mma.m16n8k16: register r holds row lane / 4 (+ 8 if r is odd), columns
    // 2 (lane % 4) + {0, 1} (+ 8 if r >= 2)
    const int r = i % 4, quad = i / 4 % 4, c = i / 16 % kPackChannels, step = i / 16 / kPackChannels;
    const int path = r % 2, row = (first + c) % 8, tile = (first + c) / 8;
    uint32_t pairs[Product::kTerms] = {};
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int k = 2 * quad + e + (r / 2) * 8, tap = Product::tap(step, k);
      if (tap >= Product::kTaps) continue;
      const float value = weights[path][c][Product::channel(k) * Product::kTaps + tap];
      const __half high = __float2half_rn(value), low = __float2half_rn(value - __half2float(high));
      pairs[0] |= uint32_t(__half_as_ushort(high)) << (16 * e);
      pairs[1] |= uint32_t(__half_as_ushort(low)) << (16 * e);
    }
#pragma unroll
    for (int term = 0; term < Product::kTerms; ++term)
      out[(((step * Product::kTiles + tile) * Product::kTerms + term) * 32 + row * 4 + quad) * 4 + r] = pairs[term];
  }
}

// Two spike bits (0 and 1 of w) as a pair of fp16 numbers.
__device__ __forceinline__ uint32_t fp16_pair(uint32_t w) { return ((w & 1u) | ((w & 2u) << 15)) * 0x3C00u; }

// Where a chunk of spike numbers lies in its plane, so that the eight pixels of a matrix of ldmatrix, 0, 1, 4, 5, 8, 9,
// 12 and 13 from any first one on, are in different banks.
__device__ __forceinline__ int swizzled(int pixel) { return pixel ^ (pixel >> 2 & 2); }

// Where a thread's neurons lie: `Runs` runs of 16 pixels a warp, of which the thread owns four pixels of kTiles
// channels.
template <int Channels, int Kernel, int Runs>
struct Block {
  using Product = GateProduct<Channels, Kernel>;
  using Word = typename SpikeWord<Channels>::type;
  static constexpr int kTiles = Product::kTiles;
  static constexpr int kSlots = Runs * kTiles;  // fours of neurons of a thread
  static constexpr int kPad = Kernel / 2;
  static constexpr int kWords = (kMaxMap + Kernel - 1) * (kMaxMap + Kernel - 1) + kRunPixels;  // a run may stick out

  static constexpr int kMaxRuns = kMaxWarps * Runs;

  int lane, row, quad;  // row = lane / 4: the channel in a tile and, for B fragments, the column
  int width, pixels;
  int stride;            // of the padded spike map
  bool whole;            // the fours of contiguous arrays are aligned
  const uint16_t* runs;  // of this warp, in shared memory so that they cost no registers: row * 256 + first column

  // All threads of the block; a barrier must follow before the runs are used.
  __device__ __forceinline__ Block(const Shape& s, uint16_t* shared_runs)
      : lane(threadIdx.x % 32),
        row(lane / 4),
        quad(lane % 4),
        width(int(s.width)),
        pixels(int(s.height) * width),
        stride(width + Kernel - 1),
        whole((width | pixels) % 4 == 0),
        runs(shared_runs + threadIdx.x / 32 * Runs) {
    const int wide = width > kRunPixels;  // two runs a row
#pragma unroll 1
    for (int i = threadIdx.x; i < int(blockDim.x) / 32 * Runs; i += blockDim.x)
      // runs past the last start right of the map, where no pixel is valid
      shared_runs[i] = uint16_t(i >> wide < int(s.height) ? (i >> wide) * 256 + (i & wide) * kRunPixels : width);
  }

  // Keeps addresses that follow from these numbers out of registers where other things need them more.
  __device__ __forceinline__ void forget() {
    gpu::forget(lane);
    gpu::forget(row);
    gpu::forget(quad);
  }

  // Which unit this is. Asked of the hardware each time: as variables they would take registers.
  static __device__ __forceinline__ int group() {
    int y = int(blockIdx.y);
    gpu::forget(y);
    return y;
  }
  static __device__ __forceinline__ int sample() { return int(blockIdx.x); }
  static __device__ __forceinline__ unsigned index() { return blockIdx.x * gridDim.y + blockIdx.y; }
  static __device__ __forceinline__ int warp() {
    int thread = int(threadIdx.x);
    gpu::forget(thread);
    return thread / 32;
  }
  static __device__ __forceinline__ int first() { return group() * Channels; }  // channel

  // Pixels of a padded map, with those that a run which is not whole reads beyond the last row.
  static __device__ __forceinline__ int area(const Shape& s) {
    return (int(s.height) + Kernel - 1) * (int(s.width) + Kernel - 1) + (s.width % kRunPixels ? kRunPixels : 0);
  }

  // Of the thread's four pixels of run i.
  __device__ __forceinline__ int y(int i) const { return runs[i] >> 8; }
  __device__ __forceinline__ int x(int i) const { return (runs[i] & 0xFF) + 4 * quad; }
  // Where they lie in a contiguous [channels, H, W], for the thread's channel of m tile m.
  __device__ __forceinline__ int offset(int i, int m) const { return (m * 8 + row) * pixels + y(i) * width + x(i); }
  // How many pixels the row has from the first of them on: of the four, those below are on the map; none if not above
  // 0. Compared as it is and never cut to 0..4: for a test of max(0, min(4, n)) == 4, ptxas 13.0 takes the predicate of
  // VIMNMX.RELU on sm_90, which is true for n < 0, too.
  __device__ __forceinline__ int left(int i) const { return width - x(i); }
  // Where the thread's four of run i, m tile m lies in an array [warps][kSlots][32] of the block. The distances between
  // the fours of a thread are constants, and so take no registers.
  __device__ __forceinline__ int slot(int i, int m) const { return (warp() * kSlots + i * kTiles + m) * 32 + lane; }
  // How many neurons the thread owns.
  __device__ __forceinline__ int neurons() const {
    int count = 0;
#pragma unroll
    for (int i = 0; i < Runs; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) count += j < left(i);
    return count * kTiles;
  }

  // In a padded map, the first tap of the window of a column (of B fragments) in the first n tile of run i.
  __device__ __forceinline__ int origin(int i, int column) const {
    return y(i) * stride + x(i) - 4 * quad + 4 * (column / 2) + column % 2;
  }
  // That of this lane's column.
  __device__ __forceinline__ int origin(int i) const { return origin(i, row); }

  // Of the gates: [run][n tile][m tile][accumulator].
  using Gates = float[Runs][2][kTiles][4];

  static __device__ __forceinline__ void clear(Gates& z) {
#pragma unroll
    for (int i = 0; i < Runs; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) z[i][h][m][e] = 0.f;
  }

  // From the first tap of a window in a padded map to the tap that half of the K columns of step s are at; past the
  // last tap, where the weights are zero and any spike will do, to the last.
  __device__ __forceinline__ int tap_offset(int s, int half) const {
    const int tap = min(Product::tap(s, 8 * half), Product::kTaps - 1);
    return tap / Kernel * stride + tap % Kernel;
  }

  // A B fragment from the words at the taps of both halves; 16 channels have one tap.
  __device__ __forceinline__ uint2 spike_pairs(const Word* words, int first, int second) const {
    const uint32_t low = uint32_t(words[first]) >> (2 * quad);
    const uint32_t high = Channels == 16 ? low >> 8 : uint32_t(words[second]) >> (2 * quad);
    return make_uint2(fp16_pair(low), fp16_pair(high));
  }

  // z = both gate convolutions of the spikes, with weights of `terms` fp16 numbers.
  template <class LoadFragment>
  __device__ __forceinline__ void convolve(const Word* words, int terms, LoadFragment fragment, Gates& z) const {
    clear(z);
    int from[Runs];
#pragma unroll
    for (int i = 0; i < Runs; ++i) from[i] = origin(i);
#pragma unroll 1
    for (int s = 0; s < Product::kSteps; ++s) {
      uint4 a[kTiles][Product::kTerms];
#pragma unroll
      for (int m = 0; m < kTiles; ++m)
#pragma unroll
        for (int term = 0; term < Product::kTerms; ++term)
          a[m][term] = fragment(((s * kTiles + m) * Product::kTerms + term) * 32 + lane);
      const int offset = tap_offset(s, 0), next_offset = tap_offset(s, 1);
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint2 b = spike_pairs(words, from[i] + 2 * h + offset, from[i] + 2 * h + next_offset);
#pragma unroll
          for (int m = 0; m < kTiles; ++m)
#pragma unroll
            for (int term = 0; term < Product::kTerms; ++term)
              if (term < terms) gpu::mma_m16n8k16_f16(z[i][h][m], a[m][term], b);
        }
    }
  }

  // The same, with the small terms of all weights before the large ones: tensor cores cut off what they add, and least
  // while the sums are small. `Map` is SpikeBits or SpikeNumbers.
  template <class Map, class LoadFragment>
  __device__ __forceinline__ void convolve_by_terms(const Map& spikes, int terms, LoadFragment fragment,
                                                    Gates& z) const {
    clear(z);
    const auto load = [&](int s, int term, uint4(&a)[kTiles]) {
#pragma unroll
      for (int m = 0; m < kTiles; ++m) a[m] = fragment(((s * kTiles + m) * Product::kTerms + term) * 32 + lane);
    };
    int from[Runs];
#pragma unroll
    for (int i = 0; i < Runs; ++i) from[i] = spikes.origin(i);
    // Fragments are loaded one place ahead of their products; after the last, the first ones once more.
    uint4 a[kTiles];
    load(0, terms - 1, a);
    auto offset = spikes.offset(0);
    uint4 b = spikes.load(from[0], offset);
#pragma unroll 1
    for (int term = terms - 1; term >= 0; --term)
#pragma unroll 1
      for (int s = 0; s < Product::kSteps; ++s) {
        const int next = s + 1 < Product::kSteps ? s + 1 : 0;
        uint4 next_a[kTiles];
        load(next, next ? term : 0, next_a);
        const auto next_offset = spikes.offset(next);
#pragma unroll
        for (int i = 0; i < Runs; ++i) {
          const uint4 next_b = i + 1 < Runs ? spikes.load(from[i + 1], offset) : spikes.load(from[0], next_offset);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            gpu::mma_m16n8k16_f16(z[i][0][m], a[m], make_uint2(b.x, b.y));
            gpu::mma_m16n8k16_f16(z[i][1][m], a[m], make_uint2(b.z, b.w));
          }
          b = next_b;
        }
#pragma unroll
        for (int m = 0; m < kTiles; ++m) a[m] = next_a[m];
        offset = next_offset;
      }
  }

  // The eight channels of m tile m at one pixel of this thread's quad, 4q + row, as bits, in lanes of rows below 4; bit
  // j of `fired` = pixel j of this thread. By whole warps.
  __device__ __forceinline__ unsigned channel_bits(unsigned fired) const {
    unsigned votes = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned vote = __ballot_sync(0xffffffffu, int(fired >> j & 1u));
      if (row == j) votes = vote;
    }
    // bit 4k + q of the ballot is channel k
    unsigned bits = votes >> quad & 0x11111111u;
    bits = (bits | bits >> 3) & 0x03030303u;
    bits = (bits | bits >> 6) & 0x000F000Fu;
    return (bits | bits >> 12) & 0xFFu;
  }
  // Whether this lane has such a pixel, on the map, in run i.
  __device__ __forceinline__ bool gathers(int i) const { return row < min(4, left(i)); }
  // Where that pixel is in a padded map.
  __device__ __forceinline__ int gathered(int i) const { return (y(i) + kPad) * stride + x(i) + row + kPad; }

  // Sets the bits of run i, m tile m in the padded spike map, where they are on the map. By whole warps.
  __device__ __forceinline__ void put_spikes(Word* words, int i, int m, unsigned fired) const {
    const unsigned bits = channel_bits(fired);
    if (gathers(i)) reinterpret_cast<uint8_t*>(words)[gathered(i) * sizeof(Word) + m] = uint8_t(bits);
  }
};

// Both maps of spikes have a zero halo. They give convolve_by_terms() where a lane reads for run i (origin), how far
// that moves with the steps along K (offset), and the B fragments of both n tiles there (load).

// A word of channel bits a pixel.
template <class B>
class SpikeBits {
 public:
  using Word = typename B::Word;
  struct Offset {
    int first, second;
  };

  __device__ __forceinline__ SpikeBits(const B& block, Word* words) : block_(block), words_(words) {}

  // By all threads; a barrier must follow.
  __device__ __forceinline__ void clear() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < B::kWords; i += blockDim.x) words_[i] = 0;
  }
  // The eight channels of m tile m at a pixel.
  __device__ __forceinline__ void put(int position, int m, unsigned bits) const {
    reinterpret_cast<uint8_t*>(words_)[position * sizeof(Word) + m] = uint8_t(bits);
  }

  __device__ __forceinline__ int origin(int i) const { return block_.origin(i); }
  __device__ __forceinline__ Offset offset(int s) const { return {block_.tap_offset(s, 0), block_.tap_offset(s, 1)}; }
  __device__ __forceinline__ uint4 load(int origin, const Offset& offset) const {
    const uint2 first = block_.spike_pairs(words_, origin + offset.first, origin + offset.second);
    const uint2 second = block_.spike_pairs(words_, origin + 2 + offset.first, origin + 2 + offset.second);
    return make_uint4(first.x, first.y, second.x, second.y);
  }

 private:
  const B& block_;
  Word* words_;
};

// Eight fp16 numbers a pixel and m tile of channels, 16 bytes that ldmatrix takes as they are.
template <class B>
class SpikeNumbers {
 public:
  // Of m tiles; a whole number of what the swizzle permutes.
  static __device__ __forceinline__ int plane(const Shape& s) { return (B::area(s) + 15) / 16 * 16; }

  __device__ __forceinline__ SpikeNumbers(const B& block, uint4* chunks, const Shape& s)
      : block_(block), chunks_(chunks), plane_(plane(s)) {}

  __device__ __forceinline__ void clear() const {
#pragma unroll 1
    for (int i = threadIdx.x; i < B::kTiles * plane_; i += blockDim.x) chunks_[i] = make_uint4(0, 0, 0, 0);
  }
  __device__ __forceinline__ void put(int position, int m, unsigned bits) const {
    chunks_[swizzled(m * plane_ + position)] =
        make_uint4(fp16_pair(bits), fp16_pair(bits >> 2), fp16_pair(bits >> 4), fp16_pair(bits >> 6));
  }

  // Lanes 8 r to 8 r + 7 name the rows of matrix r, the columns of n tile r / 2: their K columns r % 2 * 8 and on.
  __device__ __forceinline__ int origin(int i) const {
    return block_.origin(i, block_.lane % 8) + block_.lane / 16 * 2 + (B::kTiles == 2 ? half() * plane_ : 0);
  }
  __device__ __forceinline__ int offset(int s) const { return block_.tap_offset(s, B::kTiles == 2 ? 0 : half()); }
  __device__ __forceinline__ uint4 load(int origin, int offset) const {
    return gpu::ldmatrix_x4(chunks_ + swizzled(origin + offset));
  }

 private:
  __device__ __forceinline__ int half() const { return block_.lane / 8 % 2; }

  const B& block_;
  uint4* chunks_;
  int plane_;
};

// Four neighbours of a row of a tensor: a float4, or in half the space four 16-bit numbers.
__device__ __forceinline__ float4 widen4(const uint2& x, Storage storage) {
  return make_float4(widen(uint16_t(x.x), storage), widen(uint16_t(x.x >> 16), storage), widen(uint16_t(x.y), storage),
                     widen(uint16_t(x.y >> 16), storage));
}

__device__ __forceinline__ float& component(float4& v, int j) {
  return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w;
}
__device__ __forceinline__ float component_of(const float4& v, int j) {
  return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w;
}

// Four neighbours, `step` elements apart, of a row that has `left` pixels from the first of them on; what is past its
// end reads as 0. `whole`: all four, where they are on the map, can be one access.
__device__ __forceinline__ float4 load4(const float* p, int64_t step, int left, bool whole) {
  if (whole && left >= 4) return *reinterpret_cast<const float4*>(p);
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
  if (left > 0) v.x = p[0];
  if (left > 1) v.y = p[step];
  if (left > 2) v.z = p[2 * step];
  if (left > 3) v.w = p[3 * step];
  return v;
}
__device__ __forceinline__ float4 load4(const uint16_t* p, int64_t step, int left, bool whole, Storage storage) {
  uint2 pairs = make_uint2(0, 0);
  if (whole && left >= 4) {
    pairs = *reinterpret_cast<const uint2*>(p);
  } else {
    if (left > 0) pairs.x = p[0];
    if (left > 1) pairs.x |= uint32_t(p[step]) << 16;
    if (left > 2) pairs.y = p[2 * step];
    if (left > 3) pairs.y |= uint32_t(p[3 * step]) << 16;
  }
  return widen4(pairs, storage);
}
// Rows that are not whole fours are rare: a loop for them keeps the code of the others together.
__device__ __forceinline__ void store4(float* p, const float4& v, int left, bool whole) {
  if (whole && left >= 4) {
    *reinterpret_cast<float4*>(p) = v;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < 4 && j < left; ++j) p[j] = component_of(v, j);
}
__device__ __forceinline__ void store4(uint16_t* p, const uint2& pairs, int left, bool whole) {
  if (whole && left >= 4) {
    *reinterpret_cast<uint2*>(p) = pairs;
    return;
  }
#pragma unroll 1
  for (int j = 0; j < 4 && j < left; ++j) p[j] = uint16_t((j < 2 ? pairs.x : pairs.y) >> (j % 2 * 16));
}
// One as a 16-bit number.
__device__ __forceinline__ uint32_t one_in(Storage storage) { return storage == Storage::kHalf ? 0x3C00u : 0x3F80u; }

// Element `first` on of a contiguous array of the given storage.
__device__ __forceinline__ void store4(float* array, int64_t first, const float4& v, int left, bool whole,
                                       Storage storage) {
  if (storage == Storage::kState) return store4(array + first, v, left, whole);
  const uint2 pairs = make_uint2(narrow(v.x, storage) | uint32_t(narrow(v.y, storage)) << 16,
                                 narrow(v.z, storage) | uint32_t(narrow(v.w, storage)) << 16);
  store4(reinterpret_cast<uint16_t*>(array) + first, pairs, left, whole);
}

// Whether the fours of a tensor are aligned.
template <class T>
__device__ __forceinline__ bool whole_fours(const Strided<T>& x, Storage storage) {
  return x.column == 1 && reinterpret_cast<uintptr_t>(x.data) % (storage == Storage::kState ? 16 : 8) == 0 &&
         (x.step | x.sample | x.channel | x.row) % 4 == 0;
}

// In elements, where the thread's four pixels of run i start in a strided tensor.
template <class B, class T>
__device__ __forceinline__ int64_t place4(const B& block, const Strided<T>& x, int64_t t, int64_t n, int64_t channel,
                                          int i) {
  return t * x.step + n * x.sample + channel * x.channel + block.y(i) * x.row + block.x(i) * x.column;
}

// Those four values.
template <class B>
__device__ __forceinline__ float4 load4(const B& block, const Strided<const float>& x, Storage storage, int64_t t,
                                        int64_t n, int64_t channel, int i, bool whole) {
  const int64_t first = place4(block, x, t, n, channel, i);
  if (storage == Storage::kState) return load4(x.data + first, x.column, block.left(i), whole);
  return load4(reinterpret_cast<const uint16_t*>(x.data) + first, x.column, block.left(i), whole, storage);
}

template <class B>
__device__ __forceinline__ float4 load4(const B& block, const Strided<const float>& x, Storage storage, int64_t t,
                                        int64_t n, int64_t channel, int i) {
  return load4(block, x, storage, t, n, channel, i, whole_fours(x, storage));
}

// Weight and bias of the three norms of a group, 1 and 0 where one is absent. By all threads; a barrier must follow.
template <int Channels>
__device__ __forceinline__ void load_affine(const StcInputs<float>& in, int first,
                                            float (&affine)[kNorms][2][Channels]) {
  for (int i = threadIdx.x; i < kNorms * Channels; i += blockDim.x) {
    const int norm = i / Channels, c = i % Channels;
    const bool present = in.norm_weight[norm];
    affine[norm][0][c] = present ? in.norm_weight[norm][first + c] : 1.f;
    affine[norm][1][c] = present ? in.norm_bias[norm][first + c] : 0.f;
  }
}

// Threshold and coefficients of the channels of a group. By all threads; a barrier must follow.
template <class Cell, int Channels>
__device__ __forceinline__ void load_constants(const StcInputs<float>& in, int first,
                                               float (&constants)[1 + Cell::kCoefficients][Channels]) {
  for (int i = threadIdx.x; i < (1 + Cell::kCoefficients) * Channels; i += blockDim.x) {
    const int k = i / Channels, c = i % Channels;
    constants[k][c] = k > 0          ? in.coefficients[(k - 1) * in.shape.channels + first + c]
                      : in.threshold ? in.threshold[first + c]
                                     : in.cell.threshold;
  }
}

// Those of one channel.
template <class Cell, int Channels>
__device__ __forceinline__ typename Cell::K coefficients(const float (&constants)[1 + Cell::kCoefficients][Channels],
                                                         int c) {
  typename Cell::K k;
  k.threshold = constants[0][c];
#pragma unroll
  for (int i = 0; i < Cell::kCoefficients; ++i) k.of[i] = constants[1 + i][c];
  return k;
}

// One value, read by one lane for the whole warp.
__device__ __forceinline__ float load_first(const Strided<const float>& x, Storage storage, int64_t place) {
  float value = 0.f;
  if (threadIdx.x % 32 == 0)
    value =
        storage == Storage::kState ? x.data[place] : widen(reinterpret_cast<const uint16_t*>(x.data)[place], storage);
  return __shfl_sync(0xffffffffu, value, 0);
}

// The current of a thread's neurons: fetched into shared memory while the step before is still at work, or read from
// global memory where there is no room for that.
template <class B>
class Current {
 public:
  // `slots`: [warps][kSlots][32], there only if `cached`.
  __device__ __forceinline__ Current(const B& block, const StcInputs<float>& in, float4* slots, bool cached)
      : block_(block), in_(in), slots_(slots), cached_(cached), whole_(whole_fours(in.current, in.storage)) {
    if (cached_)
#pragma unroll 1
      for (int k = 0; k < B::kSlots; ++k) slots_[block.slot(0, k)] = make_float4(0.f, 0.f, 0.f, 0.f);
  }

  // Starts to fetch step t.
  __device__ __forceinline__ void fetch(int64_t t) const {
    if (!cached_) return;
    const Strided<const float>& x = in_.current;
    const bool wide = in_.storage == Storage::kState;
#pragma unroll 1
    for (int k = 0; k < B::kSlots; ++k) {
      const int i = k / B::kTiles, left = block_.left(i);
      const int64_t place = place4(block_, x, t, B::sample(), B::first() + block_.row + k % B::kTiles * 8, i);
      float4* slot = slots_ + block_.slot(0, k);
      if (wide) {
        const float* from = x.data + place;
        if (whole_ && left >= 4)
          gpu::cp_async<16>(slot, from);
        else
#pragma unroll 1
          for (int j = 0; j < 4 && j < left; ++j)
            gpu::cp_async<4>(reinterpret_cast<float*>(slot) + j, from + j * x.column);
      } else {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(x.data) + place;
        if (whole_ && left >= 4)
          gpu::cp_async<8>(slot, from);
        else  // there is no copy of two bytes
#pragma unroll 1
          for (int j = 0; j < 4; ++j)
            reinterpret_cast<uint16_t*>(slot)[j] = j < left ? from[j * x.column] : uint16_t(0);
      }
    }
    gpu::cp_async_commit();
  }

  // Once a step, before it is read.
  __device__ __forceinline__ void arrive() const {
    if (!cached_) return;
    gpu::cp_async_wait<0>();
    if (in_.storage == Storage::kState) return;
    // 16-bit numbers become wide in the same place
#pragma unroll 1
    for (int k = 0; k < B::kSlots; ++k) {
      float4* slot = slots_ + block_.slot(0, k);
      *slot = widen4(*reinterpret_cast<const uint2*>(slot), in_.storage);
    }
  }

  // The four values of run i, m tile m at step t, the one that was fetched last.
  __device__ __forceinline__ float4 operator()(int64_t t, int i, int m) const {
    if (cached_) return slots_[block_.slot(i, m)];
    return load4(block_, in_.current, in_.storage, t, B::sample(), B::first() + block_.row + m * 8, i, whole_);
  }

 private:
  const B& block_;
  const StcInputs<float>& in_;
  float4* slots_;
  bool cached_, whole_;
};

}  // namespace stc::cuda

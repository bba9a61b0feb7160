// What the persistent kernels share: one thread block runs all steps of one (sample, group), with the spikes as bits,
// the membrane potential and the weights on chip.
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
constexpr int kParkingSlots = 8;  // fours of neurons of a thread

// Approximations of the hardware: relative error some 2^-21 in a gate, far inside the threshold band.
struct FastMath {
  using Real = float;
  using Scalar = float;
  static __device__ __forceinline__ float exp(float x) { return __expf(x); }
  static __device__ __forceinline__ float reciprocal(float x) { return __fdividef(1.f, x); }
  static __device__ __forceinline__ float atan(float x) { return atanf(x); }
  static __device__ __forceinline__ float erf(float x) { return erff(x); }
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
    const int per_row = (width + kRunPixels - 1) / kRunPixels;
    for (int i = threadIdx.x; i < int(blockDim.x) / 32 * Runs; i += blockDim.x)
      // runs past the last start right of the map, where no pixel is valid
      shared_runs[i] = uint16_t(i / per_row < int(s.height) ? i / per_row * 256 + i % per_row * kRunPixels : width);
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

  // In a padded map, the first tap of the window of this lane's column (of B fragments) in the first n tile of run i.
  __device__ __forceinline__ int origin(int i) const {
    return y(i) * stride + x(i) - 4 * quad + 4 * (row / 2) + row % 2;
  }

  // z = both gate convolutions of the spikes: z[run][n tile][m tile][accumulator], with weights of `terms` fp16
  // numbers.
  template <class LoadFragment>
  __device__ __forceinline__ void convolve(const Word* words, int terms, LoadFragment fragment,
                                           float (&z)[Runs][2][kTiles][4]) const {
#pragma unroll
    for (int i = 0; i < Runs; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int m = 0; m < kTiles; ++m)
#pragma unroll
          for (int e = 0; e < 4; ++e) z[i][h][m][e] = 0.f;
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
          if (term < terms) a[m][term] = fragment(((s * kTiles + m) * Product::kTerms + term) * 32 + lane);
      const int tap = s * Product::kTapsPerStep;
      const int offset = tap / Kernel * stride + tap % Kernel;
      // the second tap of a pair; past the last tap its weights are zero, and any spike will do
      const int next = Channels == 16 || tap + 1 == Product::kTaps ? tap : tap + 1;
      const int next_offset = next / Kernel * stride + next % Kernel;
#pragma unroll
      for (int i = 0; i < Runs; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const uint32_t first = uint32_t(words[from[i] + 2 * h + offset]) >> (2 * quad);
          const uint32_t second =
              Channels == 16 ? first >> 8 : uint32_t(words[from[i] + 2 * h + next_offset]) >> (2 * quad);
          const uint2 b = make_uint2(fp16_pair(first), fp16_pair(second));
#pragma unroll
          for (int m = 0; m < kTiles; ++m)
#pragma unroll
            for (int term = 0; term < Product::kTerms; ++term)
              if (term < terms) gpu::mma_m16n8k16_f16(z[i][h][m], a[m][term], b);
        }
    }
  }

  // Sets the bits of run i, m tile m in the padded spike map: bit j of `fired` = pixel j of this thread, if that is on
  // the map. By whole warps.
  __device__ __forceinline__ void put_spikes(Word* words, int i, int m, unsigned fired) const {
    unsigned votes = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const unsigned vote = __ballot_sync(0xffffffffu, int(fired >> j & 1u));
      if (row == j) votes = vote;
    }
    // lane (row j, quad q) gathers the eight channels of pixel 4q + j: bit 4k + q of the ballot is channel k
    if (row < min(4, left(i))) {
      unsigned bits = votes >> quad & 0x11111111u;
      bits = (bits | bits >> 3) & 0x03030303u;
      bits = (bits | bits >> 6) & 0x000F000Fu;
      bits = (bits | bits >> 12) & 0xFFu;
      const int position = (y(i) + kPad) * stride + x(i) + row + kPad;
      reinterpret_cast<uint8_t*>(words)[position * sizeof(Word) + m] = uint8_t(bits);
    }
  }
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
  if (whole && left >= 4) return widen4(*reinterpret_cast<const uint2*>(p), storage);
  float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < left) component(v, j) = widen(p[j * step], storage);
  return v;
}
__device__ __forceinline__ void store4(float* p, const float4& v, int left, bool whole) {
  if (whole && left >= 4) {
    *reinterpret_cast<float4*>(p) = v;
    return;
  }
  if (left > 0) p[0] = v.x;
  if (left > 1) p[1] = v.y;
  if (left > 2) p[2] = v.z;
  if (left > 3) p[3] = v.w;
}
// Element `first` on of a contiguous array of the given storage.
__device__ __forceinline__ void store4(float* array, int64_t first, const float4& v, int left, bool whole,
                                       Storage storage) {
  if (storage == Storage::kState) return store4(array + first, v, left, whole);
  uint16_t* p = reinterpret_cast<uint16_t*>(array) + first;
  const uint2 pairs = make_uint2(narrow(v.x, storage) | uint32_t(narrow(v.y, storage)) << 16,
                                 narrow(v.z, storage) | uint32_t(narrow(v.w, storage)) << 16);
  if (whole && left >= 4) {
    *reinterpret_cast<uint2*>(p) = pairs;
    return;
  }
  if (left > 0) p[0] = uint16_t(pairs.x);
  if (left > 1) p[1] = uint16_t(pairs.x >> 16);
  if (left > 2) p[2] = uint16_t(pairs.y);
  if (left > 3) p[3] = uint16_t(pairs.y >> 16);
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
                                        int64_t n, int64_t channel, int i) {
  const int64_t first = place4(block, x, t, n, channel, i);
  const bool whole = whole_fours(x, storage);
  if (storage == Storage::kState) return load4(x.data + first, x.column, block.left(i), whole);
  return load4(reinterpret_cast<const uint16_t*>(x.data) + first, x.column, block.left(i), whole, storage);
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
      : block_(block), in_(in), slots_(slots), cached_(cached) {
    if (cached_)
#pragma unroll
      for (int k = 0; k < B::kSlots; ++k) slots_[block.slot(0, k)] = make_float4(0.f, 0.f, 0.f, 0.f);
  }

  // Starts to fetch step t.
  __device__ __forceinline__ void fetch(int64_t t) const {
    if (!cached_) return;
    const Strided<const float>& x = in_.current;
    const bool wide = in_.storage == Storage::kState, whole = whole_fours(x, in_.storage);
#pragma unroll 1
    for (int k = 0; k < B::kSlots; ++k) {
      const int i = k / B::kTiles, left = block_.left(i);
      const int64_t place = place4(block_, x, t, B::sample(), B::first() + block_.row + k % B::kTiles * 8, i);
      float4* slot = slots_ + block_.slot(0, k);
      if (wide) {
        const float* from = x.data + place;
        if (whole && left >= 4)
          gpu::cp_async<16>(slot, from);
        else
#pragma unroll 1
          for (int j = 0; j < min(4, left); ++j)
            gpu::cp_async<4>(reinterpret_cast<float*>(slot) + j, from + j * x.column);
      } else {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(x.data) + place;
        if (whole && left >= 4)
          gpu::cp_async<8>(slot, from);
        else  // there is no copy of two bytes
#pragma unroll 1
          for (int j = 0; j < min(4, left); ++j) reinterpret_cast<uint16_t*>(slot)[j] = from[j * x.column];
      }
    }
    gpu::cp_async_commit();
  }

  // Before step t is read.
  __device__ __forceinline__ void arrive() const {
    if (cached_) gpu::cp_async_wait<0>();
  }

  // Turns what has arrived into fp32 numbers, for `wide`.
  __device__ __forceinline__ void widen() const {
    if (!cached_ || in_.storage == Storage::kState) return;
#pragma unroll 1
    for (int k = 0; k < B::kSlots; ++k) {
      float4* slot = slots_ + block_.slot(0, k);
      *slot = widen4(*reinterpret_cast<const uint2*>(slot), in_.storage);
    }
  }
  __device__ __forceinline__ float4 wide(int64_t t, int i, int m) const {
    if (cached_) return slots_[block_.slot(i, m)];
    return load4(block_, in_.current, in_.storage, t, B::sample(), B::first() + block_.row + m * 8, i);
  }

  // The four values of run i, m tile m at step t, the one that was fetched last.
  __device__ __forceinline__ float4 operator()(int64_t t, int i, int m) const {
    if (!cached_) return load4(block_, in_.current, in_.storage, t, B::sample(), B::first() + block_.row + m * 8, i);
    const float4* slot = slots_ + block_.slot(i, m);
    return in_.storage == Storage::kState ? *slot : widen4(*reinterpret_cast<const uint2*>(slot), in_.storage);
  }

 private:
  const B& block_;
  const StcInputs<float>& in_;
  float4* slots_;
  bool cached_;
};

}  // namespace stc::cuda

// The convolutions of the general kernels: of the spikes with both pathways' weights, its transpose, and the gradient
// of the weights. Any kernel size, channels per group and map; float and double.
//
// They read maps with their halo of zeros (PaddedMap), so that no tap asks where it is. A thread holds a tile of sums
// in registers, so that what one load brings serves several products. Pixels of all samples are dealt to the threads in
// one row, so that small maps fill the warps, too.
#pragma once

#include "../params.h"
#include "../surrogate.h"  // STC_HD
#include "gpu.cuh"

namespace stc::cuda {

constexpr int kConvThreads = 128;
// Of a multiprocessor, as registers allow: left alone, ptxas spills some to seat another block.
template <class T>
constexpr int kConvBlocks = sizeof(T) == 4 ? 4 : 2;
constexpr int kPaths = 2;  // temporal, spatial

// A map with K / 2 zeros around it.
struct PaddedMap {
  int pad, width;  // of a row with its zeros
  int64_t area;

  STC_HD explicit PaddedMap(const Shape& s)
      : pad(int(s.kernel / 2)), width(int(s.width) + 2 * pad), area((s.height + 2 * pad) * width) {}
  // Of a pixel (y, x).
  STC_HD int64_t at(int y, int x) const { return int64_t(y + pad) * width + x + pad; }
};

// Elements of [N, C, padded map], and zeros behind it: the weight gradient reads that far past the last map.
constexpr int kBehind = 96;
STC_HD int64_t padded_elements(const Shape& s) { return s.samples * s.channels * PaddedMap(s).area + kBehind; }

// Channels of a group that a thread of the convolutions takes together; those beyond the group have weights of zero.
template <class T>
STC_HD int conv_chunk(int64_t in_group) {
  return sizeof(T) == 4 && in_group > 4 ? 8 : 4;
}
STC_HD int64_t conv_chunks(int64_t in_group, int chunk) { return (in_group + chunk - 1) / chunk; }

// Weights in the order in which the convolutions read them: [groups][chunks][inputs of the group][taps][kPaths][chunk].
STC_HD int64_t packed_weights(const Shape& s, int chunk) {
  const int64_t in_group = s.channels / s.groups;
  return s.groups * conv_chunks(in_group, chunk) * in_group * s.kernel * s.kernel * kPaths * chunk;
}

// One packed weight a thread. `Transposed` swaps inputs and outputs and turns the taps around.
template <class T, int Chunk, bool Transposed>
__global__ void pack_gates(Shape s, const T* temporal, const T* spatial, T* packed) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packed_weights(s, Chunk)) return;
  const int64_t in_group = s.channels / s.groups, taps = s.kernel * s.kernel;
  const int64_t lane = i % Chunk, path = i / Chunk % kPaths, tap = i / Chunk / kPaths % taps;
  const int64_t from = i / Chunk / kPaths / taps % in_group, block = i / Chunk / kPaths / taps / in_group;
  const int64_t chunks = conv_chunks(in_group, Chunk), group = block / chunks, to = block % chunks * Chunk + lane;
  const int64_t output = Transposed ? from : to, input = Transposed ? to : from;
  const int64_t at = ((group * in_group + output) * in_group + input) * taps + (Transposed ? taps - 1 - tap : tap);
  packed[i] = to < in_group ? (path ? spatial : temporal)[at] : T(0);
}

// Four floats or two doubles in one access.
template <class T>
struct alignas(16) Sixteen {
  T of[16 / sizeof(T)];
};

template <class T, int Count>
__device__ __forceinline__ void load_packed(const T* from, T (&to)[Count]) {
  constexpr int kWide = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < Count; i += kWide) {
    const auto wide = *reinterpret_cast<const Sixteen<T>*>(from + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) to[i + j] = wide.of[j];
  }
}

// A thread owns pixels kConvThreads apart and Chunk channels.
template <class T>
constexpr int kConvPixels = sizeof(T) == 4 ? 2 : 1;

template <class T>
STC_HD int64_t conv_pixel_blocks(const Shape& s) {
  const int64_t owned = kConvThreads * kConvPixels<T>;
  return (s.samples * s.height * s.width + owned - 1) / owned;
}

// The weights of one input channel after another in shared memory, the next one's on their way in registers meanwhile.
template <class T, int Count>
class StagedWeights {
  static constexpr int kWide = 16 / sizeof(T), kPieces = (Count / kWide + kConvThreads - 1) / kConvThreads;

 public:
  // All threads of the block call fetch and then put; then, after a barrier, the weights are in of(c).
  __device__ StagedWeights(const T* packed, T* shared) : packed_(packed), shared_(shared) {}

  __device__ __forceinline__ void fetch(int64_t c) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (piece(i) < Count) next_[i] = *reinterpret_cast<const Sixteen<T>*>(packed_ + c * Count + piece(i));
  }
  __device__ __forceinline__ void put(int64_t c) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i)
      if (piece(i) < Count) *reinterpret_cast<Sixteen<T>*>(shared_ + c % 2 * Count + piece(i)) = next_[i];
  }
  __device__ __forceinline__ const T* of(int64_t c) const { return shared_ + c % 2 * Count; }

 private:
  static __device__ __forceinline__ int piece(int i) { return (i * kConvThreads + int(threadIdx.x)) * kWide; }

  const T* packed_;
  T* shared_;
  Sixteen<T> next_[kPieces];
};

// One block a run of pixels and chunk of a group's channels. Kernel = 0: of any size.
//   plain:       to [kPaths][N, C, H, W] = the convolutions of from [N, C, padded map], the spikes
//   Transposed:  to [N, C, H, W] = the sum of both pathways' transposed convolutions of from [kPaths][N, C, padded map]
template <class T, int Chunk, int Kernel, bool Transposed>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<T>)
    gate_convolutions(Shape s, const T* __restrict__ packed, const T* __restrict__ from, T* __restrict__ to) {
  constexpr int kPixels = kConvPixels<T>, kInputs = Transposed ? kPaths : 1, kWeights = kPaths * Chunk;
  constexpr int kSums = Transposed ? Chunk : kWeights, kRow = Kernel ? Kernel : 1, kStaged = kRow * kRow * kWeights;
  GPU_SHARED(alignas(16) T, shared, [2 * kStaged]);
  const PaddedMap map(s);
  const int kernel = Kernel ? Kernel : int(s.kernel), width = int(s.width);
  const int64_t pixels = s.height * s.width, all = s.samples * pixels, in_group = s.channels / s.groups;
  const int64_t path = s.samples * s.channels * map.area;  // from one pathway's inputs to the other's
  const int64_t blocks = conv_pixel_blocks<T>(s), chunks = conv_chunks(in_group, Chunk);
  const int64_t place = blockIdx.x / blocks, group = place / chunks, chunk = place % chunks;
  const int64_t first = (blockIdx.x % blocks) * kPixels * kConvThreads + threadIdx.x;

  const T* tap[kPixels];  // the first of a kernel row
  int64_t out[kPixels];   // from the group's first channel; -1 behind the last pixel
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const bool owned = first + p * kConvThreads < all;
    const int64_t image_pixel = owned ? first + p * kConvThreads : 0,
                  plane = image_pixel / pixels * s.channels + group * in_group;
    const int pixel = int(image_pixel % pixels);
    tap[p] = from + plane * map.area + int64_t(pixel / width) * map.width + pixel % width;
    out[p] = owned ? plane * pixels + pixel : -1;
  }
  const auto add = [&](const T* weights, const T(&input)[kPixels][kInputs][kRow], int kx, T(&sum)[kPixels][kSums]) {
    T weight[kWeights];
    load_packed(weights, weight);
#pragma unroll
    for (int p = 0; p < kPixels; ++p)
#pragma unroll
      for (int j = 0; j < kSums; ++j) {
        sum[p][j] += weight[j] * input[p][0][kx];
        if constexpr (Transposed) sum[p][j] += weight[Chunk + j] * input[p][1][kx];
      }
  };

  T total[kPixels][kSums] = {};
  packed += place * in_group * kernel * kernel * kWeights;
  [[maybe_unused]] StagedWeights<T, kStaged> staged(packed, shared);
  if constexpr (Kernel > 0) {
    staged.fetch(0);
    staged.put(0);
    __syncthreads();
  }
  for (int64_t c = 0; c < in_group; ++c) {
    if (Kernel > 0 && c + 1 < in_group) staged.fetch(c + 1);
    T sum[kPixels][kSums] = {};  // of this channel alone: short sums round less than one running total
#pragma unroll 1
    for (int ky = 0; ky < kernel; ++ky) {
      T input[kPixels][kInputs][kRow];
      if constexpr (Kernel > 0) {
#pragma unroll
        for (int p = 0; p < kPixels; ++p)
#pragma unroll
          for (int i = 0; i < kInputs; ++i)
#pragma unroll
            for (int kx = 0; kx < Kernel; ++kx) input[p][i][kx] = tap[p][i * path + kx];
#pragma unroll
        for (int kx = 0; kx < Kernel; ++kx) add(staged.of(c) + (ky * Kernel + kx) * kWeights, input, kx, sum);
      } else {
        for (int kx = 0; kx < kernel; ++kx, packed += kWeights) {
#pragma unroll
          for (int p = 0; p < kPixels; ++p)
#pragma unroll
            for (int i = 0; i < kInputs; ++i) input[p][i][0] = tap[p][i * path + kx];
          add(packed, input, 0, sum);
        }
      }
#pragma unroll
      for (int p = 0; p < kPixels; ++p) tap[p] += map.width;
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      tap[p] += map.area - int64_t(kernel) * map.width;
#pragma unroll
      for (int j = 0; j < kSums; ++j) total[p][j] += sum[p][j];
    }
    if constexpr (Kernel > 0) {
      if (c + 1 < in_group) staged.put(c + 1);
      __syncthreads();
    }
  }

#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    if (out[p] < 0) continue;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
      const int64_t channel = chunk * Chunk + j % Chunk;
      if (channel < in_group) to[j / Chunk * s.channels * all + out[p] + channel * pixels] = total[p][j];
    }
  }
}

// ---- gradient of the weights -------------------------------------------------------------------------------------

// A warp has kChunk outputs of both pathways, one input and Taps neighbours of a kernel row, and sums over its part of
// the maps. It walks along a padded map from the first pixel to the last, through the zeros at the ends of rows, where
// z' is 0, in lines of kLine places: without a thought for rows, one address serves all of a line. Where maps are
// small, a line has several of them.
struct WeightTiles {
  static constexpr int kChunk = 4, kWarps = kConvThreads / 32;
  static constexpr int kLine = 64;           // places
  static constexpr int kBatch = 32;          // lines that a warp sums in single precision
  static constexpr int kWantedWarps = 8192;  // fill the largest cards
  int64_t chunks, pieces;                    // of a group's outputs; of a kernel row
  int64_t tiles;                             // of all weights
  int64_t places;                            // of a map
  int maps;                                  // of a line where they are small, else 0
  int64_t lines_of_map, lines;               // of a map where it is not small; of all
  int64_t splits;                            // of the lines

  STC_HD explicit WeightTiles(const Shape& s)
      : chunks(conv_chunks(s.channels / s.groups, kChunk)),
        pieces((s.kernel + taps(s) - 1) / taps(s)),
        tiles(s.groups * chunks * (s.channels / s.groups) * s.kernel * pieces),
        places((s.height - 1) * PaddedMap(s).width + s.width),
        maps(places > kLine / 2 ? 0 : kLine / int(places)),
        lines_of_map((places + kLine - 1) / kLine),
        lines(maps ? (s.samples + maps - 1) / maps : s.samples * lines_of_map) {
    const int64_t most = (lines + kBatch - 1) / kBatch;
    splits = (kWantedWarps + tiles - 1) / (tiles > 0 ? tiles : 1);
    if (splits > most) splits = most;
    if (splits < 1) splits = 1;
  }
  STC_HD static int taps(const Shape& s) { return s.kernel > 3 ? 5 : 3; }
  STC_HD int64_t sums(const Shape& s) const { return splits * tiles * kPaths * kChunk * taps(s); }
  STC_HD int64_t blocks() const { return (splits * tiles + kWarps - 1) / kWarps; }
};

// A lane's places in one line after another: elements from the first pixel of the first sample.
template <bool Small>
class Places;

template <>
class Places<false> {
 public:
  __device__ Places(const WeightTiles& cut, const Shape&, int64_t sample_size, int64_t line)
      : lane_(int(threadIdx.x % 32)),
        in_map_(line % cut.lines_of_map),
        here_(line / cut.lines_of_map * sample_size + in_map_ * WeightTiles::kLine + lane_) {}

  __device__ __forceinline__ bool on_map(const WeightTiles& cut, int i) const {
    return in_map_ * WeightTiles::kLine + i * 32 + lane_ < cut.places;
  }
  __device__ __forceinline__ int64_t at(int i) const { return here_ + i * 32; }
  __device__ __forceinline__ void next(const WeightTiles& cut, int64_t sample_size) {
    here_ += WeightTiles::kLine;
    if (++in_map_ == cut.lines_of_map) {
      in_map_ = 0;
      here_ += sample_size - cut.lines_of_map * WeightTiles::kLine;
    }
  }

 private:
  int lane_;
  int64_t in_map_, here_;
};

template <>
class Places<true> {
 public:
  __device__ Places(const WeightTiles& cut, const Shape& s, int64_t sample_size, int64_t line) {
#pragma unroll
    for (int i = 0; i < WeightTiles::kLine / 32; ++i) {
      const int slot = i * 32 + int(threadIdx.x % 32), map = slot / int(cut.places);
      const int64_t sample = line * cut.maps + map;
      left_[i] = map < cut.maps ? s.samples - sample : 0;
      here_[i] = sample * sample_size + slot % int(cut.places);
    }
  }

  __device__ __forceinline__ bool on_map(const WeightTiles&, int i) const { return left_[i] > 0; }
  __device__ __forceinline__ int64_t at(int i) const { return here_[i]; }
  __device__ __forceinline__ void next(const WeightTiles& cut, int64_t sample_size) {
#pragma unroll
    for (int i = 0; i < WeightTiles::kLine / 32; ++i) {
      left_[i] -= cut.maps;
      here_[i] += cut.maps * sample_size;
    }
  }

 private:
  int64_t left_[WeightTiles::kLine / 32];  // samples from this place's on; 0 or less: none
  int64_t here_[WeightTiles::kLine / 32];
};

// sums [splits][tiles][kPaths][kChunk][Taps] += the gradients z' of the convolutions, [kPaths][N, C, padded map],
// correlated with the spikes [N, C, padded map]. One warp a split and tile; a block's warps read the same z'. Outputs
// and taps that a tile has too many are sums that nobody reads.
template <class T, int Taps, bool Small>
__global__ void __launch_bounds__(kConvThreads, kConvBlocks<T>)
    weight_sums(Shape s, WeightTiles cut, const T* __restrict__ grad, const T* __restrict__ spikes, T* sums,
                bool first_step) {
  constexpr int kChunk = WeightTiles::kChunk, kSums = kPaths * kChunk * Taps, kKept = (kSums + 31) / 32;
  constexpr int kMine = WeightTiles::kLine / 32;
  const int lane = int(threadIdx.x % 32);
  const int64_t warp = int64_t(blockIdx.x) * WeightTiles::kWarps + threadIdx.x / 32;
  if (warp >= cut.splits * cut.tiles) return;
  const PaddedMap map(s);
  const int64_t in_group = s.channels / s.groups, sample_size = s.channels * map.area;
  const int64_t tile = warp % cut.tiles, split = warp / cut.tiles;
  const int64_t kx = tile % cut.pieces * Taps, ky = tile / cut.pieces % s.kernel;
  const int64_t input = tile / cut.pieces / s.kernel % in_group, block = tile / cut.pieces / s.kernel / in_group;
  const int64_t group = block / cut.chunks, output = block % cut.chunks * kChunk;
  spikes += (group * in_group + input) * map.area + ky * map.width + kx;
  const T* z[kPaths][kChunk];
#pragma unroll
  for (int path = 0; path < kPaths; ++path)
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      const int64_t channel = output + c < in_group ? output + c : output;
      z[path][c] = grad + path * s.samples * sample_size + (group * in_group + channel) * map.area + map.at(0, 0);
    }

  const int64_t end = (split + 1) * cut.lines / cut.splits;
  int64_t line = split * cut.lines / cut.splits;
  Places<Small> places(cut, s, sample_size, line);
  double kept[kKept] = {};  // sum i in lane i % 32
  while (line < end) {
    const int64_t batch_end = line + WeightTiles::kBatch < end ? line + WeightTiles::kBatch : end;
    T sum[kPaths][kChunk][Taps] = {};
#pragma unroll 1
    for (; line < batch_end; ++line) {
      // Beside the map lie other channels, whose numbers may not be finite.
      T spike[kMine][Taps];
      bool on_map[kMine];
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
        on_map[i] = places.on_map(cut, i);
#pragma unroll
        for (int t = 0; t < Taps; ++t) spike[i][t] = on_map[i] ? spikes[places.at(i) + t] : T(0);
      }
#pragma unroll
      for (int path = 0; path < kPaths; ++path)
#pragma unroll
        for (int c = 0; c < kChunk; ++c)
#pragma unroll
          for (int i = 0; i < kMine; ++i) {
            const T of_output = on_map[i] ? z[path][c][places.at(i)] : T(0);
#pragma unroll
            for (int t = 0; t < Taps; ++t) sum[path][c][t] += of_output * spike[i][t];
          }
      places.next(cut, sample_size);
    }
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      T value = sum[i / Taps / kChunk][i / Taps % kChunk][i % Taps];
#pragma unroll
      for (int distance = 16; distance; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
      if (lane == i % 32) kept[i / 32] += value;
    }
  }
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    const int i = k * 32 + lane;
    if (i >= kSums) continue;
    T& sum = sums[warp * kSums + i];
    sum = T(first_step ? kept[k] : sum + kept[k]);
  }
}

// One weight of both pathways a thread.
template <class T>
__global__ void weight_gradients(Shape s, WeightTiles cut, const T* sums, T* temporal, T* spatial) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, in_group = s.channels / s.groups;
  if (i >= s.channels * in_group * s.kernel * s.kernel) return;
  const int64_t taps = WeightTiles::taps(s), count = kPaths * WeightTiles::kChunk * taps;
  const int64_t kx = i % s.kernel, ky = i / s.kernel % s.kernel, input = i / s.kernel / s.kernel % in_group;
  const int64_t channel = i / s.kernel / s.kernel / in_group, output = channel % in_group;
  const int64_t block = channel / in_group * cut.chunks + output / WeightTiles::kChunk;
  const int64_t tile = ((block * in_group + input) * s.kernel + ky) * cut.pieces + kx / taps;
  const int64_t place = tile * count + output % WeightTiles::kChunk * taps + kx % taps;
  double a = 0, b = 0;
  for (int64_t split = 0; split < cut.splits; ++split) {
    const T* of_split = sums + split * cut.tiles * count + place;
    a += of_split[0];
    b += of_split[WeightTiles::kChunk * taps];
  }
  temporal[i] = T(a);
  spatial[i] = T(b);
}

}  // namespace stc::cuda

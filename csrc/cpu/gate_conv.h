// The gate convolutions of one convolution group, both pathways at once.
//
// Feature maps inside are pixel-major: all channels of a pixel lie side by side, so the K taps of one kernel row, seen
// from one input pixel, are one contiguous run of K * outputs values. A spike adds such a run of weights to the output
// row; many spikes of one pixel are first summed in registers. Weights are packed to match:
//
//   gate weights   [ky][ci][j][o]   o: temporal outputs, spatial outputs, zeros;   j = K - 1 - kx
//   transposed     [r][o][j][ci]    r = K - 1 - ky: the convolution that carries gradients back to the spikes
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "layout.h"

namespace stc::STC_SIMD_NAMESPACE {

enum class TapOrder { kAscending, kDescending };

// weight[path]: [in_group (outputs)][in_group (inputs)][K][K] of one group. `order` is that of j along kx.
template <class T>
void pack_gate_weights(const Layout<T>& l, const T* const (&weight)[2], TapOrder order, T* packed) {
  std::fill_n(packed, l.gate_weights(), T(0));
  const int64_t k = l.kernel;
  for (int path = 0; path < 2; ++path)
    for (int64_t co = 0; co < l.in_group; ++co)
      for (int64_t ci = 0; ci < l.in_group; ++ci) {
        const T* taps = weight[path] + (co * l.in_group + ci) * k * k;
        for (int64_t ky = 0; ky < k; ++ky)
          for (int64_t kx = 0; kx < k; ++kx) {
            const int64_t j = order == TapOrder::kDescending ? k - 1 - kx : kx;
            packed[((ky * l.in_group + ci) * k + j) * l.outputs + path * l.in_group + co] = taps[ky * k + kx];
          }
      }
}

// The inverse of the above (descending order), for the gradient.
template <class T>
void unpack_gate_weights(const Layout<T>& l, const T* packed, T* const (&weight)[2]) {
  const int64_t k = l.kernel;
  for (int path = 0; path < 2; ++path)
    for (int64_t co = 0; co < l.in_group; ++co)
      for (int64_t ci = 0; ci < l.in_group; ++ci) {
        T* taps = weight[path] + (co * l.in_group + ci) * k * k;
        for (int64_t ky = 0; ky < k; ++ky)
          for (int64_t kx = 0; kx < k; ++kx)
            taps[ky * k + kx] =
                packed[((ky * l.in_group + ci) * k + (k - 1 - kx)) * l.outputs + path * l.in_group + co];
      }
}

template <class T>
void pack_transposed_weights(const Layout<T>& l, const T* const (&weight)[2], T* packed) {
  std::fill_n(packed, l.transposed_weights(), T(0));
  const int64_t k = l.kernel;
  for (int path = 0; path < 2; ++path)
    for (int64_t co = 0; co < l.in_group; ++co)
      for (int64_t ci = 0; ci < l.in_group; ++ci) {
        const T* taps = weight[path] + (co * l.in_group + ci) * k * k;
        for (int64_t ky = 0; ky < k; ++ky)
          for (int64_t kx = 0; kx < k; ++kx)
            packed[(((k - 1 - ky) * 2 * l.in_group + path * l.in_group + co) * k + (k - 1 - kx)) * l.inputs + ci] =
                taps[ky * k + kx];
      }
}

// ---- spikes as events -------------------------------------------------------------------------------------------

// Words of spikes, [word][pixel]: bit c % 32 of word c / 32 = channel c.
struct PlaneWords {
  const uint32_t* words;
  int64_t plane;
  uint32_t operator()(int64_t word, int64_t pixel) const { return words[word * plane + pixel]; }
};

// The places of the bits that are set in a byte.
struct SetBits {
  static constexpr int kBits = 8;
  struct Table {
    uint8_t place[1 << kBits][kBits];
    uint8_t count[1 << kBits];
  };
  static constexpr Table make() {
    Table table{};
    for (int byte = 0; byte < 1 << kBits; ++byte)
      for (int bit = 0; bit < kBits; ++bit)
        if (byte >> bit & 1) table.place[byte][table.count[byte]++] = uint8_t(bit);
    return table;
  }

  // Writes kBits numbers, of which those of set bits come first, and tells how many these are.
  static int32_t put(uint32_t bits, int32_t base, int32_t* to) {
    static constexpr Table kTable = make();
    const uint32_t byte = bits & ((1 << kBits) - 1);
    for (int i = 0; i < kBits; ++i) to[i] = base + kTable.place[byte][i];
    return kTable.count[byte];
  }
};

// The spikes of one convolution group by pixel. Pixels of a row are sorted by their number of spikes, so that the inner
// loop over the spikes of a pixel has a trip count that the branch predictor knows. `Map` is a layout with height,
// width, pixels, in_group and words.
struct PixelEvents {
  struct Pixel {
    int32_t column;
    int32_t first;  // of its channels in `channels`
    int32_t count;
  };
  std::vector<Pixel> pixels;      // with at least one spike, row by row
  std::vector<int32_t> channels;  // firing channels
  std::vector<int32_t> row_begin;
  std::vector<int32_t> bucket;  // of one row: first slot of each spike count
  std::vector<Pixel> row;       // of one row, unsorted

  template <class Map>
  void reserve(const Map& l, int64_t spikes) {
    pixels.resize(l.pixels);
    channels.resize(spikes + SetBits::kBits);
    row_begin.resize(l.height + 1);
    bucket.resize(l.in_group + 2);
    row.resize(l.width + 1);
  }

  // word(w, pixel): as PlaneWords. Free of branches on the spikes, which no predictor knows.
  template <class Map, class Words>
  void build(const Map& l, const Words& word) {
    int32_t n_channels = 0, n_pixels = 0;
    for (int64_t y = 0; y < l.height; ++y) {
      row_begin[y] = n_pixels;
      std::fill(bucket.begin(), bucket.end(), 0);
      int32_t found = 0;
      for (int64_t x = 0; x < l.width; ++x) {
        const int32_t first = n_channels;
        for (int64_t w = 0; w < l.words; ++w) {
          const uint32_t bits = word(w, y * l.width + x);
          const int64_t end = std::min<int64_t>(l.in_group, w * 32 + 32);
          for (int64_t base = w * 32; base < end; base += SetBits::kBits)
            n_channels += SetBits::put(bits >> base % 32, int32_t(base), channels.data() + n_channels);
        }
        row[found] = {int32_t(x), first, n_channels - first};
        found += n_channels > first;
        ++bucket[n_channels - first + 1];
      }
      bucket[1] = 0;  // pixels without a spike
      for (int64_t c = 1; c <= l.in_group; ++c) bucket[c + 1] += bucket[c];
      for (int32_t i = 0; i < found; ++i) pixels[n_pixels + bucket[row[i].count]++] = row[i];
      n_pixels += found;
    }
    row_begin[l.height] = n_pixels;
  }
};

// Adds the runs of `Vectors` SIMD vectors, from vector `offset` of each run on, that the spikes of one input row give
// to one output row. weights: of this kernel row, [ci][run]; out: the padded output row.
template <class T, int Vectors>
void add_event_row(const PixelEvents& events, int64_t input_row, const T* weights, int64_t run, int64_t outputs,
                   T* out) {
  using V = Simd<T>;
  const int32_t end = events.row_begin[input_row + 1];
  for (int32_t e = events.row_begin[input_row]; e < end; ++e) {
    const PixelEvents::Pixel pixel = events.pixels[e];
    const int32_t* channel = events.channels.data() + pixel.first;
    typename V::Real sum[Vectors];
    const T* first = weights + channel[0] * run;
    for (int i = 0; i < Vectors; ++i) sum[i] = V::load(first + i * V::kLanes);
    for (int32_t k = 1; k < pixel.count; ++k) {
      const T* w = weights + channel[k] * run;
      for (int i = 0; i < Vectors; ++i) sum[i] += V::load(w + i * V::kLanes);
    }
    T* target = out + pixel.column * outputs;
    for (int i = 0; i < Vectors; ++i) V::store(target + i * V::kLanes, V::load(target + i * V::kLanes) + sum[i]);
  }
}

// A run of K * outputs values is handled in register-sized pieces of equal length; these are the lengths compiled.
constexpr int kMaxVectors = 12;

inline int piece_length(int64_t vectors) {
  const int64_t pieces = (vectors + kMaxVectors - 1) / kMaxVectors;
  return int((vectors + pieces - 1) / pieces);
}

template <class T, int Vectors = kMaxVectors>
auto event_row_kernel(int vectors) {
  if constexpr (Vectors > 1)
    return vectors == Vectors ? &add_event_row<T, Vectors> : event_row_kernel<T, Vectors - 1>(vectors);
  else
    return &add_event_row<T, 1>;
}

// Adds all runs that the spikes of one input row give to one output row through one kernel row: weights [ci][run].
template <class T, class Map>
void add_event_runs(const Map& l, const PixelEvents& events, int64_t input_row, const T* weights, T* out) {
  const int64_t run = l.kernel * l.outputs, vectors = run / Simd<T>::kLanes;
  const int length = piece_length(vectors);
  for (int64_t piece = 0; piece < vectors; piece += length) {
    const int n = int(std::min<int64_t>(length, vectors - piece));
    const int64_t offset = piece * Simd<T>::kLanes;
    event_row_kernel<T>(n)(events, input_row, weights + offset, run, l.outputs, out + offset);
  }
}

// One output row of both gate convolutions: out [padded_width][outputs], the halo columns included (and meaningless).
template <class T>
void event_conv_row(const Layout<T>& l, const PixelEvents& events, const T* packed, int64_t y, T* out) {
  std::fill_n(out, l.padded_width * l.outputs, T(0));
  for (int64_t ky = 0; ky < l.kernel; ++ky) {
    const int64_t input_row = y + ky - l.pad;
    if (input_row >= 0 && input_row < l.height)
      add_event_runs(l, events, input_row, packed + ky * l.in_group * l.kernel * l.outputs, out);
  }
}

// The spikes of a band of rows by channel, for the weight gradient: offsets of their windows in the padded map.
struct ChannelEvents {
  std::vector<int32_t> offsets;  // [in_group][capacity]
  std::vector<int32_t> counts;   // [in_group]
  std::vector<int32_t> order;    // channels with spikes, by their number, for the branch predictor's sake
  std::vector<int32_t> bucket;   // first place of each number
  int64_t capacity = 0;

  template <class Map>
  void reserve(const Map& l, int64_t rows) {
    capacity = rows * l.width;
    offsets.resize(l.in_group * capacity);
    counts.resize(l.in_group);
    order.resize(l.in_group);
    bucket.resize(capacity + 2);
  }

  template <class Map, class Words>
  void build(const Map& l, const Words& word, int64_t y_begin, int64_t y_end) {
    std::fill(counts.begin(), counts.end(), 0);
    for (int64_t y = y_begin; y < y_end; ++y)
      for (int64_t x = 0; x < l.width; ++x) {
        const int32_t offset = int32_t((y * l.padded_width + x) * l.outputs);
        for (int64_t w = 0; w < l.words; ++w)
          for (uint32_t bits = word(w, y * l.width + x); bits; bits &= bits - 1) {
            const int64_t c = w * 32 + __builtin_ctz(bits);
            offsets[c * capacity + counts[c]++] = offset;
          }
      }
    sort(l.in_group);
  }

 private:
  void sort(int64_t channels) {
    const int32_t most = *std::max_element(counts.begin(), counts.begin() + channels);
    std::fill_n(bucket.begin(), most + 2, 0);
    for (int64_t c = 0; c < channels; ++c) ++bucket[counts[c] + 1];
    order.resize(channels - bucket[1]);
    bucket[1] = 0;
    for (int32_t n = 1; n <= most; ++n) bucket[n + 1] += bucket[n];
    for (int64_t c = 0; c < channels; ++c)
      if (counts[c]) order[bucket[counts[c]]++] = int32_t(c);
  }
};

template <class T, int Vectors>
void add_event_windows(const int32_t* offsets, int32_t count, const T* map, T* grad) {
  using V = Simd<T>;
  typename V::Real sum[Vectors] = {};  // of this band alone: short sums round less than one running total
  for (int32_t e = 0; e < count; ++e) {
    const T* window = map + offsets[e];
    for (int i = 0; i < Vectors; ++i) sum[i] += V::load(window + i * V::kLanes);
  }
  for (int i = 0; i < Vectors; ++i) V::store(grad + i * V::kLanes, V::load(grad + i * V::kLanes) + sum[i]);
}

template <class T, int Vectors = kMaxVectors>
auto event_window_kernel(int vectors) {
  if constexpr (Vectors > 1)
    return vectors == Vectors ? &add_event_windows<T, Vectors> : event_window_kernel<T, Vectors - 1>(vectors);
  else
    return &add_event_windows<T, 1>;
}

// Rows of a band: the rows of the gradient map that it touches should stay in the first-level cache.
template <class T>
int64_t band_rows(const Layout<T>& l) {
  constexpr int64_t kCacheBytes = 20 * 1024;
  const int64_t row_bytes = l.padded_width * l.outputs * sizeof(T);
  return std::clamp<int64_t>(kCacheBytes / row_bytes, 1, l.height);
}

// Adds to `grad` (packed like the gate weights, descending) the correlation of the spikes with the gradient map
// [padded_height][padded_width][outputs], whose halo is zero. `rows` of the map make a band.
template <class T, class Map, class Words>
void event_weight_gradient(const Map& l, ChannelEvents& events, const Words& word, int64_t rows, const T* map,
                           T* grad) {
  const int64_t run = l.kernel * l.outputs, vectors = run / Simd<T>::kLanes;
  const int length = piece_length(vectors);
  for (int64_t y = 0; y < l.height; y += rows) {
    events.build(l, word, y, std::min(l.height, y + rows));
    for (int64_t ky = 0; ky < l.kernel; ++ky) {
      // an input row y reaches the output row y + pad - ky, which is row y + 2 pad - ky of the padded map
      const T* shifted = map + (l.kernel - 1 - ky) * l.padded_width * l.outputs;
      for (const int32_t ci : events.order) {
        T* target = grad + (ky * l.in_group + ci) * run;
        for (int64_t piece = 0; piece < vectors; piece += length) {
          const int n = int(std::min<int64_t>(length, vectors - piece));
          const int64_t offset = piece * Simd<T>::kLanes;
          event_window_kernel<T>(n)(events.offsets.data() + ci * events.capacity, events.counts[ci], shifted + offset,
                                    target + offset);
        }
      }
    }
  }
}

// ---- real-valued inputs -----------------------------------------------------------------------------------------

// out[p][o] for Pixels pixels and Vectors SIMD vectors of outputs, summed over a K x K window of a padded map:
// map [row][column][channels], weights [K][channels][K][out_stride].
template <class T, int Vectors, int Pixels>
void dense_conv_block(const T* map, int64_t row_stride, int64_t channel_stride, int64_t channels, int64_t kernel,
                      const T* weights, int64_t out_stride, T* out) {
  using V = Simd<T>;
  typename V::Real sum[Pixels][Vectors];
  for (int p = 0; p < Pixels; ++p)
    for (int i = 0; i < Vectors; ++i) sum[p][i] = typename V::Real{};
  for (int64_t r = 0; r < kernel; ++r)
    for (int64_t c = 0; c < channels; ++c) {
      const T* x = map + r * row_stride + c;
      for (int64_t j = 0; j < kernel; ++j, x += channel_stride, weights += out_stride) {
        typename V::Real w[Vectors];
        for (int i = 0; i < Vectors; ++i) w[i] = V::load(weights + i * V::kLanes);
        for (int p = 0; p < Pixels; ++p) {
          const typename V::Real value = V::broadcast(x[p * channel_stride]);
          for (int i = 0; i < Vectors; ++i) sum[p][i] += value * w[i];
        }
      }
    }
  for (int p = 0; p < Pixels; ++p)
    for (int i = 0; i < Vectors; ++i) V::store(out + p * out_stride + i * V::kLanes, sum[p][i]);
}

template <class T>
using DenseKernel = void (*)(const T*, int64_t, int64_t, int64_t, int64_t, const T*, int64_t, T*);

template <int Vectors>
constexpr int kMaxPixels = Vectors == 1 ? 8 : 12 / Vectors;

template <class T, int Vectors, int Pixels = kMaxPixels<Vectors>>
DenseKernel<T> dense_kernel(int pixels) {
  if constexpr (Pixels > 1)
    return pixels == Pixels ? &dense_conv_block<T, Vectors, Pixels> : dense_kernel<T, Vectors, Pixels - 1>(pixels);
  else
    return &dense_conv_block<T, Vectors, 1>;
}

// One output row [width][out_stride] of a convolution of a padded pixel-major map [padded_height][padded_width]
// [channel_stride], of which `channels` are used.
template <class T>
void dense_conv_row(const Layout<T>& l, const T* map, int64_t channels, int64_t channel_stride, const T* weights,
                    int64_t out_stride, int64_t y, T* out) {
  const int64_t row_stride = l.padded_width * channel_stride;
  for (int64_t o = 0; o < out_stride;) {
    const int vectors = int(std::min<int64_t>(4, (out_stride - o) / Layout<T>::kLanes));
    const int limit = vectors == 1 ? kMaxPixels<1> : 12 / vectors;
    // blocks of equal size rather than a small remainder, which would be bound by latency
    const int64_t blocks = (l.width + limit - 1) / limit;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * l.width / blocks;
      const int pixels = int((b + 1) * l.width / blocks - begin);
      const DenseKernel<T> kernel = vectors == 4   ? dense_kernel<T, 4>(pixels)
                                    : vectors == 3 ? dense_kernel<T, 3>(pixels)
                                    : vectors == 2 ? dense_kernel<T, 2>(pixels)
                                                   : dense_kernel<T, 1>(pixels);
      kernel(map + y * row_stride + begin * channel_stride, row_stride, channel_stride, channels, l.kernel, weights + o,
             out_stride, out + begin * out_stride + o);
    }
    o += vectors * Layout<T>::kLanes;
  }
}

// The weight gradient for real-valued (soft) spikes, planes [in_group][plane]; same result layout as for events.
template <class T>
void dense_weight_gradient(const Layout<T>& l, const T* spikes, const T* map, T* grad) {
  using V = Simd<T>;
  const int64_t run = l.kernel * l.outputs;
  for (int64_t y = 0; y < l.height; ++y)
    for (int64_t ky = 0; ky < l.kernel; ++ky)
      for (int64_t ci = 0; ci < l.in_group; ++ci) {
        T* target = grad + (ky * l.in_group + ci) * run;
        const T* row = map + (y + l.kernel - 1 - ky) * l.padded_width * l.outputs;
        for (int64_t x = 0; x < l.width; ++x) {
          const typename V::Real value = V::broadcast(spikes[ci * l.plane + y * l.width + x]);
          const T* window = row + x * l.outputs;
          for (int64_t i = 0; i < run; i += V::kLanes)
            V::store(target + i, V::load(target + i) + value * V::load(window + i));
        }
      }
}

// ---- between pixel-major rows and channel planes -----------------------------------------------------------------

// In place: rows[i][j] <-> rows[j][i].
template <class T>
void transpose_block(typename Simd<T>::Real (&rows)[Simd<T>::kLanes]) {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
#pragma GCC unroll 8
  for (int bit = 1; bit < kLanes; bit *= 2) {
    typename V::Mask low, high;
    for (int j = 0; j < kLanes; ++j) {
      low[j] = (j & bit) ? kLanes + j - bit : j;
      high[j] = (j & bit) ? kLanes + j : j + bit;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & bit)) {
        const typename V::Real a = rows[i], b = rows[i | bit];
        rows[i] = V::shuffle(a, b, low);
        rows[i | bit] = V::shuffle(a, b, high);
      }
  }
}

// row: [width][stride], channel c at offset c; writes [width] values to plane(c) for c in [0, channels). stride >=
// channels is a multiple of the lanes.
template <class T, class Planes>
void row_to_planes(const T* row, int64_t width, int64_t stride, int64_t channels, const Planes& plane) {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes)
    for (int64_t c = 0; c < channels; c += kLanes) {
      typename V::Real block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = V::load(row + (x + i) * stride + c);
      transpose_block<T>(block);
      const int64_t wanted = std::min<int64_t>(kLanes, channels - c);
      for (int64_t i = 0; i < wanted; ++i) V::store(plane(c + i) + x, block[i]);
    }
  for (; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) plane(c)[x] = row[x * stride + c];
}

// The inverse: channels [0, channels) of a row, the rest of `stride` untouched.
template <class T, class Planes>
void planes_to_row(const Planes& plane, int64_t width, int64_t channels, T* row, int64_t stride) {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
  int64_t x = 0;
  const int64_t whole = channels / kLanes * kLanes;
  for (; x + kLanes <= width; x += kLanes) {
    for (int64_t c = 0; c < whole; c += kLanes) {
      typename V::Real block[kLanes];
      for (int i = 0; i < kLanes; ++i) block[i] = V::load(plane(c + i) + x);
      transpose_block<T>(block);
      for (int i = 0; i < kLanes; ++i) V::store(row + (x + i) * stride + c, block[i]);
    }
    for (int64_t c = whole; c < channels; ++c)
      for (int i = 0; i < kLanes; ++i) row[(x + i) * stride + c] = plane(c)[x + i];
  }
  for (; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) row[x * stride + c] = plane(c)[x];
}

}  // namespace stc::STC_SIMD_NAMESPACE

// The feed-forward convolution of 0/1 spikes by events: every spike adds its weights to the output, or the gradients
// that it sees to the gradient of its weights.
//
// The output channels are cut into blocks of a few SIMD vectors, so that the K taps of one kernel row fill the
// registers and a kernel row's weights for all input channels, with the map that they are added to, stay in the
// second-level cache. Inside a block the layouts are those of gate_conv.h, with its loops:
//
//   packed weight   [ky][ci][j][o]              of one block; j = K - 1 - kx
//   gradient maps   [n][block][row][column][o]  with a halo of zeros
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "gate_conv.h"
#include "kernels.h"
#include "layout.h"

namespace stc::STC_SIMD_NAMESPACE {

// The bits of one sample as the words of gate_conv.h.
struct BitWords {
  const uint8_t* bits;  // [pixel][bytes]
  int64_t bytes;
  int64_t first_word;  // of each pixel

  uint32_t operator()(int64_t word, int64_t pixel) const {
    const int64_t first = 4 * (first_word + word);
    const uint8_t* p = bits + pixel * bytes + first;
    if (first + 4 <= bytes) return p[0] | p[1] << 8 | p[2] << 16 | uint32_t(p[3]) << 24;
    uint32_t value = 0;
    for (int64_t i = 0; first + i < bytes; ++i) value |= uint32_t(p[i]) << 8 * i;
    return value;
  }
};

inline int64_t count_bits(const BitWords& word, int64_t words, int64_t pixels) {
  int64_t count = 0;
  for (int64_t p = 0; p < pixels; ++p)
    for (int64_t w = 0; w < words; ++w) count += __builtin_popcount(word(w, p));
  return count;
}

// The names are those of Layout; a block of output channels takes the place of both pathways' outputs, and a chunk of
// input channels that of a convolution group.
template <class T>
struct SpikeConvLayout {
  static constexpr int kLanes = Simd<T>::kLanes;
  static constexpr int64_t kChunk = 64;  // input channels whose gradients stay in the second-level cache; whole words

  int64_t height, width, kernel, pad, pixels, padded_width, padded_height;
  int64_t in_channels, out_channels, bytes;
  int64_t blocks;    // of output channels
  int64_t outputs;   // of a block
  int64_t chunks;    // of input channels
  int64_t in_group;  // input channels at work
  int64_t words;     // that hold their spikes

  explicit SpikeConvLayout(const SpikeConvShape& s)
      : height(s.height),
        width(s.width),
        kernel(s.kernel),
        pad(s.kernel / 2),
        pixels(s.pixels()),
        padded_width(s.width + s.kernel - 1),
        padded_height(s.height + s.kernel - 1),
        in_channels(s.in_channels),
        out_channels(s.out_channels),
        bytes(s.bytes()),
        chunks((s.in_channels + kChunk - 1) / kChunk),
        in_group(s.in_channels),
        words((s.in_channels + 31) / 32) {
    const int64_t vectors = round_up(s.out_channels, kLanes) / kLanes;
    const int64_t most = std::max<int64_t>(1, kMaxVectors / s.kernel);
    blocks = (vectors + most - 1) / most;
    outputs = (vectors + blocks - 1) / blocks * kLanes;
  }

  int64_t taps() const { return kernel * kernel; }
  int64_t run() const { return kernel * outputs; }
  int64_t block_weights() const { return kernel * in_channels * run(); }
  int64_t map_size() const { return padded_height * padded_width * outputs; }
  int64_t first_output(int64_t block) const { return block * outputs; }
  int64_t outputs_of(int64_t block) const { return std::clamp<int64_t>(out_channels - block * outputs, 0, outputs); }

  // The same map, seen by one chunk of input channels.
  SpikeConvLayout of_chunk(int64_t chunk) const {
    SpikeConvLayout l = *this;
    l.in_group = std::min(kChunk, in_channels - chunk * kChunk);
    l.words = (l.in_group + 31) / 32;
    return l;
  }
};

template <class T>
SpikeConvTasks spike_conv_tasks(const SpikeConvShape& s) {
  const SpikeConvLayout<T> l(s);
  return {s.samples * l.blocks, s.samples * l.blocks, l.blocks * l.chunks, s.samples * l.blocks * l.map_size()};
}

// ---- values and bits ----------------------------------------------------------------------------------------------

// 32 channels of a vector of pixels at a time: one word a pixel.
template <class T>
int64_t pack_spikes(const SpikeBits<const T>& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int64_t tiles = (p.pixels + kSpikeTile - 1) / kSpikeTile, bytes = (p.channels + 7) / 8;
  int64_t count = 0;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / tiles, first = task % tiles * kSpikeTile;
    const int64_t last = std::min(p.pixels, first + kSpikeTile);
    for (int64_t c = 0; c < p.channels; c += 32) {
      const int64_t channels = std::min<int64_t>(32, p.channels - c), width = (channels + 7) / 8;
      typename V::Mask wrong{};
      for (int64_t i = first; i < last; i += V::kLanes) {
        const T* x = p.values + (n * p.channels + c) * p.pixels + i;
        const int64_t lanes = std::min<int64_t>(V::kLanes, last - i);
        typename V::Word word{};
        for (int64_t bit = 0; bit < channels; ++bit, x += p.pixels) {
          const typename V::Real value = V::load(x, lanes);
          const typename V::Mask one = value == T(1);
          wrong |= ~(one | (value == T(0)));
          word |= V::narrow(one) & int32_t(uint32_t(1) << bit);
        }
        uint8_t* bits = p.bits + (n * p.pixels + i) * bytes + c / 8;
        for (int64_t k = 0; k < lanes; ++k, bits += bytes) {
          const uint32_t pixel = word[k];
          count += __builtin_popcount(pixel);
          for (int64_t b = 0; b < width; ++b) bits[b] = uint8_t(pixel >> 8 * b);
        }
      }
      for (int k = 0; k < V::kLanes; ++k)
        if (wrong[k]) return -1;
    }
  }
  return count;
}

template <class T>
void unpack_spikes(const SpikeBits<T>& p, int64_t begin, int64_t end) {
  using V = Simd<T>;
  const int64_t tiles = (p.pixels + kSpikeTile - 1) / kSpikeTile, bytes = (p.channels + 7) / 8;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / tiles, first = task % tiles * kSpikeTile;
    const int64_t last = std::min(p.pixels, first + kSpikeTile);
    const BitWords words{p.bits + n * p.pixels * bytes, bytes, 0};
    for (int64_t c = 0; c < p.channels; c += 32)
      for (int64_t i = first; i < last; i += V::kLanes) {
        const int64_t lanes = std::min<int64_t>(V::kLanes, last - i);
        typename V::Word word{};
        for (int64_t k = 0; k < lanes; ++k) word[k] = int32_t(words(c / 32, i + k));
        T* x = p.values + (n * p.channels + c) * p.pixels + i;
        const int64_t channels = std::min<int64_t>(32, p.channels - c);
        for (int64_t bit = 0; bit < channels; ++bit, x += p.pixels)
          V::store(x, __builtin_convertvector((word >> int32_t(bit)) & 1, typename V::Real), lanes);
      }
  }
}

// ---- weights between [O, C, K, K] and the packed layout -----------------------------------------------------------

// Squares of the weight of one block and of input channels [begin, end): kLanes output channels by as many columns of
// [O][C K K]. f(row pointer, columns, rows, packed offsets of the columns) moves one.
template <class T>
class WeightSquares {
 public:
  using V = Simd<T>;
  static constexpr int kLanes = V::kLanes;

  // Packed offsets count from input channel `begin`; `row_stride` = of a kernel row.
  WeightSquares(const SpikeConvLayout<T>& l, int64_t block, int64_t begin, int64_t end, int64_t row_stride)
      : l_(l), block_(block), begin_(begin), columns_((end - begin) * l.taps()), offsets_(l.taps()) {
    for (int64_t ky = 0; ky < l.kernel; ++ky)
      for (int64_t kx = 0; kx < l.kernel; ++kx)
        offsets_[ky * l.kernel + kx] = ky * row_stride + (l.kernel - 1 - kx) * l.outputs;
  }

  template <class F>
  void visit(F f) {
    const int64_t stride = l_.in_channels * l_.taps(), outputs = l_.outputs_of(block_);
    for (int64_t o = 0; o < l_.outputs; o += kLanes) {
      const int64_t rows = std::clamp<int64_t>(outputs - o, 0, kLanes);
      const int64_t source = (l_.first_output(block_) + o) * stride + begin_ * l_.taps();
      int64_t tap = 0, channel = o;
      for (int64_t column = 0; column < columns_; column += kLanes) {
        const int64_t columns = std::min<int64_t>(kLanes, columns_ - column);
        int64_t packed[kLanes];
        for (int64_t i = 0; i < columns; ++i) {
          packed[i] = channel + offsets_[tap];
          if (++tap == l_.taps()) tap = 0, channel += l_.run();
        }
        f(source + column, stride, rows, columns, packed);
      }
    }
  }

 private:
  const SpikeConvLayout<T>& l_;
  int64_t block_, begin_, columns_;
  std::vector<int64_t> offsets_;
};

template <class T>
void pack_weight_block(const SpikeConvLayout<T>& l, const T* weight, int64_t block, int64_t begin, int64_t end,
                       int64_t row_stride, T* packed) {
  using V = Simd<T>;
  WeightSquares<T>(l, block, begin, end, row_stride)
      .visit([&](int64_t source, int64_t stride, int64_t rows, int64_t columns, const int64_t* to) {
        typename V::Real square[V::kLanes] = {};
        for (int64_t r = 0; r < rows; ++r) square[r] = V::load(weight + source + r * stride, columns);
        transpose_block<T>(square);
        for (int64_t i = 0; i < columns; ++i) V::store(packed + to[i], square[i]);
      });
}

template <class T>
void unpack_weight_block(const SpikeConvLayout<T>& l, const T* packed, int64_t block, int64_t begin, int64_t end,
                         int64_t row_stride, T* weight) {
  using V = Simd<T>;
  WeightSquares<T>(l, block, begin, end, row_stride)
      .visit([&](int64_t target, int64_t stride, int64_t rows, int64_t columns, const int64_t* from) {
        typename V::Real square[V::kLanes] = {};
        for (int64_t i = 0; i < columns; ++i) square[i] = V::load(packed + from[i]);
        transpose_block<T>(square);
        for (int64_t r = 0; r < rows; ++r) V::store(weight + target + r * stride, square[r], columns);
      });
}

// ---- forward ------------------------------------------------------------------------------------------------------

// The tasks that share a block of weights lie side by side, and so do those that share a few samples' events: a thread
// finds most of what a task needs where the task before has left it.
template <class T>
class SpikeConvForwardTasks {
 public:
  explicit SpikeConvForwardTasks(const SpikeConvForward<T>& p)
      : p_(p),
        l_(p.shape),
        row_(l_.padded_width * l_.outputs),
        weight_(l_.block_weights(), Uninitialized()),
        map_(l_.height * row_, Uninitialized()) {}

  void run(int64_t task) {
    const int64_t first = task / (l_.blocks * kSamples) * kSamples;
    const int64_t samples = std::min(kSamples, p_.shape.samples - first), in_group = task - first * l_.blocks;
    const int64_t block = in_group / samples, n = first + in_group % samples;
    if (block != block_) {
      pack_weight_block(l_, p_.weight, block, 0, l_.in_channels, l_.in_channels * l_.run(), weight_.data());
      block_ = block;
    }
    const PixelEvents& events = events_of(n);
    const int64_t outputs = l_.outputs_of(block);
    std::fill_n(map_.data(), l_.height * row_, T(0));
    if (p_.bias)
      for (int64_t i = 0; i < l_.height * l_.padded_width; ++i)
        std::copy_n(p_.bias + l_.first_output(block), outputs, map_.data() + i * l_.outputs);
    for (int64_t ky = 0; ky < l_.kernel; ++ky) {
      const T* weight = weight_.data() + ky * l_.in_channels * l_.run();
      const int64_t shift = l_.pad - ky;  // from an input row to its output row
      for (int64_t y = std::max<int64_t>(0, -shift); y < std::min(l_.height, l_.height - shift); ++y)
        add_event_runs(l_, events, y, weight, map_.data() + (y + shift) * row_);
    }
    T* out = p_.out + (n * l_.out_channels + l_.first_output(block)) * l_.pixels;
    const T* first_column = map_.data() + l_.pad * l_.outputs;  // the halo columns are meaningless
    for (int64_t y = 0; y < l_.height; ++y)
      row_to_planes(first_column + y * row_, l_.width, l_.outputs, outputs,
                    [&](int64_t o) { return out + o * l_.pixels + y * l_.width; });
  }

 private:
  static constexpr int64_t kSamples = 8;

  const PixelEvents& events_of(int64_t n) {
    Sample& sample = samples_[n % kSamples];
    if (sample.index != n) {
      const BitWords words{p_.spikes + n * l_.pixels * l_.bytes, l_.bytes, 0};
      sample.events.reserve(l_, count_bits(words, l_.words, l_.pixels));
      sample.events.build(l_, words);
      sample.index = n;
    }
    return sample.events;
  }

  struct Sample {
    int64_t index = -1;
    PixelEvents events;
  };

  const SpikeConvForward<T>& p_;
  SpikeConvLayout<T> l_;
  int64_t row_;
  int64_t block_ = -1;
  Buffer<T> weight_;
  Buffer<T> map_;
  Sample samples_[kSamples];
};

template <class T>
void spike_conv_forward(const SpikeConvForward<T>& p, int64_t begin, int64_t end) {
  SpikeConvForwardTasks<T> tasks(p);
  for (int64_t task = begin; task < end; ++task) tasks.run(task);
}

// ---- the gradient of the weight -----------------------------------------------------------------------------------

template <class T>
void spike_conv_maps(const SpikeConvGradient<T>& p, int64_t begin, int64_t end) {
  const SpikeConvLayout<T> l(p.shape);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t n = task / l.blocks, block = task % l.blocks;
    T* map = p.maps + task * l.map_size();
    std::fill_n(map, l.map_size(), T(0));
    const T* planes = p.grad_out + (n * l.out_channels + l.first_output(block)) * l.pixels;
    for (int64_t y = 0; y < l.height; ++y)
      planes_to_row([&](int64_t o) { return planes + o * l.pixels + y * l.width; }, l.width, l.outputs_of(block),
                    map + ((y + l.pad) * l.padded_width + l.pad) * l.outputs, l.outputs);
  }
}

// Rows of a band: the rows of the gradient map that one kernel row of it touches should stay in the first-level cache,
// which grows with the vectors; but where few spikes of a channel would be in a band, adding up its weights costs more.
template <class T>
int64_t gradient_rows(const SpikeConvLayout<T>& l, const SpikeConvGradient<T>& p) {
  constexpr int64_t kCacheBytes = STC_SIMD_BYTES * 640;
  constexpr double kFewSpikes = 16;
  const double of_row = double(p.count) / std::max(1.0, double(p.shape.samples * l.in_channels * l.height));
  int64_t rows = std::clamp<int64_t>(kCacheBytes / int64_t(l.padded_width * l.outputs * sizeof(T)), 1, l.height);
  while (rows < l.height && of_row * double(rows) < kFewSpikes) rows = std::min(2 * rows, l.height);
  return rows;
}

template <class T>
void spike_conv_gradient(const SpikeConvGradient<T>& p, int64_t begin, int64_t end) {
  const SpikeConvLayout<T> whole(p.shape);
  const int64_t rows = gradient_rows(whole, p);
  Buffer<T> grad(whole.kernel * whole.kChunk * whole.run(), Uninitialized());
  ChannelEvents events;
  events.reserve(whole.of_chunk(0), rows);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / whole.chunks, chunk = task % whole.chunks, first = chunk * whole.kChunk;
    const SpikeConvLayout<T> l = whole.of_chunk(chunk);
    std::fill_n(grad.data(), l.kernel * l.in_group * l.run(), T(0));
    for (int64_t n = 0; n < p.shape.samples; ++n) {
      const BitWords words{p.spikes + n * l.pixels * l.bytes, l.bytes, first / 32};
      event_weight_gradient<T>(l, events, words, rows, p.maps + (n * l.blocks + block) * l.map_size(), grad.data());
    }
    unpack_weight_block(l, grad.data(), block, first, first + l.in_group, l.in_group * l.run(), p.grad_weight);
  }
}

}  // namespace stc::STC_SIMD_NAMESPACE

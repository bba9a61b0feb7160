// The gate convolutions of a map with many spikes: instead of adding the weights of one spike after the other, the sums
// of any four channels' weights are made once and looked up.
//
// A pixel then costs as many additions as it has sets of four channels, whatever fires, and no branch: the windows of
// the pixels of a row overlap, and their sums stay in registers until all pixels of a window have been added.
#pragma once

#include <algorithm>

#include "buffer.h"
#include "gate_conv.h"
#include "layout.h"

namespace stc::STC_SIMD_NAMESPACE {

template <class T>
class SpikeTables {
 public:
  explicit SpikeTables(const Layout<T>& l) : l_(l), sets_((l.in_group + kBits - 1) / kBits) {}

  // Whether `spikes` in so many pixels are cheaper to look up than to add one by one. Not a matter of the number of
  // steps, though a table that more maps share costs less of each: the same spikes must give the same sums, to the last
  // bit, in a step of its own and in a sequence.
  bool pays(int64_t spikes, int64_t spiking_pixels) const {
    if (l_.words != 1 || (l_.kernel != 3 && l_.kernel != 5 && l_.kernel != 7)) return false;
    // In vectors read or written in a kernel row.
    const int64_t of_window = vectors() * l_.kernel;
    const int64_t one_by_one = spikes * of_window + spiking_pixels * (2 * of_window + kPixelCost);
    const int64_t looked_up = l_.pixels * (sets_ * of_window + 2 * vectors());
    const int64_t making = kEntryCost * sets_ * kEntries * of_window;
    return one_by_one >= looked_up + making / kUsualSteps;
  }

  // packed: the gate weights of a group (gate_conv.h), descending.
  void build(const T* packed) {
    if (!table_.data()) table_.allocate(l_.kernel * vectors() * table_size());
    for (int64_t ky = 0; ky < l_.kernel; ++ky)
      for (int64_t v = 0; v < vectors(); ++v)
        for (int64_t set = 0; set < sets_; ++set)
          build_set(packed + ky * l_.in_group * l_.kernel * l_.outputs + v * V::kLanes, set,
                    table(ky, v) + set * kEntries * window());
  }

  // Rows [padded_width][outputs] of both gate convolutions, the halo columns included (and meaningless).
  // words: the spikes by pixel, bit c = channel c.
  void convolve(const uint32_t* words) {
    if (!map_.data()) map_.allocate(l_.height * l_.padded_width * l_.outputs);
    std::fill_n(map_.data(), l_.height * l_.padded_width * l_.outputs, T(0));
    if (l_.kernel == 3) convolve_map<3>(words);
    if (l_.kernel == 5) convolve_map<5>(words);
    if (l_.kernel == 7) convolve_map<7>(words);
  }
  const T* row(int64_t y) const { return map_.data() + y * l_.padded_width * l_.outputs; }

 private:
  using V = Simd<T>;
  using Real = typename V::Real;
  static constexpr int kBits = 4, kEntries = 1 << kBits;
  // Measured: what a pixel costs beside its windows (a misjudged branch, its place in the list), and an entry to make.
  static constexpr int64_t kPixelCost = 30, kEntryCost = 5, kUsualSteps = 4;

  int64_t vectors() const { return l_.outputs / V::kLanes; }
  int64_t window() const { return l_.kernel * V::kLanes; }  // elements of an entry, [j][lanes]
  int64_t table_size() const { return sets_ * kEntries * window(); }
  // [set][which of its channels fire][j][lanes]
  T* table(int64_t ky, int64_t v) const { return table_.data() + (ky * vectors() + v) * table_size(); }

  void build_set(const T* weights, int64_t set, T* entries) {
    for (int64_t j = 0; j < l_.kernel; ++j) {
      Real of_channel[kBits], sum[kEntries];
      for (int bit = 0; bit < kBits; ++bit) {
        const int64_t channel = set * kBits + bit;
        of_channel[bit] = channel < l_.in_group ? V::load(weights + (channel * l_.kernel + j) * l_.outputs) : Real{};
      }
      sum[0] = Real{};
#pragma GCC unroll 16
      for (int fired = 1; fired < kEntries; ++fired)
        sum[fired] = sum[fired & (fired - 1)] + of_channel[__builtin_ctz(fired)];
#pragma GCC unroll 16
      for (int fired = 0; fired < kEntries; ++fired) V::store(entries + fired * window() + j * V::kLanes, sum[fired]);
    }
  }

  // One table after the other, so that it stays in the first-level cache while the map goes by.
  template <int Kernel>
  void convolve_map(const uint32_t* words) {
    for (int64_t v = 0; v < vectors(); ++v)
      for (int64_t ky = 0; ky < Kernel; ++ky) {
        const int64_t shift = l_.pad - ky;  // from an input row to its output row
        for (int64_t y = std::max<int64_t>(0, -shift); y < std::min(l_.height, l_.height - shift); ++y)
          convolve_row<Kernel>(words + y * l_.width, table(ky, v),
                               map_.data() + (y + shift) * l_.padded_width * l_.outputs + v * V::kLanes);
      }
  }

  template <int Kernel>
  void convolve_row(const uint32_t* words, const T* table, T* out) const {
    Real sum[Kernel] = {};  // of the windows that are not complete; that of column x + j is sum[(x + j) % Kernel]
    const int64_t width = l_.width, stride = l_.outputs, sets = sets_;
    const auto add = [&](uint32_t word, auto first) {
      const T* of_set = table;
      for (int64_t set = 0; set < sets; ++set, of_set += kEntries * Kernel * V::kLanes, word >>= kBits) {
        const T* entry = of_set + (word & (kEntries - 1)) * (Kernel * V::kLanes);
        for (int j = 0; j < Kernel; ++j) sum[(first() + j) % Kernel] += V::load(entry + j * V::kLanes);
      }
    };
    const auto finish = [&](int64_t column, int k) {
      V::store(out + column * stride, V::load(out + column * stride) + sum[k]);
      sum[k] = Real{};
    };
    int64_t x = 0;
    for (; x + Kernel <= width; x += Kernel)
      for_each_constant<Kernel>([&](auto u) {
        add(words[x + u()], u);
        finish(x + u(), u());
      });
    for (; x < width; ++x) {
      add(words[x], std::integral_constant<int, 0>());
      finish(x, 0);
      for (int j = 1; j < Kernel; ++j) sum[j - 1] = sum[j];
      sum[Kernel - 1] = Real{};
    }
    for (int j = 0; j < Kernel - 1; ++j) finish(width + j, j);
  }

  template <int Count, int I = 0, class F>
  static void for_each_constant(const F& f) {
    if constexpr (I < Count) {
      f(std::integral_constant<int, I>());
      for_each_constant<Count, I + 1>(f);
    }
  }

  const Layout<T>& l_;
  const int64_t sets_;
  Buffer<T> table_;  // [kernel][vectors] tables
  Buffer<T> map_;    // [height][padded_width][outputs]
};

}  // namespace stc::STC_SIMD_NAMESPACE

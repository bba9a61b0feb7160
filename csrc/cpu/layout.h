// Sizes and offsets of the scratch arrays of one unit. A unit is one sample and the smallest set of channels that
// neither the gate convolutions nor the GroupNorms couple to others: C / gcd(groups, norm_groups) channels.
#pragma once

#include <cstdint>
#include <numeric>

#include "../params.h"
#include "simd.h"

namespace stc::STC_SIMD_NAMESPACE {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class T>
struct Layout {
  static constexpr int kLanes = Simd<T>::kLanes;

  int64_t height, width, kernel, pad;
  int64_t pixels;         // H * W
  int64_t plane;          // pixels of a channel plane in scratch, a multiple of the lanes
  int64_t padded_width;   // W + K - 1: a row with the halo of the convolution
  int64_t padded_height;  // H + K - 1
  int64_t units;          // of one sample
  int64_t unit_channels;
  int64_t conv_groups;    // of a unit
  int64_t in_group;       // channels of a convolution group
  int64_t norm_groups;    // of a unit
  int64_t norm_channels;  // channels of a norm group
  int64_t words;          // 32-bit words that hold one spike of each channel of a convolution group
  int64_t outputs;        // of both pathways, for one convolution group, padded to the lanes: [temporal | spatial | 0]
  int64_t inputs;         // channels of a convolution group, padded to the lanes

  explicit Layout(const Shape& s)
      : height(s.height),
        width(s.width),
        kernel(s.kernel),
        pad(s.kernel / 2),
        pixels(s.height * s.width),
        plane(round_up(pixels, kLanes)),
        padded_width(s.width + s.kernel - 1),
        padded_height(s.height + s.kernel - 1),
        units(std::gcd(s.groups, s.norm_groups)),
        unit_channels(s.channels / units),
        conv_groups(s.groups / units),
        in_group(s.channels / s.groups),
        norm_groups(s.norm_groups / units),
        norm_channels(s.channels / s.norm_groups),
        words((in_group + 31) / 32),
        outputs(round_up(2 * in_group, kLanes)),
        inputs(round_up(in_group, kLanes)) {}

  // Elements of the packed weights of one convolution group (see gate_conv.h).
  int64_t gate_weights() const { return kernel * kernel * in_group * outputs; }
  int64_t transposed_weights() const { return kernel * kernel * 2 * in_group * inputs; }
};

}  // namespace stc::STC_SIMD_NAMESPACE

// Which kernel runs for a shape, and how its work is cut: a pure function of its arguments, with no device behind it.
#pragma once

#include <cstdint>

#include "params.h"

namespace stc {

enum class Device : int { kCpu };

enum class KernelKind : int {
  kEvent,  // spikes are bits: the gate convolutions add the weights of each spike
  kDense,  // soft spikes are real numbers: ordinary convolutions
};

struct Plan {
  KernelKind kernel;
  int64_t units;          // independent sets of channels of one sample: gcd(groups, norm_groups)
  int64_t unit_channels;  // channels of a unit
  int64_t tasks;          // samples x units
  int64_t packed_bytes;   // of a pixel of a convolution group, in packed spikes
};

Plan plan(const Shape& shape, Device device, bool spiking);

const char* name(KernelKind kernel);

}  // namespace stc

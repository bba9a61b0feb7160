// Which kernel runs for a shape, and how its work is cut: a pure function of its arguments, with no device behind it.
#pragma once

#include <cstdint>

#include "params.h"

namespace stc {

enum class Device : int { kCpu, kCuda };

enum class KernelKind : int {
  kEvent,       // CPU: spikes are bits; the gate convolutions add their weights, or look up sums of them
  kDense,       // CPU: soft spikes are real numbers; ordinary convolutions
  kPersistent,  // CUDA: one thread block runs all steps of a (sample, group) with its state on chip
  kGeneral,     // CUDA: two launches a step, state in global memory, any shape
};

// What a call asks for beside its shape, and what the device allows.
struct Request {
  Device device = Device::kCpu;
  int neuron = 0;  // index in CircuitCells
  bool double_precision = false;
  bool spiking = true;
  bool backward = false;
  bool attached = false;           // backward through the spikes that enter the gate convolutions
  int capability = 0;              // CUDA: 10 * major + minor
  int64_t shared_bytes_limit = 0;  // CUDA: shared memory that one block may have
};

struct Plan {
  KernelKind kernel;
  const char* reason;     // why this one, for people
  int64_t units;          // independent sets of channels of one sample: gcd(groups, norm_groups)
  int64_t unit_channels;  // channels of a unit
  int64_t tasks;          // samples x units
  int64_t packed_bytes;   // of a pixel of a convolution group, in packed spikes
  // of the persistent kernels
  int runs_per_warp;      // runs of 16 pixels that a warp owns: 1, 2 or 4
  int warps;              // of a block
  bool resident_weights;  // forward: of the gates, in shared memory beside the spikes as fp16 numbers; else they stream
                          // through the first-level cache, and spikes are bits
  bool cached_current;    // in shared memory, fetched ahead; else it is read again from global memory
  bool cached_u;          // backward: u of the step before, in shared memory
  bool near_second;       // the second state of a cell or its gradient, in shared memory; else in global memory
  int64_t dynamic_bytes;  // dynamic shared memory of a block
};

Plan plan(const Shape& shape, const Request& request);

const char* name(KernelKind kernel);

}  // namespace stc

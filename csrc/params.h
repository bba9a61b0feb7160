// Plain parameter structs: all that the torch side, the CPU kernels and (on a GPU build) the CUDA kernels share.
// No torch type appears here and no ownership: every pointer belongs to the caller and outlives the call.
#pragma once

#include <cstdint>

namespace stc {

enum class Surrogate : int {
  kSigmoid,
  kAtan,
  kPiecewiseQuadratic,
  kPiecewiseExp,
  kSoftsign,
  kSuperspike,
  kErf,
  kRect,
  kFastSigmoid
};

// What the current, the spikes and the gradients of both are stored in. All else has the state's type T.
enum class Storage : int { kState, kHalf, kBfloat16 };

// The three GroupNorms of a layer, in the order of every array that has one entry a norm.
enum Norm : int { kCurrent, kTemporal, kSpatial, kNorms };

struct Shape {
  int64_t steps;     // T
  int64_t samples;   // N
  int64_t channels;  // C
  int64_t height;    // H
  int64_t width;     // W
  int64_t kernel;    // K, odd
  int64_t groups;    // of both gate convolutions
  int64_t norm_groups;
};

// A tensor [T, N, C, H, W] with strides in elements; a state [N, C, H, W] has a step stride of 0. Null data = absent.
template <class T>
struct Strided {
  T* data;
  int64_t step, sample, channel, row, column;
};

// The derivative of a surrogate as height * shape(scale |z|): see surrogate.h.
template <class T>
struct SurrogateSlope {
  T scale, height;
};

template <class T>
struct CellOptions {
  T threshold;
  T reset;  // potential after a spike; read only when hard_reset
  T alpha;  // steepness of the surrogate
  Surrogate surrogate;
  bool hard_reset;
  bool detach_reset;
  bool spiking;               // false: the soft spike, the surrogate's primitive
  SurrogateSlope<T> slope{};  // only backward needs it
};

// Inputs of both directions. Gate weights and norm parameters are contiguous; a null norm weight means no norm.
template <class T>
struct StcInputs {
  Shape shape;
  CellOptions<T> cell;
  double eps;
  // Anything but kState: the pointers to such values lead to 16-bit numbers, their strides count those, and only the
  // persistent CUDA kernels take the call.
  Storage storage;
  bool short_weights;  // of both gates: they come from 16-bit numbers, which one fp16 number holds
  Strided<const T> current;
  Strided<const T> v;       // before the first step
  Strided<const T> spikes;  // before the first step
  const T* temporal_weight;
  const T* spatial_weight;
  const T* norm_weight[kNorms];
  const T* norm_bias[kNorms];
};

// Outputs are contiguous; null = not wanted.
template <class T>
struct StcForward {
  StcInputs<T> in;
  T* spikes;  // [T, N, C, H, W]
  uint8_t*
      packed_spikes;   // [T, N, groups, H, W, ceil(C / groups / 8)], bit c % 8 of byte c / 8 = channel c of the group
  T* v;                // [N, C, H, W], after the last step
  T* v_seq;            // [T, N, C, H, W], after the reset
  T* u;                // [T, N, C, H, W], before the reset; for backward
  double* norm_stats;  // [T, N, norm_groups, kNorms, 2] = mean, 1 / sqrt(var + eps); for backward
};

template <class T>
struct StcBackward {
  StcInputs<T> in;
  bool gradient_detach;  // the gate convolutions saw detached spikes
  const T* u;            // as saved by the forward pass
  const double* norm_stats;
  Strided<const T> grad_spikes_out;
  Strided<const T> grad_v_out;
  Strided<const T> grad_v_seq_out;
  T* grad_current;          // [T, N, C, H, W]
  T* grad_v;                // [N, C, H, W]
  T* grad_spikes;           // [N, C, H, W]; null when gradient_detach or when there were no spikes before
  T* grad_temporal_weight;  // [C, C / groups, K, K]
  T* grad_spatial_weight;
  T* grad_norm_weight[kNorms];  // [C]
  T* grad_norm_bias[kNorms];
};

}  // namespace stc

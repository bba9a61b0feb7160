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

constexpr int kMaxStates = 3;

// The three GroupNorms of a layer, in the order of every array that has one entry a norm.
enum Norm : int { kCurrent, kTemporal, kSpatial, kNorms };

// What the backward pass of a circuit sums over each channel: weight and bias of each norm, then these.
constexpr int kMaxCoefficients = 4;
enum ChannelSum : int {
  kThresholdSum = 2 * kNorms,
  kCoefficientSums,
  kChannelSums = kCoefficientSums + kMaxCoefficients
};

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
  int neuron;  // index in CircuitCells (cell.h)
  CellOptions<T> cell;
  double eps;
  // Anything but kState: the pointers to such values lead to 16-bit numbers, their strides count those, and only the
  // persistent CUDA kernels take the call.
  Storage storage;
  bool short_weights;  // of both gates: they come from 16-bit numbers, which one fp16 number holds
  Strided<const T> current;
  Strided<const T> states[kMaxStates];  // before the first step; the first is v
  Strided<const T> spikes;              // before the first step
  const T* threshold;                   // [C]; null: that of `cell`, for all channels
  const T* coefficients;                // [kCoefficients, C]
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
      packed_spikes;  // [T, N, groups, H, W, ceil(C / groups / 8)], bit c % 8 of byte c / 8 = channel c of the group
  T* states[kMaxStates];  // [N, C, H, W], after the last step
  T* v_seq;               // [T, N, C, H, W], after the reset
  T* potentials;          // [kPotentials, T, N, C, H, W], before the reset; for backward
  double* norm_stats;     // [T, N, norm_groups, kNorms, 2] = mean, 1 / sqrt(var + eps); for backward
};

template <class T>
struct StcBackward {
  StcInputs<T> in;
  bool gradient_detach;  // the gate convolutions saw detached spikes
  const T* potentials;   // as saved by the forward pass
  const double* norm_stats;
  Strided<const T> grad_spikes_out;
  Strided<const T> grad_states_out[kMaxStates];
  Strided<const T> grad_v_seq_out;
  T* grad_current;             // [T, N, C, H, W]
  T* grad_states[kMaxStates];  // [N, C, H, W], before the first step
  T* grad_spikes;              // [N, C, H, W]; null when gradient_detach or when there were no spikes before
  T* grad_threshold;           // [C]; null = not wanted
  T* grad_coefficients;        // [kCoefficients, C]; null = not wanted
  T* grad_temporal_weight;     // [C, C / groups, K, K]
  T* grad_spatial_weight;
  T* grad_norm_weight[kNorms];  // [C]
  T* grad_norm_bias[kNorms];
};

// ---- element-wise neurons: a scan over the steps -----------------------------------------------------------------

// A sequence is `steps` arrays of `neurons` numbers each. Within a step all tensors of a call have the layout of the
// current: any order of its dimensions without gaps, so that neuron i belongs to channel i / channel_stride % channels.
struct ScanShape {
  int64_t steps;     // T
  int64_t neurons;   // N C H W
  int64_t channels;  // C
  int64_t channel_stride;
};

template <class T>
struct ScanInputs {
  ScanShape shape;
  int neuron;  // index in ScanCells (cell.h)
  CellOptions<T> cell;
  Storage storage;              // of current, spikes and the gradients of both; the CPU kernels take kState alone
  const T* threshold;           // [C]; null: that of `cell`, for all channels
  const T* coefficients;        // [kCoefficients, C]
  const T* current;             // the backward pass reads it for the gradient of coefficients alone
  int64_t current_step;         // from one step to the next
  const T* states[kMaxStates];  // before the first step; null = 0
};

// Null = not wanted.
template <class T>
struct ScanForward {
  ScanInputs<T> in;
  T* spikes;              // [T, neurons]
  T* states[kMaxStates];  // [neurons], after the last step
  T* v_seq;               // [T, neurons]
  T* potentials;          // [kPotentials, T, neurons]; for backward
};

template <class T>
struct ScanBackward {
  ScanInputs<T> in;
  const T* potentials;
  const T* grad_spikes_out;  // null = 0, as for the next two
  bool grad_spikes_repeats;  // its only step is that of all
  const T* grad_states_out[kMaxStates];
  const T* grad_v_seq_out;
  T* grad_current;             // [T, neurons]; may be the potentials where there is one a neuron
  T* grad_states[kMaxStates];  // [neurons], before the first step
  T* grad_threshold;           // [C]
  T* grad_coefficients;        // [kCoefficients, C]
};

// ---- the feed-forward convolution of spikes ------------------------------------------------------------------------

// Stride 1, zero padding K / 2. Spikes are bits [N, H, W, bytes], bit c % 8 of byte c / 8 = channel c.
struct SpikeConvShape {
  int64_t samples;       // N
  int64_t in_channels;   // C
  int64_t out_channels;  // O
  int64_t height;        // H
  int64_t width;         // W
  int64_t kernel;        // K, odd

  int64_t pixels() const { return height * width; }
  int64_t bytes() const { return (in_channels + 7) / 8; }
};

// 0/1 numbers and their bits.
template <class T>
struct SpikeBits {
  int64_t samples, channels, pixels;
  T* values;      // [N, C, H, W]
  uint8_t* bits;  // [N, H, W, bytes]
};

template <class T>
struct SpikeConvForward {
  SpikeConvShape shape;
  const uint8_t* spikes;
  const T* weight;  // [O, C, K, K]
  const T* bias;    // [O]; null = 0
  T* out;           // [N, O, H, W]
};

template <class T>
struct SpikeConvGradient {
  SpikeConvShape shape;
  const uint8_t* spikes;
  int64_t count;      // of spikes
  const T* grad_out;  // [N, O, H, W]
  T* maps;            // scratch
  T* grad_weight;     // [O, C, K, K]
};

}  // namespace stc

// What both launchers of the persistent kernels share: from the numbers of a call to template parameters.
#pragma once

#include <type_traits>

#include "launch.h"
#include "launcher.h"
#include "persistent.cuh"
#include "workspace.h"

namespace stc::cuda {

struct ForwardWorkspace {
  PackedWeights weights;
  float4* far_state;
};

struct BackwardWorkspace {
  PackedWeights weights;
  uint4* transposed;
  BackwardTrace trace;
  BackwardSlots slots;
  float4* partial_weights;
};

// Defined in persistent_*_launch.cuh.
template <class Cell>
void start_forward(Launcher& launch, const StcForward<float>& p, const Plan& plan, const ForwardWorkspace& w);
template <class Cell>
void start_backward(Launcher& launch, const StcBackward<float>& p, const Plan& plan, const BackwardWorkspace& w);

template <int Value>
using Constant = std::integral_constant<int, Value>;

// Calls f(channels per group, kernel size) with the numbers of the shape as types.
template <class F>
auto with_sizes(const Shape& s, F f) {
  const bool sixteen = s.channels / s.groups == 16;
  if (s.kernel == 5) return sixteen ? f(Constant<16>(), Constant<5>()) : f(Constant<8>(), Constant<5>());
  return sixteen ? f(Constant<16>(), Constant<3>()) : f(Constant<8>(), Constant<3>());
}

template <class F>
void with_runs(const Plan& plan, F f) {
  if (plan.runs_per_warp == 1) return f(Constant<1>());
  if (plan.runs_per_warp == 2) return f(Constant<2>());
  return f(Constant<4>());
}

template <class F>
void with_flag(bool flag, F f) {
  return flag ? f(std::true_type()) : f(std::false_type());
}

// Calls f with an object of the call's cell.
template <class F>
void with_cell(const StcInputs<float>& in, F f) {
  CircuitCells::visit(in.neuron, [&](auto tag) { f(typename decltype(tag)::template With<FastMath>()); });
}

// Fours of neurons that the blocks of a launch own together.
inline int64_t owned_fours(const Shape& s, const Plan& plan) {
  return s.samples * s.groups * plan.warps * 32 * plan.runs_per_warp * (s.channels / s.groups / 8);
}

inline PackedWeights carve_weights(WorkspaceCarver& carver, const Shape& s) {
  return with_sizes(s, [&](auto channels, auto kernel) {
    PackedWeights packed;
    packed.fragments = carver.take<uint4>(s.groups * GateProduct<channels(), kernel()>::kFragments);
    packed.scale = carver.take<float>(2 * s.channels);
    return packed;
  });
}

template <int Channels, int Kernel>
void start_packing(Launcher& launch, const StcInputs<float>& in, const PackedWeights& packed) {
  launch.start(pack_weights<Channels, Kernel>, dim3(unsigned(in.shape.groups), Channels / kPackChannels), kPackThreads,
               0, in, packed);
}

}  // namespace stc::cuda

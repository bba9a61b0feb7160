// What both launchers of the persistent kernels share: from the numbers of a call to template parameters.
#pragma once

#include <type_traits>

#include "persistent.cuh"
#include "workspace.h"

namespace stc::cuda {

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

inline PackedWeights carve_weights(WorkspaceCarver& carver, const Shape& s) {
  return with_sizes(s, [&](auto channels, auto kernel) {
    PackedWeights packed;
    packed.fragments = carver.take<uint4>(s.groups * GateProduct<channels(), kernel()>::kFragments);
    packed.scale = carver.take<float>(2 * s.channels);
    return packed;
  });
}

}  // namespace stc::cuda

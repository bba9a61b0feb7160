#include <algorithm>
#include <type_traits>

#include "general.cuh"
#include "launch.h"
#include "persistent_backward.cuh"
#include "persistent_forward.cuh"
#include "weight_gradient.cuh"
#include "workspace.h"

namespace stc::cuda {
namespace {

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
auto with_runs(const Plan& plan, F f) {
  if (plan.runs_per_warp == 1) return f(Constant<1>());
  if (plan.runs_per_warp == 2) return f(Constant<2>());
  return f(Constant<4>());
}

template <class F>
auto with_flag(bool flag, F f) {
  return flag ? f(std::true_type()) : f(std::false_type());
}

PackedWeights carve_weights(WorkspaceCarver& carver, const Shape& s) {
  return with_sizes(s, [&](auto channels, auto kernel) {
    PackedWeights packed;
    packed.fragments = carver.take<uint4>(s.groups * GateProduct<channels(), kernel()>::kFragments);
    packed.scale = carver.take<float>(2 * s.channels);
    return packed;
  });
}

struct BackwardWorkspace {
  PackedWeights weights;
  uint4* transposed;
  BackwardTrace trace;
  float* partial_weights;
};

// Blocks a group of the weight gradient: enough for two on each of some 130 multiprocessors.
int64_t weight_splits(const Shape& s) {
  return std::clamp<int64_t>(264 / s.groups, 1, std::max<int64_t>(1, s.steps * s.samples));
}

BackwardWorkspace carve_backward(WorkspaceCarver& carver, const Shape& s) {
  BackwardWorkspace w{};
  w.weights = carve_weights(carver, s);
  const int64_t maps = s.steps * s.samples * s.channels * s.height * s.width;
  with_sizes(s, [&](auto channels, auto kernel) {
    using Weights = WeightProduct<channels(), kernel()>;
    w.transposed = carver.take<uint4>(s.groups * TransposedProduct<channels(), kernel()>::kFragments);
    w.partial_weights = carver.take<float>(weight_splits(s) * Weights::kParts * s.groups * Weights::kWeights);
    return 0;
  });
  w.trace.grad_gates = carver.take<float>(2 * maps);
  w.trace.spikes = carver.take<uint8_t>(maps / 8);
  w.trace.partial_norms = carver.take<double>(s.samples * s.channels * kNorms * 2);
  return w;
}

}  // namespace

int64_t persistent_forward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_weights(carver, shape);
  return carver.used();
}

int64_t persistent_backward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_backward(carver, shape);
  return carver.used();
}

int persistent_forward(const StcForward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  if (s.samples == 0) return cudaSuccess;
  WorkspaceCarver carver(workspace);
  const PackedWeights packed = carve_weights(carver, s);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    launch.blocks(pack_weights<channels(), kernel()>, dim3(unsigned(s.groups)), p.in, packed);
    return with_runs(plan, [&](auto runs) {
      return with_flag(plan.resident_weights, [&](auto resident) {
        launch.start(cuda::persistent_forward<channels(), kernel(), runs(), resident()>,
                     dim3(unsigned(s.groups), unsigned(s.samples)), plan.warps * 32, size_t(plan.dynamic_bytes), p,
                     packed);
        return 0;
      });
    });
  });
  return launch.error();
}

int persistent_backward(const StcBackward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  WorkspaceCarver carver(workspace);
  const BackwardWorkspace w = carve_backward(carver, s);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    using Weights = WeightProduct<channels(), kernel()>;
    const dim3 units(unsigned(s.groups), unsigned(s.samples));
    const unsigned splits = unsigned(weight_splits(s));
    launch.blocks(pack_weights<channels(), kernel()>, dim3(unsigned(s.groups)), p.in, w.weights);
    if (!p.gradient_detach)
      launch.blocks(pack_transposed_weights<channels(), kernel()>, dim3(unsigned(s.groups)), p.in, w.transposed);
    with_runs(plan, [&](auto runs) {
      return with_flag(!p.gradient_detach, [&](auto attached) {
        launch.start(cuda::persistent_backward<channels(), kernel(), runs(), attached()>, units, plan.warps * 32,
                     size_t(plan.dynamic_bytes), p, w.weights, static_cast<const uint4*>(w.transposed), w.trace);
        return 0;
      });
    });
    launch.start(weight_gradient_partials<channels(), kernel()>, dim3(unsigned(s.groups), splits), Weights::kWarps * 32,
                 0, s, static_cast<const float*>(w.trace.grad_gates), static_cast<const uint8_t*>(w.trace.spikes),
                 w.partial_weights);
    launch.flat(sum_weight_gradients<channels(), kernel()>, s.groups * Weights::kWeights, p,
                static_cast<const float*>(w.partial_weights), int(splits) * Weights::kParts);
    return 0;
  });
  launch.flat(norm_gradients<float>, s.channels, p, static_cast<const double*>(w.trace.partial_norms));
  return launch.error();
}

}  // namespace stc::cuda

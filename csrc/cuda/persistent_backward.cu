#include <algorithm>

#include "general.cuh"
#include "launch.h"
#include "persistent_backward.cuh"
#include "persistent_launch.h"
#include "weight_gradient.cuh"

namespace stc::cuda {
namespace {

struct BackwardWorkspace {
  PackedWeights weights;
  uint4* transposed;
  BackwardTrace trace;
  float* partial_weights;
};

// Blocks a group of the weight gradient: two for each of some 130 multiprocessors, which hold one at a time.
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
  for (float*& gate : w.trace.grad_gates) gate = carver.take<float>(maps);
  w.trace.spikes = carver.take<uint8_t>(maps / 8);
  w.trace.partial_norms = carver.take<double>(s.samples * s.channels * kNorms * 2);
  return w;
}

}  // namespace

int64_t persistent_backward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_backward(carver, shape);
  return carver.used();
}

int persistent_backward(const StcBackward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  WorkspaceCarver carver(workspace);
  const BackwardWorkspace w = carve_backward(carver, s);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    using Weights = WeightProduct<channels(), kernel()>;
    const dim3 units(unsigned(s.samples), unsigned(s.groups));
    const unsigned splits = unsigned(weight_splits(s));
    launch.start(pack_weights<channels(), kernel()>, dim3(unsigned(s.groups)), kPackThreads, 0, p.in, w.weights);
    if (!p.gradient_detach)
      launch.start(pack_transposed_weights<channels(), kernel()>, dim3(unsigned(s.groups)), kPackThreads, 0, p.in,
                   w.transposed);
    with_runs(plan, [&](auto runs) {
      with_flag(!p.gradient_detach, [&](auto attached) {
        launch.start(cuda::persistent_backward<channels(), kernel(), runs(), attached()>, units, plan.warps * 32,
                     size_t(plan.dynamic_bytes), p, w.weights, static_cast<const uint4*>(w.transposed), w.trace,
                     plan.cached_u, plan.cached_current);
      });
    });
    launch.start(weight_gradient_partials<channels(), kernel()>, dim3(unsigned(s.groups), splits), Weights::kWarps * 32,
                 0, s, w.trace, w.partial_weights);
    launch.flat(sum_weight_gradients<channels(), kernel()>, s.groups * Weights::kWeights, p,
                static_cast<const float*>(w.partial_weights), int(splits) * Weights::kParts);
    return 0;
  });
  launch.flat(norm_gradients<float>, s.channels, p, static_cast<const double*>(w.trace.partial_norms));
  return launch.error();
}

}  // namespace stc::cuda

#include <algorithm>

#include "general.cuh"
#include "launch.h"
#include "persistent_backward.cuh"
#include "persistent_launch.h"
#include "weight_gradient.cuh"

namespace stc::cuda {
namespace {

// Blocks a group of the weight gradient: two for each of some 130 multiprocessors, which hold one at a time.
int64_t weight_splits(const Shape& s) {
  return std::clamp<int64_t>(264 / s.groups, 1, std::max<int64_t>(1, s.steps * s.samples));
}

BackwardWorkspace carve_backward(WorkspaceCarver& carver, const StcBackward<float>& p, const Plan& plan) {
  const Shape& s = p.in.shape;
  BackwardWorkspace w{};
  w.weights = carve_weights(carver, s);
  const int64_t maps = s.steps * s.samples * s.channels * s.height * s.width;
  with_sizes(s, [&](auto channels, auto kernel) {
    using Weights = WeightProduct<channels(), kernel()>;
    w.transposed = carver.take<uint4>(s.groups * TransposedProduct<channels(), kernel()>::kFragments);
    w.partial_weights = carver.take<float4>(weight_splits(s) * s.groups * Weights::kWeights / 4);
    return 0;
  });
  for (float*& gate : w.trace.grad_gates) gate = carver.take<float>(maps);
  w.trace.spikes = carver.take<uint8_t>(maps / 8);
  w.trace.partial_sums = carver.take<double>(s.samples * s.channels * kChannelSums);
  const bool far = CircuitCells::traits(p.in.neuron).states > 1 && !plan.near_second;
  if (far) w.slots.grad_second = carver.take<float4>(owned_fours(s, plan));
  if (!plan.cached_u) w.slots.kept_u = carver.take<float4>(owned_fours(s, plan));
  const int constants = 1 + CircuitCells::traits(p.in.neuron).coefficients;
  if (p.grad_threshold || p.grad_coefficients)
    w.slots.constants = carver.take<float>(constants * owned_fours(s, plan) / plan.runs_per_warp);
  return w;
}

}  // namespace

int64_t persistent_backward_workspace(const StcBackward<float>& params, const Plan& plan) {
  WorkspaceCarver carver(nullptr);
  carve_backward(carver, params, plan);
  return carver.used();
}

int persistent_backward(const StcBackward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  WorkspaceCarver carver(workspace);
  const BackwardWorkspace w = carve_backward(carver, p, plan);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    start_packing<channels(), kernel()>(launch, p.in, w.weights);
    if (!p.gradient_detach)
      launch.start(pack_transposed_weights<channels(), kernel()>,
                   dim3(unsigned(s.groups), TransposedProduct<channels(), kernel()>::kChunks), kPackTransposedThreads,
                   0, p.in, w.transposed);
    with_cell(p.in, [&](auto cell) { start_backward<decltype(cell)>(launch, p, plan, w); });
    start_weight_gradient<channels(), kernel()>(launch, p, w.trace, int(weight_splits(s)), w.partial_weights);
    return 0;
  });
  launch.flat(channel_gradients<float>, s.channels * kChannelSums, p, CircuitCells::traits(p.in.neuron).coefficients,
              static_cast<const double*>(w.trace.partial_sums));
  return launch.error();
}

}  // namespace stc::cuda

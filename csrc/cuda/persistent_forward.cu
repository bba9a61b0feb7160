#include "launch.h"
#include "persistent_launch.h"

namespace stc::cuda {
namespace {

ForwardWorkspace carve_forward(WorkspaceCarver& carver, const StcForward<float>& p, const Plan& plan) {
  ForwardWorkspace w{};
  w.weights = carve_weights(carver, p.in.shape);
  const bool far = CircuitCells::traits(p.in.neuron).states > 1 && !plan.near_second;
  if (far) w.far_state = carver.take<float4>(owned_fours(p.in.shape, plan));
  return w;
}

}  // namespace

int64_t persistent_forward_workspace(const StcForward<float>& params, const Plan& plan) {
  WorkspaceCarver carver(nullptr);
  carve_forward(carver, params, plan);
  return carver.used();
}

int persistent_forward(const StcForward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  if (s.samples == 0) return cudaSuccess;
  WorkspaceCarver carver(workspace);
  const ForwardWorkspace w = carve_forward(carver, p, plan);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    start_packing<channels(), kernel()>(launch, p.in, w.weights);
    return 0;
  });
  with_cell(p.in, [&](auto cell) { start_forward<decltype(cell)>(launch, p, plan, w); });
  return launch.error();
}

}  // namespace stc::cuda

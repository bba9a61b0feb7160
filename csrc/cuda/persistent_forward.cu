#include "launch.h"
#include "launcher.h"
#include "persistent_forward.cuh"
#include "persistent_launch.h"

namespace stc::cuda {

int64_t persistent_forward_workspace(const Shape& shape) {
  WorkspaceCarver carver(nullptr);
  carve_weights(carver, shape);
  return carver.used();
}

int persistent_forward(const StcForward<float>& p, const Plan& plan, void* workspace, Stream stream) {
  const Shape& s = p.in.shape;
  if (s.samples == 0) return cudaSuccess;
  WorkspaceCarver carver(workspace);
  const PackedWeights packed = carve_weights(carver, s);
  Launcher launch(stream);
  with_sizes(s, [&](auto channels, auto kernel) {
    launch.start(pack_weights<channels(), kernel()>, dim3(unsigned(s.groups)), kPackThreads, 0, p.in, packed);
    with_runs(plan, [&](auto runs) {
      with_flag(plan.resident_weights, [&](auto resident) {
        launch.start(cuda::persistent_forward<channels(), kernel(), runs(), resident()>,
                     dim3(unsigned(s.samples), unsigned(s.groups)), plan.warps * 32, size_t(plan.dynamic_bytes), p,
                     packed, plan.cached_current);
      });
    });
    return 0;
  });
  return launch.error();
}

}  // namespace stc::cuda

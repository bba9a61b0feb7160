// Starts the persistent backward kernel of one neuron. Each neuron has a file of its own that instantiates it, so that
// they compile side by side.
#pragma once

#include "persistent_backward.cuh"
#include "persistent_launch.h"

namespace stc::cuda {

template <class Cell>
void start_backward(Launcher& launch, const StcBackward<float>& p, const Plan& plan, const BackwardWorkspace& w) {
  const Shape& s = p.in.shape;
  with_sizes(s, [&](auto channels, auto kernel) {
    with_runs(plan, [&](auto runs) {
      with_flag(!p.gradient_detach, [&](auto attached) {
        launch.start(cuda::persistent_backward<channels(), kernel(), runs(), attached(), Cell>,
                     dim3(unsigned(s.samples), unsigned(s.groups)), plan.warps * 32, size_t(plan.dynamic_bytes), p,
                     w.weights, static_cast<const uint4*>(w.transposed), w.trace, w.slots, plan.cached_u,
                     plan.cached_current);
      });
    });
    return 0;
  });
}

}  // namespace stc::cuda

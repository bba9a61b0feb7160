// Starts the persistent forward kernel of one neuron. Each neuron has a file of its own that instantiates it, so that
// they compile side by side.
#pragma once

#include "persistent_forward.cuh"
#include "persistent_launch.h"

namespace stc::cuda {

template <class Cell>
void start_forward(Launcher& launch, const StcForward<float>& p, const Plan& plan, const ForwardWorkspace& w) {
  const Shape& s = p.in.shape;
  with_sizes(s, [&](auto channels, auto kernel) {
    with_runs(plan, [&](auto runs) {
      with_flag(plan.resident_weights, [&](auto resident) {
        constexpr bool kResident = resident() && Cell::kStates == 1;  // plan() knows
        launch.start(cuda::persistent_forward<channels(), kernel(), runs(), kResident, Cell>,
                     dim3(unsigned(s.samples), unsigned(s.groups)), plan.warps * 32, size_t(plan.dynamic_bytes), p,
                     w.weights, w.far_state, plan.cached_current);
      });
    });
    return 0;
  });
}

}  // namespace stc::cuda

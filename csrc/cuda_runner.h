// Runs the operators on the CUDA kernels: makes their buffers with torch, plans, launches, and turns error codes into
// exceptions. Context is made from (params, current) and gives the stream; it is also told of the workspace, so that an
// emulation can watch all memory that a kernel may touch.
#pragma once

#include <c10/core/DeviceGuard.h>

#include <type_traits>

#include "cuda/launch.h"
#include "ops.h"
#include "plan_log.h"

namespace stc {

template <class Context>
struct CudaRunner {
  static bool takes_short(const Tensor& current, const Shape& shape, Request request) {
    const c10::DeviceGuard guard(current.device());
    return plan_on_device(shape, request).kernel == KernelKind::kPersistent;
  }

  static Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options); }

  template <class T>
  static void run(const StcForward<T>& params, const Tensor& current) {
    const c10::DeviceGuard guard(current.device());
    const Context context(params, current);
    const Plan p = plan_call(params.in, false, false);
    if constexpr (std::is_same_v<T, float>) {
      if (p.kernel == KernelKind::kPersistent) {
        const Tensor workspace = bytes(cuda::persistent_forward_workspace(params, p), current, context);
        return check(cuda::persistent_forward(params, p, workspace.mutable_data_ptr(), context.stream()), p);
      }
    }
    const Tensor workspace = bytes(cuda::general_forward_workspace<T>(params.in.shape), current, context);
    check(cuda::general_forward(params, workspace.mutable_data_ptr(), context.stream()), p);
  }

  template <class T>
  static void run(const StcBackward<T>& params, const Tensor& current) {
    const c10::DeviceGuard guard(current.device());
    const Context context(params, current);
    const Plan p = plan_call(params.in, true, !params.gradient_detach);
    if constexpr (std::is_same_v<T, float>) {
      if (p.kernel == KernelKind::kPersistent) {
        const Tensor workspace = bytes(cuda::persistent_backward_workspace(params, p), current, context);
        return check(cuda::persistent_backward(params, p, workspace.mutable_data_ptr(), context.stream()), p);
      }
    }
    const Tensor workspace =
        bytes(cuda::general_backward_workspace<T>(params.in.shape, params.in.neuron), current, context);
    check(cuda::general_backward(params, workspace.mutable_data_ptr(), context.stream()), p);
  }

 private:
  template <class T>
  static Plan plan_call(const StcInputs<T>& in, bool backward, bool attached) {
    Request request;
    request.double_precision = std::is_same_v<T, double>;
    request.neuron = in.neuron;
    request.spiking = in.cell.spiking;
    request.backward = backward;
    request.attached = attached;
    return report_plan(request, plan_on_device(in.shape, request));
  }

  static Plan plan_on_device(const Shape& shape, Request request) {
    constexpr int64_t kMaxGroups = 65535;  // of the second dimension of a grid; samples are the first
    TORCH_CHECK_VALUE(shape.groups <= kMaxGroups && shape.norm_groups <= kMaxGroups, "groups: got ", shape.groups,
                      " and norm_groups ", shape.norm_groups, ", expected at most ", kMaxGroups, " on a GPU");
    request.device = Device::kCuda;
    const int error = cuda::device_limits(&request.capability, &request.shared_bytes_limit);
    TORCH_CHECK(error == 0, "stc_cuda: cannot ask the device for its limits: ", cuda::error_string(error));
    request.capability = Context::code_capability(request.capability);
    return plan(shape, request);
  }

  static Tensor bytes(int64_t count, const Tensor& current, const Context& context) {
    Tensor workspace = at::empty({count}, current.options().dtype(at::kByte));
    context.workspace(workspace);
    return workspace;
  }

  static void check(int error, const Plan& p) {
    TORCH_CHECK(error == 0, "stc_cuda: a launch of the ", name(p.kernel),
                " kernels failed: ", cuda::error_string(error), Context::advice(error));
  }
};

}  // namespace stc

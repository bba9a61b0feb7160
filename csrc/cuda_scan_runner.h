// Runs the operators of scan_ops.h on the CUDA kernels. Context is that of cuda_runner.h.
#pragma once

#include <c10/core/DeviceGuard.h>

#include "cuda/launch.h"
#include "scan_ops.h"

namespace stc {

template <class Context>
struct CudaScanRunner {
  static constexpr bool kTakesShort = true;

  static Tensor empty(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
    return at::empty_strided(sizes, strides, options);
  }

  template <class T>
  static void run(const ScanForward<T>& params, const Tensor& like) {
    const c10::DeviceGuard guard(like.device());
    const Context context(params, like);
    check(cuda::scan_forward(params, context.stream()));
  }

  template <class T>
  static void run(const ScanBackward<T>& params, const Tensor& like) {
    const c10::DeviceGuard guard(like.device());
    const Context context(params, like);
    const Tensor workspace = at::empty({cuda::scan_backward_workspace(params)}, like.options().dtype(at::kByte));
    context.workspace(workspace);
    check(cuda::scan_backward(params, workspace.mutable_data_ptr(), context.stream()));
  }

 private:
  static void check(int error) {
    TORCH_CHECK(error == 0, "stc_cuda: a launch of the scan kernels failed: ", cuda::error_string(error),
                Context::advice(error));
  }
};

}  // namespace stc

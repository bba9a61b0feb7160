// The operators on CUDA tensors: the kernels of csrc/cuda on the current stream of the tensors' device.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <string>

#include "architectures.h"
#include "cuda_runner.h"
#include "cuda_scan_runner.h"

namespace stc {
namespace {

// The workspace comes from torch's allocator while the guard is in force, so for the stream of the launches: freed as
// soon as they are queued, its memory goes to nobody but later work on that stream.
class CudaContext {
 public:
  template <class Params>
  CudaContext(const Params&, const Tensor& current)
      : guard_(current.device()), stream_(c10::cuda::getCurrentCUDAStream()) {
    const int capability = device_capability();
    TORCH_CHECK(capability == 0 || code_capability(capability), how_to_compile_for(STC_CUDA_ARCHITECTURES, capability));
  }

  void workspace(const Tensor&) const {}
  cuda::Stream stream() const { return stream_.stream(); }

  // What the code was compiled for that runs on a GPU of this capability: PTX of an older one has no persistent
  // kernels.
  static int code_capability(int capability) { return code_for(STC_CUDA_ARCHITECTURES, capability); }

  // What to add to the text of an error of a launch.
  static std::string advice(int error) {
    switch (error) {
      case cudaErrorNoKernelImageForDevice:
      case cudaErrorInvalidDeviceFunction:
      case cudaErrorInvalidPtx:
      case cudaErrorUnsupportedPtxVersion:
      case cudaErrorJitCompilerNotFound:
      case cudaErrorJitCompilationDisabled:
        return "; " + how_to_compile_for(STC_CUDA_ARCHITECTURES, device_capability());
      default:
        return "";
    }
  }

 private:
  // 0 where the device cannot be asked; the plan asks again and reports the error.
  static int device_capability() {
    int capability = 0;
    int64_t shared_bytes = 0;
    return cuda::device_limits(&capability, &shared_bytes) == 0 ? capability : 0;
  }

  c10::cuda::CUDAGuard guard_;
  c10::cuda::CUDAStream stream_;
};

}  // namespace
}  // namespace stc

TORCH_LIBRARY_IMPL(stc_cuda, CUDA, m) {
  stc::implement_operators<stc::CudaRunner<stc::CudaContext>>(m);
  stc::implement_scan_operators<stc::CudaScanRunner<stc::CudaContext>>(m);
}

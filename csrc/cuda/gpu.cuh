// The only header that kernels include. Under nvcc it is CUDA; under a host compiler it is the emulation of CUDA in
// tests/cuda_emulation, so that one text runs on a GPU and, checked for errors, on a CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "emulation.h"
#endif

namespace gpu {

// Every array of dynamic shared memory starts at a multiple of this many bytes.
constexpr size_t kSharedAlignment = 16;

// Bytes of dynamic shared memory that SharedCarver::take<T>(count) uses; the sum over all arrays goes to launch().
template <class T>
__host__ __device__ constexpr size_t shared_bytes(size_t count) {
  return (count * sizeof(T) + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
}

}  // namespace gpu

#if defined(__CUDACC__)

// An array in static shared memory: GPU_SHARED(float, sums, [2][kWarps]); GPU_SHARED(alignas(16) uint8_t, bits, [64]);
#define GPU_SHARED(Type, name, ...) __shared__ Type name __VA_ARGS__

namespace gpu {

// Cuts the dynamic shared memory into arrays, in the same order in all threads of the block.
class SharedCarver {
 public:
  __device__ SharedCarver() {
    extern __shared__ __align__(16) unsigned char gpu_dynamic_shared_memory[];
    next_ = gpu_dynamic_shared_memory;
  }

  template <class T>
  __device__ T* take(size_t count) {
    T* array = reinterpret_cast<T*>(next_);
    next_ += shared_bytes<T>(count);
    return array;
  }

 private:
  unsigned char* next_;
};

// The most shared memory, static and dynamic, that one block may have on the current device.
inline cudaError_t shared_memory_per_block(int* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Without asking, static and dynamic shared memory together are held to 48 KB. What is asked for is always the same,
// all that the device gives beside the static part, so that threads which launch the same kernel do not undo each
// other's.
inline cudaError_t allow_all_shared_memory(const void* kernel) {
  int bytes = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = shared_memory_per_block(&bytes);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              bytes - static_cast<int>(attributes.sharedSizeBytes));
}

// Starts kernel(args...) on the stream, with as much dynamic shared memory as it asks for.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
  cudaError_t error = cudaSuccess;
  if (dynamic_shared_bytes > 0) error = allow_all_shared_memory(reinterpret_cast<const void*>(kernel));
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = dynamic_shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  }
  // The caller has the error; left in place, it would come up again in somebody else's check.
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error;
}

inline const char* error_text(cudaError_t error) { return cudaGetErrorString(error); }

}  // namespace gpu

#endif

#include "mma.cuh"

// Launches in a row on one stream.
#pragma once

#include "gpu.cuh"
#include "launch.h"

namespace stc::cuda {

constexpr int kThreads = 256;

// Keeps the first error; launches after it are skipped, and so are those with nothing to do.
class Launcher {
 public:
  explicit Launcher(Stream stream) : stream_(static_cast<cudaStream_t>(stream)) {}

  template <class... P, class... A>
  void start(void (*kernel)(P...), dim3 grid, int threads, size_t dynamic_bytes, A&&... arguments) {
    if (error_ == cudaSuccess && grid.x && grid.y)
      error_ = gpu::launch(kernel, grid, dim3(unsigned(threads)), dynamic_bytes, stream_, arguments...);
  }
  // Blocks of kThreads.
  template <class... P, class... A>
  void blocks(void (*kernel)(P...), dim3 grid, A&&... arguments) {
    start(kernel, grid, kThreads, 0, arguments...);
  }
  // One thread an element.
  template <class... P, class... A>
  void flat(void (*kernel)(P...), int64_t count, A&&... arguments) {
    blocks(kernel, dim3(unsigned((count + kThreads - 1) / kThreads)), arguments...);
  }
  int error() const { return int(error_); }

 private:
  cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace stc::cuda

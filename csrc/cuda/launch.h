// Host side of the CUDA kernels, for callers that know torch: neither CUDA's headers nor torch's appear here. A stream
// is an opaque pointer; results are cudaError_t values as int, 0 = success.
#pragma once

#include <cstdint>

#include "../params.h"
#include "../plan.h"

namespace stc::cuda {

using Stream = void*;

// Bytes of device memory that a call needs beside its arguments, aligned to 256 bytes, with any content; then the
// calls. The general kernels take whatever passed the checks, the persistent ones what plan() gives them.
template <class T>
int64_t general_forward_workspace(const Shape& shape);
template <class T>
int64_t general_backward_workspace(const Shape& shape, int neuron);

template <class T>
int general_forward(const StcForward<T>& params, void* workspace, Stream stream);
template <class T>
int general_backward(const StcBackward<T>& params, void* workspace, Stream stream);
int64_t persistent_forward_workspace(const StcForward<float>& params, const Plan& plan);
int64_t persistent_backward_workspace(const StcBackward<float>& params, const Plan& plan);
int persistent_forward(const StcForward<float>& params, const Plan& plan, void* workspace, Stream stream);
int persistent_backward(const StcBackward<float>& params, const Plan& plan, void* workspace, Stream stream);

// The element-wise neurons. A current and spikes of 16-bit numbers are taken as they are.
template <class T>
int64_t scan_backward_workspace(const ScanBackward<T>& params);
template <class T>
int scan_forward(const ScanForward<T>& params, Stream stream);
template <class T>
int scan_backward(const ScanBackward<T>& params, void* workspace, Stream stream);

// What plan() asks about the current device.
int device_limits(int* capability, int64_t* shared_bytes);

const char* error_string(int error);

}  // namespace stc::cuda

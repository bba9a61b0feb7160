// What the self-tests' sources share. Each function that they export takes pointers to memory of the device (under
// emulation: of the host), launches, and returns the error.
#pragma once

#include "gpu.cuh"

#define SELFTEST_EXPORT extern "C" __attribute__((visibility("default")))

// nvcc's runtime waits, the emulation has already run.
#if defined(__CUDACC__)
inline int finished(cudaError_t error) { return int(error != cudaSuccess ? error : cudaDeviceSynchronize()); }
#else
inline int finished(cudaError_t error) { return int(error); }
#endif

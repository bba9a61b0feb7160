// Large results on the CPU, in memory that is kept from one call to the next.
//
// The system takes back what malloc frees in large pieces, and hands it out again as pages that fault and are cleared
// one by one: that takes longer than a scan or a copy of the same size. PyTorch keeps such memory on a GPU but not on
// a CPU, so this does, in pages of 2 MiB, up to a limit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace stc {

// As at::empty and at::empty_strided. Small results are theirs.
at::Tensor empty_cached(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor empty_cached(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options);

// Bytes that are kept and that no tensor uses.
int64_t cached_bytes();
// The most of them: a sixteenth of the machine's memory, or STC_CUDA_CPU_CACHE_MB mebibytes; 0 keeps nothing.
// Throws std::runtime_error when that variable is not a number.
int64_t cache_limit();
// Gives them back to the system; returns how many they were.
int64_t empty_cache();

}  // namespace stc

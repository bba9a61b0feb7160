// New memory in large pages.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace stc {

constexpr int64_t kLargePage = int64_t(2) << 20;

// The first touch of a page of 4 KiB costs more than all that most kernels do with it; a page of 2 MiB is one touch.
inline at::Tensor in_large_pages(at::Tensor x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = kLargePage;
  const uintptr_t data = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + x.nbytes()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return x;
}

// Scratch [size] that starts with a large page: nothing but addresses is spent on that.
inline at::Tensor scratch(int64_t size, const at::TensorOptions& options) {
  const int64_t item = options.dtype().itemsize(), page = kLargePage / item;
  const at::Tensor x = at::empty({size + page}, options);
  const int64_t past = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kLargePage / item;
  return in_large_pages(x.narrow(0, past ? page - past : 0, size));
}

}  // namespace stc

// New memory in large pages.
#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace stc {

// The first touch of a page of 4 KiB costs more than all that most kernels do with it; a page of 2 MiB is one touch.
// What holds few of them is likely to be memory that was in use before, and asking is a call of the system.
inline at::Tensor in_large_pages(at::Tensor x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  if (x.nbytes() < 4 * kPage) return x;
  const uintptr_t data = reinterpret_cast<uintptr_t>(x.mutable_data_ptr());
  const uintptr_t begin = (data + kPage - 1) / kPage * kPage, end = (data + x.nbytes()) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return x;
}

}  // namespace stc

// Scratch memory of one thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <new>

#include "simd.h"

namespace stc::STC_SIMD_NAMESPACE {

struct Uninitialized {};

// Zero-filled unless asked for as it comes, aligned to a cache line.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(int64_t size, Uninitialized) { allocate(size); }
  explicit Buffer(int64_t size) : Buffer(size, Uninitialized()) { std::fill_n(data_, size, T(0)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data_, kAlignment); }
  T* data() const { return data_; }
  // Of a buffer that has none yet, as the memory comes.
  void allocate(int64_t size) {
    data_ = static_cast<T*>(::operator new(std::max<int64_t>(size, 1) * sizeof(T), kAlignment));
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  T* data_ = nullptr;
};

}  // namespace stc::STC_SIMD_NAMESPACE

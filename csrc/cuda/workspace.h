// Cuts one block of device memory into arrays.
#pragma once

#include <cstdint>

namespace stc::cuda {

// Arrays start at multiples of 256 bytes. With a null base it only counts.
class WorkspaceCarver {
 public:
  explicit WorkspaceCarver(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return array;
  }
  int64_t used() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

}  // namespace stc::cuda

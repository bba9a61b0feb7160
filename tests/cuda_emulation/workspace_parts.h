// Included before each file of kernels: every array that is cut from a workspace is registered on its own, by its
// number.
#pragma once

#include <string>

#include "cuda/workspace.h"
#include "emu_control.h"

namespace stc::cuda {

class WatchedCarver : public WorkspaceCarver {
 public:
  using WorkspaceCarver::WorkspaceCarver;

  template <class T>
  T* take(int64_t count) {
    T* array = WorkspaceCarver::take<T>(count);
    const std::string name = "workspace " + std::to_string(next_++);
    if (array) emu_register_part(array, count * sizeof(T), name.c_str());
    return array;
  }

 private:
  int next_ = 0;
};

}  // namespace stc::cuda

#define WorkspaceCarver WatchedCarver

// The shared memory of the block that runs: each array a piece of heap of its own, walled in by guards.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "runtime.h"

namespace emu {

class SharedMemory {
 public:
  // dynamic_bytes: what the launch asked for; device_bytes: what the device has, for static and dynamic arrays.
  void start_launch(size_t dynamic_bytes, size_t device_bytes);
  void start_block();
  // The block's array of that key, full of NaN when it is first asked for.
  void* array(const void* key, size_t bytes, size_t alignment, const std::string& name, bool dynamic);
  bool contains(const void* start, size_t bytes) const;
  // Reports a write into a guard.
  void check_guards();
  void end_launch();

 private:
  struct Array {
    const void* key;
    std::string name;
    size_t bytes;
    bool dynamic;
    bool used;  // by this block
    unsigned char* memory;
    size_t memory_bytes;
    unsigned char* data;
  };

  void count(size_t bytes, size_t alignment, bool dynamic, Where where);
  Array& allocate(const void* key, size_t bytes, size_t alignment, const std::string& name, bool dynamic);

  std::deque<Array> arrays_;
  size_t static_bytes_ = 0, dynamic_bytes_ = 0;
  size_t dynamic_limit_ = 0, device_limit_ = 0;
};

}  // namespace emu

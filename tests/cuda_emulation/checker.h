// What the runtime tells the checker; see checker.cpp. In the plain and asan modes there is none.
#pragma once

#include <cstdint>
#include <string>

#include "emu_control.h"
#include "runtime.h"

namespace emu {

struct RunningThread {
  uint3 block;
  int rank, warp, lane;
  const char* stack_low;
  const char* stack_high;
};

class Checker {
 public:
  virtual void add_region(void* start, size_t bytes, const char* name, EmuRegionKind kind) = 0;
  virtual void add_part(void* start, size_t bytes, const char* name) = 0;
  virtual void add_shared(void* start, size_t bytes, const char* name) = 0;
  virtual void remove_region(void* start) = 0;

  // The kernel's arguments lie in `parameters`.
  virtual void launch_begins(const void* parameters, size_t bytes) = 0;
  virtual void launch_ends() = 0;
  virtual void block_begins(int threads) = 0;
  // From now on, accesses are this thread's.
  virtual void thread_runs(const RunningThread& thread) = 0;

  virtual void block_synchronised() = 0;
  // The lanes of each warp that met at a named barrier.
  virtual void warps_synchronised(const uint32_t* lanes, int warps) = 0;
  virtual void lanes_synchronised(int warp, unsigned lanes) = 0;

  virtual void copy_issued(const Copy& copy) = 0;
  virtual void copy_lands(const Copy& copy) = 0;
  virtual void expect_read_only(const void* pointer, size_t bytes, Where where) = 0;

  virtual std::string traffic() const = 0;
  virtual void reset_traffic() = 0;

 protected:
  ~Checker() = default;
};

extern Checker* checker;  // null unless checker.cpp is linked in

}  // namespace emu

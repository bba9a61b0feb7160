// Accesses of a kernel that the operating system refuses (a null pointer, a misaligned vector, a full stack) end the
// kernel and not the process.
#pragma once

#include <signal.h>

#include <cstdint>

namespace emu {

struct Fault {
  int signal;
  uintptr_t code;     // as a return address, for source_of()
  uintptr_t address;  // that was accessed
};

// To be set by whoever runs kernels: is one running now, and what to do then, on a stack of its own. It never returns.
struct FaultHandler {
  bool (*running)();
  void (*handle)(const Fault& fault);
};

// While it lives, faults go to the handler if a kernel is running.
class FaultGuard {
 public:
  explicit FaultGuard(const FaultHandler& handler);
  ~FaultGuard();

 private:
  stack_t old_stack_{};
};

}  // namespace emu

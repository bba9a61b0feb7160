#include "faults.h"

#include <sys/ucontext.h>
#include <ucontext.h>

#include <iterator>

namespace emu {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};

FaultHandler handler;
Fault fault;
struct sigaction outside[std::size(kSignals)];
alignas(64) char signal_stack[64 * 1024];
alignas(64) char handler_stack[64 * 1024];

[[noreturn]] void after_signal() {
  handler.handle(fault);
  __builtin_unreachable();
}

// Has the thread go on in after_signal(), where, unlike here, everything is allowed.
void on_signal(int signal, siginfo_t* info, void* context) {
  if (!handler.running()) {  // not ours: let it happen again, as if we were not there
    for (size_t i = 0; i < std::size(kSignals); ++i)
      if (kSignals[i] == signal) sigaction(signal, &outside[i], nullptr);
    return;
  }
  auto* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  fault = {signal, uintptr_t(registers[REG_RIP]) + 1, reinterpret_cast<uintptr_t>(info->si_addr)};
  registers[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(after_signal));
  registers[REG_RSP] = greg_t(reinterpret_cast<uintptr_t>(handler_stack + sizeof handler_stack - 8));
}

}  // namespace

FaultGuard::FaultGuard(const FaultHandler& to) {
  handler = to;
  stack_t stack{};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &old_stack_);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &outside[i]);
}

FaultGuard::~FaultGuard() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &outside[i], nullptr);
  sigaltstack(&old_stack_, nullptr);
}

}  // namespace emu

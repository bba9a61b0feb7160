// Tells whoever listens (bindings.cpp: Python's logging) which kernels run, once a process for each new choice.
#pragma once

#include <array>
#include <atomic>

#include "plan.h"

namespace stc {

// Called from any thread, with or without Python's lock.
using PlanListener = void (*)(const Request&, const Plan&);
inline std::atomic<PlanListener> plan_listener{nullptr};

// A choice that people who wait for a fast kernel would want to know of.
inline bool is_slow(const Request& r, const Plan& p) {
  return p.kernel == KernelKind::kGeneral && r.spiking && !r.double_precision;
}

// Whether this choice is new. Without a lock: a fork may happen at any time, and threads that still compute while the
// process ends find everything in place. Reasons are literals, so their addresses tell them apart.
inline bool is_new(const Request& r, const Plan& p) {
  constexpr int kPasses = 2, kKernels = int(KernelKind::kGeneral) + 1, kMostReasons = 32;
  static std::array<std::atomic<const char*>, kMostReasons> seen[kPasses][kKernels];
  for (auto& entry : seen[r.backward][int(p.kernel)]) {
    const char* reason = entry.load();
    if (!reason && entry.compare_exchange_strong(reason, p.reason)) return true;
    if (reason == p.reason) return false;
  }
  return false;
}

inline Plan report_plan(const Request& request, const Plan& plan) {
  const PlanListener listener = plan_listener.load();
  if (listener && is_new(request, plan)) listener(request, plan);
  return plan;
}

}  // namespace stc

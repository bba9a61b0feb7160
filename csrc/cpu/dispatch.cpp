#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace stc {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
bool always() { return true; }

const CpuCapability kCapabilities[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, &avx512::kFloat32, &avx512::kFloat64},
    {"avx2", has_avx2, &avx2::kFloat32, &avx2::kFloat64},
#endif
    {"portable", always, &portable::kFloat32, &portable::kFloat64},
    {nullptr, nullptr, nullptr, nullptr},
};

const CpuCapability& choose() {
  const char* wanted = std::getenv("STC_CUDA_CPU_KERNEL");
  const bool any = !wanted || !*wanted;
  std::string usable;
  for (const CpuCapability* c = kCapabilities; c->name; ++c) {
    if (!c->supported()) continue;
    if (any || !std::strcmp(wanted, c->name)) return *c;
    usable += usable.empty() ? c->name : std::string(", ") + c->name;
  }
  throw std::runtime_error(std::string("STC_CUDA_CPU_KERNEL: got '") + wanted +
                           "', expected one that this build and this processor have: " + usable);
}

}  // namespace

const CpuCapability* cpu_capabilities() { return kCapabilities; }

const CpuCapability& cpu_capability() {
  static const CpuCapability& chosen = choose();
  return chosen;
}

}  // namespace stc

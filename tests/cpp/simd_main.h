// main of the test_simd_*.cpp, compiled for the baseline instruction set: include it before STC_TARGET.
#pragma once

#include <array>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/simd_target.h"

namespace stc::test {

// What CTest takes for "skipped" (SKIP_RETURN_CODE in CMakeLists.txt).
constexpr int kSkipped = 77;

inline int run_if_supported(const char* instruction_set, void (*tests)()) {
  for (const CpuCapability* c = cpu_capabilities(); c->name; ++c)
    if (!std::strcmp(c->name, instruction_set) && c->supported()) {
      tests();
      return result();
    }
  std::printf("this processor has no %s\n", instruction_set);
  return kSkipped;
}

}  // namespace stc::test

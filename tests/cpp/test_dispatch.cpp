// cpu/dispatch.cpp: which instruction set runs, and the environment variable that overrides it.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "check.h"
#include "cpu/kernels.h"

int main() {
  const std::string fastest = [] {
    for (const stc::CpuCapability* c = stc::cpu_capabilities();; ++c)
      if (c->supported()) return c->name;
  }();

  int count = 0;
  const stc::CpuCapability* last = nullptr;
  for (const stc::CpuCapability* c = stc::cpu_capabilities(); c->name; ++c, ++count) {
    CHECK(c->float32 && c->float64);
    last = c;
  }
  CHECK(count >= 1);
  CHECK(std::string(last->name) == "portable");
  CHECK(last->supported());

  setenv("STC_CUDA_CPU_KERNEL", "abacus", 1);
  std::string message;
  try {
    stc::cpu_capability();
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  CHECK(message.find("STC_CUDA_CPU_KERNEL") != std::string::npos);
  CHECK(message.find("'abacus'") != std::string::npos);
  CHECK(message.find(fastest) != std::string::npos);

  setenv("STC_CUDA_CPU_KERNEL", "portable", 1);
  CHECK(std::string(stc::cpu_capability().name) == "portable");
  // Chosen once.
  unsetenv("STC_CUDA_CPU_KERNEL");
  CHECK(std::string(stc::cpu_capability().name) == "portable");
  return stc::test::result();
}

// Which GPUs the compiled kernels run on: pure functions of names as nvcc spells them, with no device behind them.
#pragma once

#include <cstdlib>
#include <sstream>
#include <string>

namespace stc {

// Whether code for `architecture` runs on a GPU of `capability` = 10 * major + minor. Machine code (sm_86) runs within
// its major version from its minor version on, PTX (compute_86) on everything later; a suffix ties either to its own
// GPU (sm_90a) or to its own major version (compute_100f).
inline bool runs_on(const std::string& architecture, int capability) {
  const size_t digits = architecture.find('_') + 1;
  char* suffix = nullptr;
  const int compiled = int(std::strtol(architecture.c_str() + digits, &suffix, 10));
  if (*suffix == 'a') return capability == compiled;
  const bool any_major = architecture.compare(0, digits, "compute_") == 0 && *suffix == '\0';
  return capability >= compiled && (any_major || capability / 10 == compiled / 10);
}

inline std::string capability_name(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// `compiled` lists architectures, separated by spaces.
inline bool any_runs_on(const std::string& compiled, int capability) {
  std::istringstream names(compiled);
  for (std::string name; names >> name;)
    if (runs_on(name, capability)) return true;
  return false;
}

// What to tell the owner of a GPU that none of the compiled architectures runs on.
inline std::string how_to_compile_for(const std::string& compiled, int capability) {
  return "this GPU is an sm_" + std::to_string(capability) + ", and the CUDA kernels of stc_cuda were compiled for " +
         compiled + "; compile them for it: TORCH_CUDA_ARCH_LIST=" + capability_name(capability) +
         " pip install --no-build-isolation --force-reinstall --no-deps . (in the checkout)";
}

}  // namespace stc

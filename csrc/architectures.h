// Which GPUs the compiled kernels run on: pure functions of names as nvcc spells them, with no device behind them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string>

namespace stc {

inline int capability_of(const std::string& architecture) {
  return int(std::strtol(architecture.c_str() + architecture.find('_') + 1, nullptr, 10));
}

inline bool is_ptx(const std::string& architecture) { return architecture.compare(0, 8, "compute_") == 0; }

// Whether code for `architecture` runs on a GPU of `capability` = 10 * major + minor. Machine code (sm_86) runs within
// its major version from its minor version on, PTX (compute_86) on everything later; a suffix ties either to its own
// GPU (sm_90a) or to its own major version (compute_100f).
inline bool runs_on(const std::string& architecture, int capability) {
  const int compiled = capability_of(architecture);
  const char suffix = architecture.back();
  if (suffix == 'a') return capability == compiled;
  const bool any_major = is_ptx(architecture) && suffix != 'f';
  return capability >= compiled && (any_major || capability / 10 == compiled / 10);
}

inline std::string capability_name(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

// The capability that the code was compiled for which a GPU takes: the latest machine code that runs there, else the
// latest PTX; 0 where there is none. `compiled` lists architectures, separated by spaces.
inline int code_for(const std::string& compiled, int capability) {
  int machine_code = 0, ptx = 0;
  std::istringstream names(compiled);
  for (std::string name; names >> name;) {
    int& latest = is_ptx(name) ? ptx : machine_code;
    if (runs_on(name, capability)) latest = std::max(latest, capability_of(name));
  }
  return machine_code ? machine_code : ptx;
}

// What to tell the owner of a GPU that none of the compiled architectures runs on.
inline std::string how_to_compile_for(const std::string& compiled, int capability) {
  return "this GPU is an sm_" + std::to_string(capability) + ", and the CUDA kernels of stc_cuda were compiled for " +
         compiled + "; compile them for it: TORCH_CUDA_ARCH_LIST=" + capability_name(capability) +
         " pip install --no-build-isolation --force-reinstall --no-deps . (in the checkout)";
}

}  // namespace stc

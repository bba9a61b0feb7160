// The Python module stc_cuda._C. Importing it registers the operators of ops.cpp; build_info() tells what was compiled.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "cpu/kernels.h"

namespace py = pybind11;

#ifndef STC_CUDA_VERSION
#error "STC_CUDA_VERSION is set by setup.py and CMakeLists.txt"
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "gcc " __VERSION__;
#endif
}

py::dict build_info() {
  py::list compiled;
  for (const stc::CpuCapability* c = stc::cpu_capabilities(); c->name; ++c) compiled.append(c->name);
  py::dict info;
  info["version"] = STC_CUDA_VERSION;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = compiler();
  info["cpp_standard"] = long(__cplusplus);
  info["openmp"] =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::list();
  info["cpu_kernels"] = compiled;
  info["cpu_kernel"] = stc::cpu_capability().name;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  stc::cpu_capability();  // an unusable STC_CUDA_CPU_KERNEL fails the import, not the first call
  m.def("build_info", &build_info, "What was compiled, and which CPU kernels run here.");
}

// The Python module stc_cuda._C. Importing it registers the operators of ops.cpp and, in a build with CUDA, of
// ops_cuda.cpp; build_info() tells what was compiled, plan() which kernel would run, cells() what neurons there are.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <sstream>
#include <string>

#include "autograd_texts.h"
#include "cell.h"
#include "cell_table.h"
#include "cpu/kernels.h"
#include "memory_cache.h"
#include "plan_log.h"

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
  py::list architectures;
#if defined(STC_CUDA_TOOLKIT)
  info["cuda"] = STC_CUDA_TOOLKIT;
  std::istringstream names(STC_CUDA_ARCHITECTURES);
  for (std::string name; names >> name;) architectures.append(name);
  info["cuda_skipped"] = py::none();
#else
  info["cuda"] = py::none();
  info["cuda_skipped"] = STC_CUDA_SKIPPED;
#endif
  info["cuda_architectures"] = architectures;
  info["cpu_kernels"] = compiled;
  info["cpu_kernel"] = stc::cpu_capability().name;
  return info;
}

py::dict plan(const std::string& neuron, int64_t steps, int64_t samples, int64_t channels, int64_t height,
              int64_t width, int64_t kernel, int64_t groups, int64_t norm_groups, bool cuda, bool double_precision,
              bool spiking, bool backward, bool attached, int capability, int64_t shared_bytes_limit) {
  stc::Request request;
  for (int i = 0; i < stc::CircuitCells::kCount; ++i)
    if (neuron == stc::CircuitCells::traits(i).name) request.neuron = i;
  request.device = cuda ? stc::Device::kCuda : stc::Device::kCpu;
  request.double_precision = double_precision;
  request.spiking = spiking;
  request.backward = backward;
  request.attached = attached;
  request.capability = capability;
  request.shared_bytes_limit = shared_bytes_limit;
  const stc::Plan p = stc::plan({steps, samples, channels, height, width, kernel, groups, norm_groups}, request);
  py::dict answer;
  answer["kernel"] = stc::name(p.kernel);
  answer["reason"] = p.reason;
  answer["units"] = p.units;
  answer["unit_channels"] = p.unit_channels;
  answer["tasks"] = p.tasks;
  answer["warps"] = p.warps;
  answer["shared_memory"] = p.dynamic_bytes;
  answer["runs_per_warp"] = p.runs_per_warp;
  answer["resident_weights"] = p.resident_weights;
  answer["cached_current"] = p.cached_current;
  answer["cached_u"] = p.cached_u;
  answer["near_second"] = p.near_second;
  return answer;
}

py::dict cells() {
  py::dict answer;
  const auto add = [&](const char* kind, const auto& table) {
    for (const stc::CellInfo& cell : table) {
      py::dict info;
      info["kind"] = kind;
      info["states"] = cell.states;
      info["potentials"] = cell.potentials;
      info["coefficients"] = cell.coefficients;
      answer[cell.name] = info;
    }
  };
  add("scan", stc::kScanTable);
  add("circuit", stc::kCircuitTable);
  return answer;
}

void log_plan(const stc::Request& request, const stc::Plan& p) {
  constexpr int kInfo = 20, kWarning = 30;
  const bool slow = stc::is_slow(request, p);
  const bool cuda = p.kernel == stc::KernelKind::kPersistent || p.kernel == stc::KernelKind::kGeneral;
  py::gil_scoped_acquire lock;
  try {
    py::module_::import("logging")
        .attr("getLogger")("stc_cuda")
        .attr("log")(slow ? kWarning : kInfo, "%s on %s: the %s kernels run (%s)%s",
                     request.backward ? "stc_backward" : "stc_forward", cuda ? "cuda" : "cpu", stc::name(p.kernel),
                     p.reason, slow ? "; the persistent kernels, which do not take this call, are faster" : "");
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("the log of stc_cuda");  // a handler of the user raised; the call itself goes on
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  // An unusable STC_CUDA_CPU_KERNEL or STC_CUDA_CPU_CACHE_MB fails the import, not the first call.
  stc::cpu_capability();
  stc::cache_limit();
  m.def("build_info", &build_info, "What was compiled, and which CPU kernels run here.");
  m.def("cells", &cells, "The compiled neurons by name: their kind, and how many numbers each has.");
  m.def("cached_bytes", &stc::cached_bytes, "Bytes kept for results on the CPU that no tensor uses.");
  m.def("cache_limit", &stc::cache_limit, "The most of them.");
  m.def("empty_cache", &stc::empty_cache, "Gives them back to the system; returns how many they were.");
  m.def("plan", &plan, "Which kernel runs for a shape; see stc_cuda.kernel_plan.", py::kw_only(), py::arg("neuron"),
        py::arg("steps"), py::arg("samples"), py::arg("channels"), py::arg("height"), py::arg("width"),
        py::arg("kernel"), py::arg("groups"), py::arg("norm_groups"), py::arg("cuda"), py::arg("double_precision"),
        py::arg("spiking"), py::arg("backward"), py::arg("attached"), py::arg("capability"),
        py::arg("shared_bytes_limit"));
  m.attr("GRAPH_IS_FREED") = stc::kGraphIsFreed;
  m.attr("NO_SECOND_DERIVATIVE") = stc::kNoSecondDerivative;
  stc::plan_listener = &log_plan;
  // Threads may compute for as long as the process lives, Python's lock only until Python ends.
  py::module_::import("atexit").attr("register")(py::cpp_function([] { stc::plan_listener = nullptr; }));
}

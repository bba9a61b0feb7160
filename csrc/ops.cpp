// The operators stc_cuda::stc_forward, stc_backward, scan_forward and scan_backward, and their CPU implementation on
// the kernels of csrc/cpu.
#include "ops.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include <atomic>
#include <type_traits>

#include "cpu/kernels.h"
#include "memory_cache.h"
#include "plan_log.h"
#include "scan_ops.h"

namespace stc {
namespace {

template <class T>
Plan plan_cpu(const StcInputs<T>& in, bool backward) {
  Request request;
  request.backward = backward;
  request.double_precision = std::is_same_v<T, double>;
  request.spiking = in.cell.spiking;
  return report_plan(request, plan(in.shape, request));
}

struct CpuRunner {
  static bool takes_short(const Tensor&, const Shape&, const Request&) { return false; }

  static Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) { return empty_cached(sizes, options); }

  template <class T>
  static void run(const StcForward<T>& params, const Tensor& current) {
    const Shape& shape = params.in.shape;
    const auto real = current.options();
    const CpuKernels<T>& k = cpu_kernels<T>();
    const CpuBufferSizes sizes = k.buffer_sizes(shape);
    const Tensor weights = at::empty({sizes.gate_weights}, real);
    const CpuBuffers<T> buffers{weights.mutable_data_ptr<T>(), nullptr, nullptr, nullptr};
    at::parallel_for(0, shape.groups, 1, [&](int64_t begin, int64_t end) { k.pack(params.in, buffers, begin, end); });
    std::atomic<bool> binary{true};
    at::parallel_for(0, plan_cpu(params.in, false).tasks, 1, [&](int64_t begin, int64_t end) {
      if (!k.forward(params, buffers, begin, end)) binary = false;
    });
    TORCH_CHECK_VALUE(binary, "spikes: got values other than 0 and 1, expected 0/1 spikes unless spiking=False");
  }

  template <class T>
  static void run(const StcBackward<T>& params, const Tensor& current) {
    const Shape& shape = params.in.shape;
    const auto real = current.options();
    const CpuKernels<T>& k = cpu_kernels<T>();
    const CpuBufferSizes sizes = k.buffer_sizes(shape);
    const Tensor gate = at::empty({sizes.gate_weights}, real);
    const Tensor transposed = at::empty({params.gradient_detach ? 0 : sizes.transposed_weights}, real);
    const Tensor partial_weights = at::empty({shape.samples * sizes.partial_weights}, real);
    const Tensor partial_sums = at::empty({shape.samples * sizes.partial_sums}, real.dtype(at::kDouble));
    const CpuBuffers<T> buffers{gate.mutable_data_ptr<T>(), output<T>(transposed), output<T>(partial_weights),
                                output<double>(partial_sums)};
    at::parallel_for(0, shape.groups, 1, [&](int64_t begin, int64_t end) { k.pack(params.in, buffers, begin, end); });
    at::parallel_for(0, plan_cpu(params.in, true).tasks, 1,
                     [&](int64_t begin, int64_t end) { k.backward(params, buffers, begin, end); });
    at::parallel_for(0, shape.groups, 1, [&](int64_t begin, int64_t end) { k.reduce(params, buffers, begin, end); });
  }
};

struct CpuScanRunner {
  static constexpr bool kTakesShort = false;

  static Tensor empty(at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
    return empty_cached(sizes, strides, options);
  }

  template <class T>
  static void run(const ScanForward<T>& params, const Tensor&) {
    at::parallel_for(0, ScanTasks(params.in.shape).count(), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().scan_forward(params, begin, end); });
  }

  template <class T>
  static void run(const ScanBackward<T>& params, const Tensor& like) {
    const ScanTasks tasks(params.in.shape);
    const bool learns = params.grad_threshold || params.grad_coefficients;
    const int64_t rows = 1 + kScanTable[params.in.neuron].coefficients;
    const Tensor sums =
        at::empty({learns ? tasks.count() * rows * tasks.width() : 0}, like.options().dtype(at::kDouble));
    double* partials = output<double>(sums);
    at::parallel_for(0, tasks.count(), 1,
                     [&](int64_t begin, int64_t end) { cpu_kernels<T>().scan_backward(params, partials, begin, end); });
    if (!learns) return;
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      cpu_kernels<T>().scan_reduce(params, partials, rows, begin, end);
    });
  }
};

}  // namespace
}  // namespace stc

TORCH_LIBRARY(stc_cuda, m) {
  stc::define_operators(m);
  stc::define_scan_operators(m);
}

TORCH_LIBRARY_IMPL(stc_cuda, CPU, m) {
  stc::implement_operators<stc::CpuRunner>(m);
  stc::implement_scan_operators<stc::CpuScanRunner>(m);
}

// The derivatives live in stc_cuda/_autograd.py. Whoever differentiates an operator itself, or the derivative once
// more, gets an error instead of silent zeros.
TORCH_LIBRARY_IMPL(stc_cuda, Autograd, m) {
  m.impl("stc_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("stc_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_forward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_backward", torch::autograd::autogradNotImplementedFallback());
  m.impl("scan_backward_in_place", torch::autograd::autogradNotImplementedFallback());
}

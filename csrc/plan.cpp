#include "plan.h"

#include <algorithm>
#include <numeric>

#include "cell.h"

namespace stc {
namespace {

constexpr int kRunPixels = 16, kMaxMap = 32, kMaxWarps = 16, kParkingSlots = 8;
// No less than the static shared memory of the persistent kernels, without and for each coefficient of a cell.
constexpr int64_t kStaticForward = 3840, kStaticBackward = 4480, kStaticCoefficient = 64;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// nullptr when the persistent kernels take the call.
const char* why_not_persistent(const Shape& s, const Request& r) {
  const int64_t in_group = s.channels / s.groups;
  if (r.double_precision) return "double precision";
  if (!r.spiking) return "soft spikes";
  if (r.capability < 80) return "no tensor cores with fp32 sums before compute capability 8.0";
  if (s.groups != s.norm_groups) return "groups differ from norm_groups";
  if (in_group != 8 && in_group != 16) return "channels per group are neither 8 nor 16";
  if (s.kernel != 3 && s.kernel != 5) return "the kernel size is neither 3 nor 5";
  if (s.height > kMaxMap || s.width > kMaxMap) return "the map is larger than 32x32";
  return nullptr;
}

// Shared memory of the weight gradient, the second launch of the backward pass: 128 bytes a thread of 4 kernel warps,
// and no less than its static part.
int64_t weight_gradient_bytes(const Shape& s) { return 4 * s.kernel * 32 * 128 + 7424; }

int64_t static_bytes(const Request& r) {
  const int64_t coefficients = CircuitCells::traits(r.neuron).coefficients;
  return (r.backward ? kStaticBackward : kStaticForward) + coefficients * kStaticCoefficient;
}

void size_persistent(const Shape& s, const Request& r, Plan& p) {
  const int64_t in_group = s.channels / s.groups, tiles = in_group / 8, taps = s.kernel * s.kernel;
  const int64_t runs = s.height * ceil_div(s.width, kRunPixels);
  p.runs_per_warp = runs <= kMaxWarps ? 1 : runs <= 2 * kMaxWarps ? 2 : 4;
  p.warps = int(ceil_div(runs, p.runs_per_warp));
  // One fp32 number a neuron: the membrane potential, or in the backward pass the gradient of u.
  const int64_t neurons = p.runs_per_warp * tiles * p.warps * 32 * 16;
  p.dynamic_bytes = neurons;
  const CellTraits cell = CircuitCells::traits(r.neuron);
  const int64_t fixed = static_bytes(r);
  const auto take_if_it_fits = [&](int64_t bytes) {
    const bool fits = fixed + p.dynamic_bytes + bytes <= r.shared_bytes_limit;
    if (fits) p.dynamic_bytes += bytes;
    return fits;
  };
  // pixels of a map with its halo, and those that a run which is not whole reads beyond the last row
  const int64_t area = (s.height + s.kernel - 1) * (s.width + s.kernel - 1) + (s.width % kRunPixels ? kRunPixels : 0);
  if (r.backward) {
    // the sums of the warps and, for the transposed convolutions, z' of four channels as three bf16 numbers share one
    // place
    const int64_t sums = kMaxWarps * in_group * 6 * 4;
    p.dynamic_bytes += std::max(sums, r.attached ? round_up(3 * area * 4 * 2, 16) : 0);
    p.near_second = cell.states > 1 && take_if_it_fits(neurons);
    p.cached_u = take_if_it_fits(neurons);
  } else {
    // with the spikes as fp16 numbers in planes of eight channels; beside a second state it would have to spill
    // registers
    const int64_t weights = ceil_div(taps * in_group, 16) * tiles * 2 * 32 * 16,
                  numbers = tiles * round_up(area, 16) * 16;
    p.resident_weights = cell.states == 1 && take_if_it_fits(weights + numbers);
    p.near_second = cell.states > 1 && take_if_it_fits(neurons);
  }
  p.cached_current = take_if_it_fits(neurons);
}

}  // namespace

Plan plan(const Shape& shape, const Request& request) {
  Plan p{};
  p.units = std::gcd(shape.groups, shape.norm_groups);
  p.unit_channels = shape.channels / p.units;
  p.tasks = shape.samples * p.units;
  p.packed_bytes = (shape.channels / shape.groups + 7) / 8;
  if (request.device == Device::kCpu) {
    p.kernel = request.spiking ? KernelKind::kEvent : KernelKind::kDense;
    p.reason = request.spiking ? "spikes are bits" : "soft spikes";
    return p;
  }
  p.reason = why_not_persistent(shape, request);
  if (!p.reason) {
    size_persistent(shape, request, p);
    const int64_t needed =
        std::max(static_bytes(request) + p.dynamic_bytes, request.backward ? weight_gradient_bytes(shape) : int64_t(0));
    if (needed > request.shared_bytes_limit) p.reason = "too little shared memory";
  }
  p.kernel = p.reason ? KernelKind::kGeneral : KernelKind::kPersistent;
  if (!p.reason) p.reason = "8 or 16 channels a group on a map up to 32x32";
  return p;
}

const char* name(KernelKind kernel) {
  switch (kernel) {
    case KernelKind::kEvent:
      return "event";
    case KernelKind::kDense:
      return "dense";
    case KernelKind::kPersistent:
      return "persistent";
    case KernelKind::kGeneral:
      return "general";
  }
  return "?";
}

}  // namespace stc

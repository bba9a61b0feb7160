#include "plan.h"

#include <numeric>

namespace stc {

Plan plan(const Shape& shape, Device, bool spiking) {
  Plan p{};
  p.kernel = spiking ? KernelKind::kEvent : KernelKind::kDense;
  p.units = std::gcd(shape.groups, shape.norm_groups);
  p.unit_channels = shape.channels / p.units;
  p.tasks = shape.samples * p.units;
  p.packed_bytes = (shape.channels / shape.groups + 7) / 8;
  return p;
}

const char* name(KernelKind kernel) { return kernel == KernelKind::kEvent ? "event" : "dense"; }

}  // namespace stc

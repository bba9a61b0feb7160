// plan.h: a pure function of shape, options and device.
#include <cstring>
#include <initializer_list>

#include "check.h"
#include "plan.h"

namespace {

using stc::KernelKind, stc::Plan, stc::Request, stc::Shape;

Shape layer(int64_t channels, int64_t groups, int64_t norm_groups) {
  return {4, 3, channels, 32, 32, 5, groups, norm_groups};
}

Request cuda(int capability, int64_t shared_kib) {
  Request r;
  r.device = stc::Device::kCuda;
  r.capability = capability;
  r.shared_bytes_limit = shared_kib * 1024;
  return r;
}

void test_units() {
  const Plan paper = stc::plan(layer(256, 16, 16), {});
  CHECK(paper.units == 16);
  CHECK(paper.unit_channels == 16);
  CHECK(paper.tasks == 3 * 16);
  CHECK(paper.packed_bytes == 2);

  // Channels that a convolution or a norm couples stay in one unit.
  const Plan mixed = stc::plan(layer(48, 6, 4), {});
  CHECK(mixed.units == 2);
  CHECK(mixed.unit_channels == 24);
  CHECK(mixed.packed_bytes == 1);
  CHECK(stc::plan(layer(12, 4, 3), {}).units == 1);
  CHECK(stc::plan(layer(12, 12, 12), {}).unit_channels == 1);

  // Bits fill whole bytes of a pixel.
  CHECK(stc::plan(layer(9, 1, 1), {}).packed_bytes == 2);

  Shape empty = layer(16, 2, 2);
  empty.samples = 0;
  CHECK(stc::plan(empty, {}).tasks == 0);
}

void test_cpu() {
  Request r;
  CHECK(stc::plan(layer(256, 16, 16), r).kernel == KernelKind::kEvent);
  r.double_precision = true;
  CHECK(stc::plan(layer(256, 16, 16), r).kernel == KernelKind::kEvent);
  r.spiking = false;
  CHECK(stc::plan(layer(256, 16, 16), r).kernel == KernelKind::kDense);
}

void test_cuda_paper_layer() {
  // 16,384 membrane potentials; 25 x 16 x 32 weights as pairs of fp16, and 16 spikes a pixel as fp16.
  constexpr int64_t kMembrane = 16384 * 4, kResident = 25 * 16 * 32 * 4 + 36 * 36 * 16 * 2;
  const Plan a100 = stc::plan(layer(256, 16, 16), cuda(80, 163));
  CHECK(a100.kernel == KernelKind::kPersistent);
  CHECK(a100.resident_weights);
  CHECK(!a100.cached_current);
  CHECK(a100.dynamic_bytes == kMembrane + kResident);
  CHECK(a100.warps * a100.runs_per_warp * 16 >= 32 * 32);
  CHECK(a100.warps <= 16);

  const Plan rtx = stc::plan(layer(256, 16, 16), cuda(89, 99));
  CHECK(rtx.kernel == KernelKind::kPersistent);
  CHECK(!rtx.resident_weights);
  CHECK(rtx.dynamic_bytes == kMembrane);

  const Plan h100 = stc::plan(layer(256, 16, 16), cuda(90, 227));
  CHECK(h100.resident_weights);
  CHECK(h100.cached_current);
  CHECK(h100.dynamic_bytes == 2 * kMembrane + kResident);

  CHECK(stc::plan(layer(256, 16, 16), cuda(80, 48)).kernel == KernelKind::kGeneral);
}

// Backward: what does not fit on chip is read again, u of the step before last of all.
void test_cuda_paper_layer_backward() {
  constexpr int64_t kNeurons = 16384 * 4, kSums = 16 * 16 * 6 * 4, kMap = 3 * 36 * 36 * 4 * 2;
  for (const bool attached : {false, true}) {
    const int64_t shared = attached ? kMap : kSums;
    const auto planned = [&](int64_t shared_kib) {
      Request r = cuda(80, shared_kib);
      r.backward = true;
      r.attached = attached;
      const Plan p = stc::plan(layer(256, 16, 16), r);
      CHECK(p.kernel == KernelKind::kPersistent);
      CHECK(p.dynamic_bytes == kNeurons * (1 + p.cached_u + p.cached_current) + shared);
      CHECK(p.dynamic_bytes <= r.shared_bytes_limit);
      return p;
    };
    CHECK(!planned(99).cached_u);
    CHECK(!planned(99).cached_current);
    CHECK(planned(163).cached_u);
    CHECK(!planned(163).cached_current);
    CHECK(planned(227).cached_u);
    CHECK(planned(227).cached_current);
  }
}

void test_cuda_limits() {
  const auto expect_general = [](const Shape& shape, const Request& request) {
    const Plan p = stc::plan(shape, request);
    CHECK(p.kernel == KernelKind::kGeneral);
    CHECK(p.reason && *p.reason);
  };
  const Request h100 = cuda(90, 227);
  CHECK(stc::plan(layer(128, 16, 16), h100).kernel == KernelKind::kPersistent);  // 8 channels a group
  Request r = h100;
  r.double_precision = true;
  expect_general(layer(256, 16, 16), r);
  r = h100;
  r.spiking = false;
  expect_general(layer(256, 16, 16), r);
  expect_general(layer(256, 16, 16), cuda(75, 64));
  expect_general(layer(256, 16, 8), h100);
  expect_general(layer(256, 8, 8), h100);
  Shape shape = layer(256, 16, 16);
  shape.kernel = 7;
  expect_general(shape, h100);
  shape = layer(256, 16, 16);
  shape.width = 33;
  expect_general(shape, h100);

  // Any smaller map has room for all of its pixels.
  for (const int64_t kernel : {3, 5})
    for (int64_t height = 1; height <= 32; ++height)
      for (int64_t width = 1; width <= 32; ++width) {
        const Plan p = stc::plan({1, 1, 16, height, width, kernel, 1, 1}, h100);
        const int64_t runs = height * ((width + 15) / 16);
        CHECK(p.kernel == KernelKind::kPersistent);
        CHECK(p.warps * p.runs_per_warp >= runs);
        CHECK((p.warps - 1) * p.runs_per_warp < runs);
        CHECK(p.warps >= 1 && p.warps <= 16);
      }
}

}  // namespace

int main() {
  test_units();
  test_cpu();
  test_cuda_paper_layer();
  test_cuda_paper_layer_backward();
  test_cuda_limits();
  const KernelKind kinds[] = {KernelKind::kEvent, KernelKind::kDense, KernelKind::kPersistent, KernelKind::kGeneral};
  for (const KernelKind a : kinds)
    for (const KernelKind b : kinds) CHECK((a == b) == !std::strcmp(stc::name(a), stc::name(b)));
  return stc::test::result();
}

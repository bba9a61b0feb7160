// The weight gradient alone, of gradients of the gates and spikes that a test makes.
#include "persistent_launch.h"
#include "weight_gradient.cuh"

using namespace stc;
using namespace stc::cuda;

// grad_gates: both [T, N, C, H, W]; spikes: one word of C / groups bits a pixel, [T, N, groups, H, W]; partial: room
// for splits * 2 * C * C / groups * K * K numbers.
extern "C" __attribute__((visibility("default"))) int weight_gradient(const int64_t* sizes, int splits, float* temporal,
                                                                      float* spatial, uint8_t* spikes, float4* partial,
                                                                      float* grad_temporal, float* grad_spatial) {
  StcBackward<float> p{};
  p.in.shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[6]};
  p.grad_temporal_weight = grad_temporal;
  p.grad_spatial_weight = grad_spatial;
  const Shape& s = p.in.shape;
  const BackwardTrace trace{{temporal, spatial}, spikes, nullptr};
  Launcher launch(nullptr);
  with_sizes(s, [&](auto channels, auto kernel) {
    start_weight_gradient<channels(), kernel()>(launch, p, trace, splits, partial);
    return 0;
  });
  return launch.error();
}

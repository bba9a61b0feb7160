// Means and variances of a block's values in one exchange, without the cancellation of E[x^2] - E[x]^2.
#pragma once

#include "gpu.cuh"

namespace stc::cuda {

// Of `count` values each of several kinds: the mean, and the variance, which stays in range where sums of squares would
// not.
template <int Kinds>
struct Spread {
  static constexpr int kNumbers = 1 + 2 * Kinds;
  float count = 0.f, mean[Kinds] = {}, variance[Kinds] = {};

  // Together with other values (Chan, Golub and LeVeque 1979: Updating formulae and a pairwise algorithm for computing
  // sample variances).
  __device__ __forceinline__ void merge(float other_count, const float (&other_mean)[Kinds],
                                        const float (&other_variance)[Kinds]) {
    const float total = count + other_count, share = total > 0.f ? __fdividef(other_count, total) : 0.f;
#pragma unroll
    for (int k = 0; k < Kinds; ++k) {
      const float difference = other_mean[k] - mean[k];
      mean[k] += difference * share;
      variance[k] += (other_variance[k] - variance[k]) * share + difference * difference * share * (1.f - share);
    }
    count = total;
  }

  // With the lanes at these distances.
  __device__ __forceinline__ void merge_lanes(int distance) {
#pragma unroll 1
    for (; distance; distance /= 2) {
      float other_mean[Kinds], other_variance[Kinds];
#pragma unroll
      for (int k = 0; k < Kinds; ++k) {
        other_mean[k] = __shfl_xor_sync(0xffffffffu, mean[k], distance);
        other_variance[k] = __shfl_xor_sync(0xffffffffu, variance[k], distance);
      }
      merge(__shfl_xor_sync(0xffffffffu, count, distance), other_mean, other_variance);
    }
  }

  // Of the whole block: `publish` by all warps, a barrier, `collect` by all warps; the same in every thread.
  __device__ __forceinline__ void publish(float (*warps)[kNumbers]) {
    merge_lanes(16);
    if (threadIdx.x % 32) return;
    float* out = warps[threadIdx.x / 32];
    out[0] = count;
#pragma unroll
    for (int k = 0; k < Kinds; ++k) {
      out[1 + k] = mean[k];
      out[1 + Kinds + k] = variance[k];
    }
  }
  // At most 16 warps.
  __device__ __forceinline__ void collect(const float (*warps)[kNumbers]) {
    const int lane = int(threadIdx.x % 32);
    const bool present = lane < int(blockDim.x / 32);
    count = present ? warps[lane][0] : 0.f;
#pragma unroll
    for (int k = 0; k < Kinds; ++k) {
      mean[k] = present ? warps[lane][1 + k] : 0.f;
      variance[k] = present ? warps[lane][1 + Kinds + k] : 0.f;
    }
    merge_lanes(8);
    // lanes merge in different orders, and so round differently
#pragma unroll
    for (int k = 0; k < Kinds; ++k) {
      mean[k] = __shfl_sync(0xffffffffu, mean[k], 0);
      variance[k] = __shfl_sync(0xffffffffu, variance[k], 0);
    }
  }
};

}  // namespace stc::cuda

// 16-bit numbers, which currents and spikes may be stored in, as float.
#pragma once

#include "../params.h"
#include "gpu.cuh"

namespace stc::cuda {

__device__ __forceinline__ float widen(uint16_t x, Storage storage) {
  return storage == Storage::kHalf ? __half2float(__ushort_as_half(x)) : __uint_as_float(uint32_t(x) << 16);
}
__device__ __forceinline__ uint16_t narrow(float x, Storage storage) {
  return storage == Storage::kHalf ? __half_as_ushort(__float2half_rn(x))
                                   : __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

}  // namespace stc::cuda

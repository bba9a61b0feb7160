// 256-bit vectors with fused multiply-add.
#include "simd_target.h"

#if defined(__x86_64__)
STC_TARGET("avx2,fma,bmi")
#define STC_SIMD_NAMESPACE avx2
#define STC_SIMD_BYTES 32

#include "kernels_impl.h"
STC_TARGET_END
#endif

// 512-bit vectors.
#include "simd_target.h"

#if defined(__x86_64__)
STC_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi")
#define STC_SIMD_NAMESPACE avx512
#define STC_SIMD_BYTES 64

#include "kernels_impl.h"
STC_TARGET_END
#endif

// 128-bit vectors, which every x86-64 (SSE2) and AArch64 (NEON) processor has.
#include "simd_target.h"

#define STC_SIMD_NAMESPACE portable
#define STC_SIMD_BYTES 16

#include "kernels_impl.h"

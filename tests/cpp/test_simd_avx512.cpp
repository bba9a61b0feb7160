// The 512-bit vectors of cpu/kernels_avx512.cpp.
#include "simd_main.h"

namespace stc::avx512 {
void run_simd_tests();
}
int main() { return stc::test::run_if_supported("avx512", stc::avx512::run_simd_tests); }

#if defined(__x86_64__)
STC_TARGET("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi")
#define STC_SIMD_NAMESPACE avx512
#define STC_SIMD_BYTES 64

#include "simd_tests.h"
STC_TARGET_END
#else
void stc::avx512::run_simd_tests() {}
#endif

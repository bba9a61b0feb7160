// The 256-bit vectors of cpu/kernels_avx2.cpp.
#include "simd_main.h"

namespace stc::avx2 {
void run_simd_tests();
}
int main() { return stc::test::run_if_supported("avx2", stc::avx2::run_simd_tests); }

#if defined(__x86_64__)
STC_TARGET("avx2,fma,bmi")
#define STC_SIMD_NAMESPACE avx2
#define STC_SIMD_BYTES 32

#include "simd_tests.h"
STC_TARGET_END
#else
void stc::avx2::run_simd_tests() {}
#endif

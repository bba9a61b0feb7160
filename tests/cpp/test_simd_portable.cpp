// The 128-bit vectors of cpu/kernels_portable.cpp.
#include "simd_main.h"

namespace stc::portable {
void run_simd_tests();
}
int main() { return stc::test::run_if_supported("portable", stc::portable::run_simd_tests); }

#define STC_SIMD_NAMESPACE portable
#define STC_SIMD_BYTES 16

#include "simd_tests.h"

// One SIMD vector of scalars, by the vector extensions of GCC and Clang. Compiled once per instruction set: the file
// that includes it defines STC_SIMD_NAMESPACE and STC_SIMD_BYTES (see kernels_*.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace stc::STC_SIMD_NAMESPACE {

template <class T>
struct IntegerLike;
template <>
struct IntegerLike<float> {
  using type = int32_t;
};
template <>
struct IntegerLike<double> {
  using type = int64_t;
};

// The math policy of cell.h for a vector of `Lanes` values.
template <class T>
struct Simd {
  using Scalar = T;
  using Int = typename IntegerLike<T>::type;
  static constexpr int kLanes = STC_SIMD_BYTES / sizeof(T);
  typedef T Real __attribute__((vector_size(STC_SIMD_BYTES)));
  typedef Int Mask __attribute__((vector_size(STC_SIMD_BYTES)));  // all ones = true, 0 = false
  typedef int32_t Word __attribute__((vector_size(kLanes * 4)));  // one 32-bit word a lane

  static Real broadcast(T x) { return Real{} + x; }

  static Real load(const T* p) {
    Real r;
    std::memcpy(&r, p, sizeof r);
    return r;
  }
  static void store(T* p, Real r) { std::memcpy(p, &r, sizeof r); }

  // The first `count` lanes (all, when count >= kLanes); lanes past them load as 0.
  static Real load(const T* p, int64_t count) {
    if (count >= kLanes) return load(p);
    Real r{};
    std::memcpy(&r, p, count * sizeof(T));
    return r;
  }
  static void store(T* p, Real r, int64_t count) {
    if (count >= kLanes)
      store(p, r);
    else
      std::memcpy(p, &r, count * sizeof(T));
  }

  // Past the caches, to a multiple of the vector's size; fence() before anyone else reads it.
  static void stream(T* p, Real r) {
#if defined(__clang__)
    __builtin_nontemporal_store(r, reinterpret_cast<Real*>(p));
#elif defined(__x86_64__) && STC_SIMD_BYTES == 16
    asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<Real*>(p)) : "x"(r));
#elif defined(__x86_64__)
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<Real*>(p)) : "v"(r));
#else
    store(p, r);
#endif
  }
  static void fence() {
#if defined(__x86_64__)
    asm volatile("sfence" ::: "memory");
#endif
  }

  static Real select(Mask mask, Real yes, Real no) { return mask ? yes : no; }

  static Real abs(Real x) {
    Mask bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits &= std::numeric_limits<Int>::max();  // all but the sign
    std::memcpy(&x, &bits, sizeof bits);
    return x;
  }

  // x within [low, high]; NaN stays NaN.
  static Real clamp(Real x, T low, T high) {
    const Real least = unknown(broadcast(low)), most = unknown(broadcast(high));
    x = most < x ? most : x;
    return least > x ? least : x;
  }

  // c[0] + c[1] x + c[2] x^2 + ... by Estrin's scheme: what depends on each other is a quarter of Horner's.
  template <size_t Count>
  static Real polynomial(const T (&c)[Count], Real x) {
    Real of_pairs[(Count + 1) / 2];
    for (size_t k = 0; k < Count / 2; ++k) of_pairs[k] = c[2 * k + 1] * x + c[2 * k];
    if (Count % 2) of_pairs[Count / 2] = broadcast(c[Count - 1]);
    return combined(of_pairs, x * x);
  }

  // Lane i of the result is lane from[i] of a and b put together.
  static Real shuffle(Real a, Real b, Mask from) {
#if defined(__clang__)
    Real r;
    for (int i = 0; i < kLanes; ++i) r[i] = from[i] < kLanes ? a[from[i]] : b[from[i] - kLanes];
    return r;
#else
    return __builtin_shuffle(a, b, from);
#endif
  }

  static T sum(Real r) {
    T total = 0;
    for (int i = 0; i < kLanes; ++i) total += r[i];
    return total;
  }

  static Word narrow(Mask mask) { return __builtin_convertvector(mask, Word); }

  // e^x within 2 ulp for finite results. Saturates instead of overflowing (largest result about 2^127 or 2^1023), which
  // is all a sigmoid needs; NaN stays NaN.
  static Real exp(Real x) {
    constexpr bool kSingle = sizeof(T) == 4;
    constexpr T kMax = kSingle ? T(88.0) : T(709.0), kMin = kSingle ? T(-87.0) : T(-708.0);
    x = clamp(x, kMin, kMax);
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^(mantissa bits) rounds to the nearest integer
    constexpr T kRound = kSingle ? T(12582912.0) : T(6755399441055744.0);
    constexpr T kLog2e = T(1.4426950408889634074);
    constexpr T kLn2Hi = kSingle ? T(0.693359375) : T(6.93145751953125e-1);
    constexpr T kLn2Lo = kSingle ? T(-2.12194440054690583e-4) : T(1.42860682030941723212e-6);
    const Real shifted = x * kLog2e + kRound;
    const Real n = shifted - kRound;
    const Real r = (x - n * kLn2Hi) - n * kLn2Lo;
    // Taylor: the remainder r^(d+1)/(d+1)! is below the rounding error
    constexpr T kInverseFactorial[] = {
        1.0,        1.0,         1.0 / 2,      1.0 / 6,       1.0 / 24,       1.0 / 120,       1.0 / 720,
        1.0 / 5040, 1.0 / 40320, 1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
    // The first comes last, so that hardly more than its rounding shows.
    constexpr int kTerms = kSingle ? 7 : 13;
    T terms[kTerms];
    for (int k = 0; k < kTerms; ++k) terms[k] = kInverseFactorial[k + 1];
    const Real p = polynomial(terms, r) * r + T(1);
    constexpr int kMantissa = kSingle ? 23 : 52;
    constexpr Int kBias = kSingle ? 127 : 1023;
    Mask bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    constexpr Int kRoundBits = kSingle ? Int(0x4B400000) : Int(0x4338000000000000);
    bits = (bits - kRoundBits + kBias) << kMantissa;
    Real scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
  }

  static Real reciprocal(Real x) { return T(1) / x; }

  // Only soft spikes need the next two, so they may be slow.
  static Real atan(Real x) {
    for (int i = 0; i < kLanes; ++i) x[i] = std::atan(x[i]);
    return x;
  }
  static Real erf(Real x) {
    for (int i = 0; i < kLanes; ++i) x[i] = std::erf(x[i]);
    return x;
  }

 private:
  template <size_t Count>
  static Real combined(const Real (&terms)[Count], Real x) {
    if constexpr (Count == 1) {
      return terms[0];
    } else {
      Real of_pairs[(Count + 1) / 2];
      for (size_t k = 0; k < Count / 2; ++k) of_pairs[k] = terms[2 * k + 1] * x + terms[2 * k];
      if (Count % 2) of_pairs[Count / 2] = terms[Count - 1];
      return combined(of_pairs, x * x);
    }
  }

  // GCC makes one instruction of a minimum or maximum, but not where it knows one of the numbers.
  static Real unknown(Real x) {
#if defined(__x86_64__) && STC_SIMD_BYTES == 64
    asm("" : "+v"(x));
#elif defined(__x86_64__)
    asm("" : "+x"(x));
#endif
    return x;
  }
};

}  // namespace stc::STC_SIMD_NAMESPACE

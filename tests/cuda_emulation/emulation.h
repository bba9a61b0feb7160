// The CUDA device language for a host compiler, as far as the kernels speak it; included by gpu.cuh. The types
// (float4, dim3, __half, cudaError_t, ...) are the toolkit's own.
//
// What is missing on purpose: atomics on floats, whose result depends on the order of the threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::emu::thread_index())
#define blockIdx (::emu::block_index())
#define blockDim (::emu::block_size())
#define gridDim (::emu::grid_size())
constexpr int warpSize = 32;

// ---- shared memory and launch: see gpu.cuh -----------------------------------------------------------------------

// The address is aligned as the type demands and no better.
#define GPU_SHARED(Type, name, ...)                                                                            \
  struct name##_array {                                                                                        \
    Type name __VA_ARGS__;                                                                                     \
  };                                                                                                           \
  static const char name##_key = 0;                                                                            \
  auto& name = static_cast<name##_array*>(                                                                     \
                   ::emu::shared_array(&name##_key, sizeof(name##_array::name), alignof(name##_array), #name)) \
                   ->name

namespace gpu {

// Each array is an allocation of its own, so that running from one into the next is an error.
class SharedCarver {
 public:
  SharedCarver() { emu::carve_begin(); }

  template <class T>
  T* take(size_t count) {
    return static_cast<T*>(emu::carve(count * sizeof(T), alignof(T)));
  }
};

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;

  EMU_UNCHECKED static void run(const void* call) {
    const Call& c = *static_cast<const Call*>(call);
    c.unpack(std::index_sequence_for<Parameters...>{});
  }

  template <size_t... I>
  EMU_UNCHECKED void unpack(std::index_sequence<I...>) const {
    kernel(std::get<I>(arguments)...);
  }
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, cudaStream_t,
                   Arguments&&... arguments) {
  const Call<Parameters...> call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  return emu::run(grid, block, dynamic_shared_bytes, Call<Parameters...>::run, &call, sizeof call);
}

inline const char* error_text(cudaError_t error) { return emu::error_text(error); }

inline cudaError_t shared_memory_per_block(int* bytes) {
  *bytes = emu::shared_memory_per_block();
  return cudaSuccess;
}

}  // namespace gpu

// ---- barriers ----------------------------------------------------------------------------------------------------

inline void __syncthreads(EMU_HERE) { emu::block_barrier(0, 0, where); }
inline int __syncthreads_count(int predicate, EMU_HERE) {
  return emu::block_barrier_reduce(emu::Reduction::kCount, predicate, where);
}
inline int __syncthreads_or(int predicate, EMU_HERE) {
  return emu::block_barrier_reduce(emu::Reduction::kAny, predicate, where);
}
inline int __syncthreads_and(int predicate, EMU_HERE) {
  return emu::block_barrier_reduce(emu::Reduction::kAll, predicate, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_HERE) { emu::sync_warp(mask, where); }

// Fences order nothing here that a barrier does not order: blocks run one after another.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- warp collectives --------------------------------------------------------------------------------------------

namespace emu {

template <class T>
struct ShuffleLane {
  T in, out;
  int source;  // -1: keeps its own value
  bool missing;
};

template <class T>
EMU_UNCHECKED void shuffle_warp(void* const* lanes, unsigned active) {
  for (int lane = 0; lane < 32; ++lane) {
    if (!(active >> lane & 1)) continue;
    auto& to = *static_cast<ShuffleLane<T>*>(lanes[lane]);
    to.missing = to.source >= 0 && !(active >> to.source & 1);
    if (to.missing) continue;
    to.out = to.source < 0 ? to.in : static_cast<const ShuffleLane<T>*>(lanes[to.source])->in;
  }
}

template <class T>
inline T shuffle(unsigned mask, T value, int source, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "shuffles move 4 or 8 bytes");
  ShuffleLane<T> lane{value, value, source, false};
  warp_collective(Op::kShuffle, mask, &lane, shuffle_warp<T>, where);
  if (lane.missing) fail(where, "shuffle from lane %d, which is not in the mask %08x or has exited", source, mask);
  return lane.out;
}

struct VoteLane {
  unsigned in, out;
};

// The lanes whose predicate holds.
EMU_UNCHECKED inline void ballot_warp(void* const* lanes, unsigned active) {
  unsigned ballot = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (active >> lane & 1) ballot |= unsigned(static_cast<const VoteLane*>(lanes[lane])->in != 0) << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (active >> lane & 1) static_cast<VoteLane*>(lanes[lane])->out = ballot;
}

template <class T, class Operation>
struct ReduceLane {
  T in, out;

  EMU_UNCHECKED static void combine(void* const* lanes, unsigned active) {
    const int first = __builtin_ctz(active);
    T total = static_cast<const ReduceLane*>(lanes[first])->in;
    for (int lane = first + 1; lane < 32; ++lane)
      if (active >> lane & 1) total = Operation{}(total, static_cast<const ReduceLane*>(lanes[lane])->in);
    for (int lane = first; lane < 32; ++lane)
      if (active >> lane & 1) static_cast<ReduceLane*>(lanes[lane])->out = total;
  }
};

template <class T, class Operation>
inline T reduce(unsigned mask, T value, Operation, Where where) {
  ReduceLane<T, Operation> lane{value, value};
  warp_collective(Op::kReduce, mask, &lane, ReduceLane<T, Operation>::combine, where);
  return lane.out;
}

}  // namespace emu

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_HERE) {
  return emu::shuffle(mask, value, (emu::lane_index() & ~(width - 1)) + (source & (width - 1)), where);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
  const int source = emu::lane_index() - int(delta);
  return emu::shuffle(mask, value, source >= (emu::lane_index() & ~(width - 1)) ? source : -1, where);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
  const int source = emu::lane_index() + int(delta);
  return emu::shuffle(mask, value, source <= (emu::lane_index() | (width - 1)) ? source : -1, where);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_HERE) {
  const int source = emu::lane_index() ^ bits;
  return emu::shuffle(mask, value, source <= (emu::lane_index() | (width - 1)) ? source : -1, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
  emu::VoteLane lane{unsigned(predicate), 0};
  emu::warp_collective(emu::Op::kVote, mask, &lane, emu::ballot_warp, where);
  return lane.out;
}
inline int __any_sync(unsigned mask, int predicate, EMU_HERE) { return __ballot_sync(mask, predicate, where) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMU_HERE) { return __ballot_sync(mask, !predicate, where) == 0; }

#define EMU_REDUCE(name, T, expression)                                 \
  inline T name(unsigned mask, T value, EMU_HERE) {                     \
    struct Operation {                                                  \
      EMU_UNCHECKED T operator()(T a, T b) const { return expression; } \
    };                                                                  \
    return emu::reduce(mask, value, Operation{}, where);                \
  }
EMU_REDUCE(__reduce_add_sync, unsigned, a + b)
EMU_REDUCE(__reduce_add_sync, int, int(unsigned(a) + unsigned(b)))
EMU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
EMU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
EMU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
EMU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
EMU_REDUCE(__reduce_and_sync, unsigned, a& b)
EMU_REDUCE(__reduce_or_sync, unsigned, a | b)
EMU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef EMU_REDUCE

// ---- atomics, relaxed as in CUDA ---------------------------------------------------------------------------------

#define EMU_ATOMIC(T)                                                                                        \
  __forceinline__ T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }              \
  __forceinline__ T atomicSub(T* p, T v) { return __atomic_fetch_sub(p, v, __ATOMIC_RELAXED); }              \
  __forceinline__ T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_RELAXED); }              \
  __forceinline__ T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_RELAXED); }                \
  __forceinline__ T atomicXor(T* p, T v) { return __atomic_fetch_xor(p, v, __ATOMIC_RELAXED); }              \
  __forceinline__ T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }            \
  __forceinline__ T atomicCAS(T* p, T expected, T v) {                                                       \
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                 \
    return expected;                                                                                         \
  }                                                                                                          \
  __forceinline__ T atomicMax(T* p, T v) {                                                                   \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                            \
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { \
    }                                                                                                        \
    return old;                                                                                              \
  }                                                                                                          \
  __forceinline__ T atomicMin(T* p, T v) {                                                                   \
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);                                                            \
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) { \
    }                                                                                                        \
    return old;                                                                                              \
  }
EMU_ATOMIC(int)
EMU_ATOMIC(unsigned)
EMU_ATOMIC(unsigned long long)
#undef EMU_ATOMIC

// ---- loads and stores with a hint --------------------------------------------------------------------------------

template <class T>
__forceinline__ T __ldg(const T* p, EMU_HERE) {
  emu::expect_read_only(p, sizeof(T), where);
  return *p;
}
template <class T>
__forceinline__ T __ldcg(const T* p) {
  return *p;
}
template <class T>
__forceinline__ T __ldcs(const T* p) {
  return *p;
}
template <class T>
__forceinline__ void __stcg(T* p, T value) {
  *p = value;
}
template <class T>
__forceinline__ void __stcs(T* p, T value) {
  *p = value;
}

// ---- bits --------------------------------------------------------------------------------------------------------

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t(y) << 32 | x;
  unsigned result = 0;
  // three bits each; the fourth, which in prmt replicates the sign, does not count here
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// ---- mathematics -------------------------------------------------------------------------------------------------
//
// The fast functions keep the hardware's largest error, the rounding of the scaled argument, and its special cases;
// the last bits of its approximations (2 ulp) are not modelled.

inline float __expf(float x) noexcept { return exp2f(x * 1.4426950408889634f); }
inline float __logf(float x) noexcept { return log2f(x) * 0.6931471805599453f; }
inline float __fdividef(float a, float b) {
  if (std::fabs(b) > 0x1p126f && std::fabs(b) < INFINITY) return a / b * 0.0f;  // CUDA: 0, or NaN for an infinite a
  return a / b;
}
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
using std::max;
using std::min;

// ---- helpers of the twins in mma.cuh -----------------------------------------------------------------------------

namespace emu {

struct HalfBits {
  EMU_UNCHECKED static float value(uint32_t bits) {
    // Exponent and mantissa moved to their places in a float, then the bias set right, which also covers subnormals.
    const uint32_t magnitude = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
    if ((bits & 0x7c00u) == 0x7c00u) return __builtin_bit_cast(float, magnitude | 0x7f800000u | sign);
    const float scaled = __builtin_bit_cast(float, magnitude) * 0x1p112f;
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, scaled) | sign);
  }
};

struct Bfloat16Bits {
  EMU_UNCHECKED static float value(uint32_t bits) { return __builtin_bit_cast(float, bits << 16); }
};

template <int Bytes>
struct alignas(Bytes) Chunk {
  uint32_t words[Bytes / 4];

  static Chunk nan() {
    Chunk chunk;
    for (uint32_t& word : chunk.words) word = 0xffffffffu;
    return chunk;
  }
};

template <int Bytes>
__forceinline__ void land_as(const Copy& copy) {
  Chunk<Bytes> value;
  __builtin_memcpy(&value, copy.data, Bytes);
  *static_cast<Chunk<Bytes>*>(copy.target) = value;
}

__forceinline__ void land(const Copy& copy) {
  if (copy.bytes == 16) land_as<16>(copy);
  if (copy.bytes == 8) land_as<8>(copy);
  if (copy.bytes == 4) land_as<4>(copy);
}

}  // namespace emu

// Unit tests of the device language, to be run under emulation and on a GPU: what the emulation has a twin of gives the
// same here and there. The expected values are in tests/test_emulation.py.
#include "selftest.cuh"

namespace {

constexpr unsigned kAll = 0xffffffffu;

// ---- mma, ldmatrix -----------------------------------------------------------------------------------------------

struct Half {
  static __device__ void mma(float (&d)[4], const uint4& a, const uint2& b) { gpu::mma_m16n8k16_f16(d, a, b); }
};
struct Bfloat16 {
  static __device__ void mma(float (&d)[4], const uint4& a, const uint2& b) { gpu::mma_m16n8k16_bf16(d, a, b); }
};

__device__ uint32_t pair(const uint16_t* p) { return p[0] | uint32_t(p[1]) << 16; }

// d [16][8] += a [16][16] b [16][8], with b given column by column.
template <class Type>
__global__ void mma(const uint16_t* a, const uint16_t* b_columns, float* d) {
  const int group = threadIdx.x / 4, quad = threadIdx.x % 4;
  const uint16_t* upper = a + group * 16 + 2 * quad;
  const uint16_t* lower = upper + 8 * 16;
  const uint16_t* column = b_columns + group * 16 + 2 * quad;
  const uint4 fragment_a = make_uint4(pair(upper), pair(lower), pair(upper + 8), pair(lower + 8));
  const uint2 fragment_b = make_uint2(pair(column), pair(column + 8));
  float* out[2] = {d + group * 8 + 2 * quad, d + (group + 8) * 8 + 2 * quad};
  float sums[4] = {out[0][0], out[0][1], out[1][0], out[1][1]};
  Type::mma(sums, fragment_a, fragment_b);
  for (int e = 0; e < 4; ++e) out[e / 2][e % 2] = sums[e];
}

// The same by ldmatrix from shared memory: a as it is, b [16][8] row by row and transposed on the way.
__global__ void mma_by_ldmatrix(const uint16_t* a, const uint16_t* b_rows, float* d) {
  GPU_SHARED(alignas(16) uint16_t, shared_a, [16][24]);  // 48 bytes a row: aligned, and without bank conflicts
  GPU_SHARED(alignas(16) uint16_t, shared_b, [16][8]);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) shared_a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) shared_b[i / 8][i % 8] = b_rows[i];
  __syncwarp();
  const uint4 fragment_a = gpu::ldmatrix_x4(&shared_a[lane % 16][lane / 16 * 8]);
  const uint4 fragment_b = gpu::ldmatrix_x4_transposed(&shared_b[lane % 16][0]);  // matrices 2 and 3 go unused
  float sums[4] = {0.f, 0.f, 0.f, 0.f};
  gpu::mma_m16n8k16_f16(sums, fragment_a, make_uint2(fragment_b.x, fragment_b.y));
  for (int e = 0; e < 4; ++e) d[(lane / 4 + e / 2 * 8) * 8 + lane % 4 * 2 + e % 2] = sums[e];
}

// ---- cp.async ----------------------------------------------------------------------------------------------------

// Four times 32 words: copied by 16, 8 and 4 bytes, and by 16 of which `valid` are.
__global__ void copies(const uint32_t* in, uint32_t* out, int valid) {
  GPU_SHARED(alignas(16) uint32_t, staged, [4][32]);
  const int lane = threadIdx.x;
  if (lane < 8) gpu::cp_async<16>(&staged[0][lane * 4], in + lane * 4);
  if (lane < 16) gpu::cp_async<8>(&staged[1][lane * 2], in + lane * 2);
  gpu::cp_async_commit();
  gpu::cp_async<4>(&staged[2][lane], in + lane);
  gpu::cp_async_commit();
  if (lane < 8) gpu::cp_async_zero_fill<16>(&staged[3][lane * 4], in + lane * 4, valid);
  gpu::cp_async_commit();
  gpu::cp_async_wait<2>();
  __syncthreads();
  for (int row = 0; row < 2; ++row) out[row * 32 + lane] = staged[row][lane];
  gpu::cp_async_wait<0>();
  __syncthreads();
  for (int row = 2; row < 4; ++row) out[row * 32 + lane] = staged[row][lane];
}

// ---- warps and blocks --------------------------------------------------------------------------------------------

// out [18][64]
__global__ void collectives(int* out) {
  const int thread = threadIdx.x, lane = thread % 32, value = thread * 3 + 1;
  int k = 0;
  const auto put = [&](int result) { out[k++ * 64 + thread] = result; };
  put(__shfl_sync(kAll, value, 5));
  put(__shfl_sync(kAll, value, lane + 9, 8));
  put(__shfl_up_sync(kAll, value, 3));
  put(__shfl_up_sync(kAll, value, 1, 4));
  put(__shfl_down_sync(kAll, value, 7));
  put(__shfl_down_sync(kAll, value, 2, 16));
  put(__shfl_xor_sync(kAll, value, 17));
  put(__shfl_xor_sync(kAll, value, 1, 2));
  put(int(__shfl_xor_sync(kAll, double(value), 4)));
  put(int(__ballot_sync(kAll, lane % 3 == 0)));
  put(__any_sync(kAll, lane == 31) * 2 + __any_sync(kAll, 0));
  put(__all_sync(kAll, lane >= 0) * 2 + __all_sync(kAll, lane > 0));
  if (lane < 20) {
    put(int(__ballot_sync(0xfffffu, lane % 2)));  // a part of the warp
  } else {
    put(int(__ballot_sync(0xfff00000u, lane % 2)));
  }
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  put(int(__reduce_add_sync(kAll, unsigned(value))));
  put(__reduce_max_sync(kAll, value));
#else
  k += 2;
#endif
  put(__syncthreads_count(thread < 40));
  put(__syncthreads_or(thread == 63) * 2 + (__syncthreads_or(0) != 0));
  put(__syncthreads_and(thread >= 0) * 2 + (__syncthreads_and(thread > 0) != 0));
}

// Warp 0 hands something to warp 1 and warp 1 to warp 2, each by a barrier of two warps; warp 3 takes no part.
__global__ void relay(int* out, int threads_at_barrier) {
  GPU_SHARED(int, first, [32]);
  GPU_SHARED(int, second, [32]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp == 0) {
    first[lane] = lane * 7;
    gpu::named_barrier(1, 64);
  } else if (warp == 1) {
    gpu::named_barrier(1, 64);
    second[lane] = first[31 - lane] + 1;
    gpu::named_barrier(2, threads_at_barrier);
  } else if (warp == 2) {
    gpu::named_barrier(2, threads_at_barrier);
    out[lane] = second[lane] + first[lane];  // what warp 0 wrote is in order too, by way of warp 1
  }
}

__global__ void atomics(int* out) {
  const int thread = int(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out[0], thread);
  atomicMax(&out[1], thread);
  atomicMin(&out[2], -thread);
  atomicOr(&out[3], 1 << (thread % 32));
  if (atomicCAS(&out[4], 0, 1) == 0) atomicExch(&out[5], 77);
}

// ---- functions ---------------------------------------------------------------------------------------------------

constexpr int kBitResults = 9;

// in [n][3], out [n][kBitResults]
__global__ void bits(const uint32_t* in, uint32_t* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const uint32_t x = in[3 * i], y = in[3 * i + 1], z = in[3 * i + 2];
  uint32_t* results = out + i * kBitResults;
  results[0] = uint32_t(__popc(x));
  results[1] = uint32_t(__clz(int(x)));
  results[2] = uint32_t(__ffs(int(x)));
  results[3] = __brev(x);
  results[4] = __byte_perm(x, y, z & 0xffffu);
  results[5] = __funnelshift_l(x, y, z & 31);
  results[6] = __funnelshift_r(x, y, z & 31);
  results[7] = __float_as_uint(__uint_as_float(x));
  results[8] = uint32_t(__popcll((unsigned long long)x << 32 | y));
}

constexpr int kMathResults = 6;

// in [n], out [n][kMathResults]
__global__ void functions(const float* in, float* out, int n) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const float x = in[i];
  float* results = out + i * kMathResults;
  results[0] = __expf(x);
  results[1] = __fdividef(1.f, x);
  results[2] = rsqrtf(fabsf(x));
  results[3] = __frcp_rn(x);
  results[4] = __logf(fabsf(x));
  results[5] = __half2float(__float2half_rn(x)) + __bfloat162float(__float2bfloat16_rn(x));
}

dim3 blocks_for(int n) { return dim3(unsigned(n + 127) / 128); }

}  // namespace

SELFTEST_EXPORT int twin_mma(int bfloat16, const uint16_t* a, const uint16_t* b_columns, float* d) {
  return finished(gpu::launch(bfloat16 ? mma<Bfloat16> : mma<Half>, dim3(1), dim3(32), 0, nullptr, a, b_columns, d));
}
SELFTEST_EXPORT int twin_mma_by_ldmatrix(const uint16_t* a, const uint16_t* b_rows, float* d) {
  return finished(gpu::launch(mma_by_ldmatrix, dim3(1), dim3(32), 0, nullptr, a, b_rows, d));
}
SELFTEST_EXPORT int twin_copies(const uint32_t* in, uint32_t* out, int valid) {
  return finished(gpu::launch(copies, dim3(1), dim3(32), 0, nullptr, in, out, valid));
}
SELFTEST_EXPORT int twin_collectives(int* out) {
  return finished(gpu::launch(collectives, dim3(1), dim3(64), 0, nullptr, out));
}
SELFTEST_EXPORT int twin_relay(int* out, int threads_at_barrier) {
  return finished(gpu::launch(relay, dim3(1), dim3(128), 0, nullptr, out, threads_at_barrier));
}
SELFTEST_EXPORT int twin_atomics(int* out) {
  return finished(gpu::launch(atomics, dim3(4), dim3(64), 0, nullptr, out));
}
SELFTEST_EXPORT int twin_bits(const uint32_t* in, uint32_t* out, int n) {
  return finished(gpu::launch(bits, blocks_for(n), dim3(128), 0, nullptr, in, out, n));
}
SELFTEST_EXPORT int twin_functions(const float* in, float* out, int n) {
  return finished(gpu::launch(functions, blocks_for(n), dim3(128), 0, nullptr, in, out, n));
}

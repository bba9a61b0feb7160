// Small kernels of the kinds that the project has, right as they stand, each with faults that can be switched on: the
// emulation has to find every one. tests/test_emulation.py says which mode finds what.
#include <cstring>

#include "selftest.cuh"

namespace {

// In a macro, so that fault_number() can read it as text.
#define SELFTEST_FAULTS                                                                                               \
  none, global_out_of_bounds, far_out_of_bounds, null_pointer, input_written, output_read_first, misaligned_vector,   \
      wide_out_of_bounds, memcpy_out_of_bounds, local_array_out_of_bounds, blocks_race, atomic_and_plain,             \
      ldg_of_written, no_barrier_after_write, no_barrier_before_reuse, static_shared_out_of_bounds, shared_unwritten, \
      divergent_barrier, divergent_shuffle, lane_outside_mask, halo_off_by_one, too_little_shared, shared_misaligned, \
      no_copy_wait, no_barrier_after_wait, no_barrier_before_copy, copy_never_waited_for, copy_misaligned,            \
      copy_source_changes, fragment_swapped, mma_by_part_of_warp, no_syncwarp, bytes_race, stack_overflow

enum class Fault : int { SELFTEST_FAULTS };

constexpr unsigned kAll = 0xffffffffu;

// ---- global memory -----------------------------------------------------------------------------------------------

// c = a + b, four at a time; total = the number of blocks, counted by atomics.
__global__ void add(const float* a, const float* b, float* c, int* total, int n, Fault fault) {
  const int i = 4 * int(blockIdx.x * blockDim.x + threadIdx.x);
  const bool first = blockIdx.x == 0 && threadIdx.x == 0;
  if (i < n) {
    const int shift = fault == Fault::misaligned_vector ? 1 : 0;
    const float4 x = *reinterpret_cast<const float4*>(a + i - (i ? shift : 0));
    float4 y = *reinterpret_cast<const float4*>(b + i);
    if (fault == Fault::global_out_of_bounds && i + 4 == n) y.w = b[n];
    if (fault == Fault::far_out_of_bounds && first) y.w = b[-(ptrdiff_t(1) << 40)];
    if (fault == Fault::null_pointer && first) y.w = *static_cast<const float*>(nullptr);
    if (fault == Fault::output_read_first && first) y.x += c[1];
    if (fault == Fault::input_written && first) const_cast<float*>(a)[0] = x.x;
    if (fault == Fault::local_array_out_of_bounds) {
      float values[4] = {y.x, y.y, y.z, y.w};
      for (int k = 0; k <= (n & 1 ? 0 : 4); ++k) y.x += 0.f * values[k];
    }
    *reinterpret_cast<float4*>(c + i) = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
    if (fault == Fault::ldg_of_written && first) c[0] = __ldg(c);
  }
  if (threadIdx.x == 0) {
    if (fault == Fault::blocks_race) {
      total[0] += 1;
    } else {
      atomicAdd(total, 1);
    }
    if (fault == Fault::atomic_and_plain && blockIdx.x == 1) total[0] = 4;
  }
}

struct Record {  // wider than any register
  float values[12];
};

// out[i] = in[n - 1 - i], by assignment and by memcpy.
__global__ void reverse(const Record* in, Record* by_assignment, Record* by_memcpy, int n, Fault fault) {
  const int i = int(threadIdx.x);
  const int from = n - 1 - i;
  by_assignment[i] = in[fault == Fault::wide_out_of_bounds ? from + 1 : from];
  memcpy(&by_memcpy[i], &in[fault == Fault::memcpy_out_of_bounds ? from + 1 : from], sizeof(Record));
}

// ---- static shared memory, shuffles ------------------------------------------------------------------------------

constexpr int kWarps = 4;

__device__ float block_sum(float value, float* sums, Fault fault) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (fault == Fault::divergent_shuffle && lane < 16) value += __shfl_xor_sync(kAll, value, 16);
  if (fault == Fault::lane_outside_mask) value += 0.f * __shfl_xor_sync(0x0000ffffu, value, 1);
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  if (lane == 0 && !(fault == Fault::shared_unwritten && warp == 2))
    sums[fault == Fault::static_shared_out_of_bounds ? warp + 1 : warp] = value;
  if (fault == Fault::divergent_barrier && warp == 1) {
    __syncthreads();
  } else if (fault != Fault::no_barrier_after_write) {
    __syncthreads();
  }
  float total = 0.f;
  for (int w = 0; w < kWarps; ++w) total += sums[w];
  if (fault != Fault::no_barrier_before_reuse) __syncthreads();
  return total;
}

// out [2]: the mean and the sum of squares around it of the block's 128 values.
__global__ void moments(const float* x, float* out, Fault fault) {
  GPU_SHARED(float, sums, [kWarps]);
  const float value = x[blockIdx.x * blockDim.x + threadIdx.x];
  const float mean = block_sum(value, sums, fault) / (kWarps * 32);
  const float squares = block_sum((value - mean) * (value - mean), sums, fault);
  if (threadIdx.x == 0) {
    out[2 * blockIdx.x] = mean;
    out[2 * blockIdx.x + 1] = squares;
  }
}

// ---- dynamic shared memory ---------------------------------------------------------------------------------------

constexpr int kTile = 64;

// y[i] = w0 x[i - 1] + w1 x[i] + w2 x[i + 1], with zeros outside; a block a tile.
__global__ void stencil(const float* x, const float* weights, float* y, int n, Fault fault) {
  gpu::SharedCarver carver;
  float* tile = carver.take<float>(kTile + 2);
  float* w = carver.take<float>(3);
  const int thread = threadIdx.x, first = int(blockIdx.x) * kTile;
  for (int i = thread; i < kTile + 2; i += int(blockDim.x)) {
    const int at = first + i - 1;
    tile[i] = at >= 0 && at < n ? x[at] : 0.f;
  }
  if (thread < 3) w[thread] = weights[thread];
  __syncthreads();
  const int shift = fault == Fault::halo_off_by_one ? 1 : 0;
  if (fault == Fault::shared_misaligned) w[0] = reinterpret_cast<const float2*>(tile + 1)->x;
  const float sum = w[0] * tile[thread + shift] + w[1] * tile[thread + 1 + shift] + w[2] * tile[thread + 2 + shift];
  if (first + thread < n) y[first + thread] = sum;
}

// ---- cp.async ----------------------------------------------------------------------------------------------------

constexpr int kChunk = 128;

// out[i] = sum over t of x[t][127 - i]: rows come in one ahead, and threads read what others have fetched.
__global__ void pipeline(float* x, float* out, int steps, Fault fault) {
  GPU_SHARED(alignas(16) float, rows, [2][kChunk]);
  const int thread = threadIdx.x;
  const int shift = fault == Fault::copy_misaligned ? 1 : 0;
  const auto fetch = [&](int t) {
    if (t < steps && thread < kChunk / 4)
      gpu::cp_async<16>(&rows[t % 2][thread * 4], x + t * kChunk + thread * 4 + shift);
    gpu::cp_async_commit();
  };
  float sum = 0.f;
  fetch(0);
  for (int t = 0; t < steps; ++t) {
    fetch(t + 1);
    if (fault == Fault::copy_source_changes && t == 0) x[kChunk + thread] = 1.f;
    if (fault == Fault::no_copy_wait) {
      gpu::cp_async_wait<2>();
    } else {
      gpu::cp_async_wait<1>();
    }
    if (fault != Fault::no_barrier_after_wait) __syncthreads();
    sum += rows[t % 2][kChunk - 1 - thread];
    if (fault != Fault::no_barrier_before_copy) __syncthreads();
  }
  out[thread] = sum;
  if (fault == Fault::copy_never_waited_for && thread == 0) gpu::cp_async<4>(&rows[0][0], x);
}

// ---- tensor cores ------------------------------------------------------------------------------------------------

// d [16][8 warps] = a [16][16] b, with b [8 warps][16] column by column; a warp eight columns. By way of shared memory.
__global__ void product(const uint16_t* a, const uint16_t* b_columns, float* d, Fault fault) {
  GPU_SHARED(alignas(16) uint16_t, shared_a, [16][16]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
  for (int i = threadIdx.x; i < 256; i += int(blockDim.x)) shared_a[i / 16][i % 16] = a[i];
  __syncthreads();
  const auto pair = [](const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); };
  uint4 fragment = make_uint4(pair(&shared_a[group][2 * quad]), pair(&shared_a[group + 8][2 * quad]),
                              pair(&shared_a[group][2 * quad + 8]), pair(&shared_a[group + 8][2 * quad + 8]));
  if (fault == Fault::fragment_swapped) fragment = make_uint4(fragment.x, fragment.z, fragment.y, fragment.w);
  const uint16_t* column = b_columns + (warp * 8 + group) * 16 + 2 * quad;
  float sums[4] = {0.f, 0.f, 0.f, 0.f};
  if (fault != Fault::mma_by_part_of_warp || lane != 9)
    gpu::mma_m16n8k16_f16(sums, fragment, make_uint2(pair(column), pair(column + 8)));
  for (int e = 0; e < 4; ++e) d[(group + e / 2 * 8) * 8 * kWarps + warp * 8 + 2 * quad + e % 2] = sums[e];
}

// ---- bits --------------------------------------------------------------------------------------------------------

// words [n / 32]: bit i of word k is x[32 k + i] >= 0. Also bytes [n / 32]: the lowest of each word's, reversed within
// the warp's row of four by way of shared memory.
__global__ void pack(const float* x, uint32_t* words, uint8_t* bytes, Fault fault) {
  GPU_SHARED(uint8_t, lowest, [kWarps][4]);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = int(blockIdx.x) * kWarps + warp;
  for (int k = 0; k < 4; ++k) {
    const uint32_t word = __ballot_sync(kAll, x[(row * 4 + k) * 32 + lane] >= 0.f);
    if (lane == 0) words[row * 4 + k] = word;
    if (lane == k) lowest[warp][k] = uint8_t(word);
  }
  if (fault != Fault::no_syncwarp) __syncwarp();
  if (lane < 4) bytes[row * 4 + lane] = lowest[fault == Fault::bytes_race ? (warp + 1) % kWarps : warp][3 - lane];
}

#if !defined(__CUDACC__)
// nvcc would warn of it.
__global__ void recurse(float* out, int depth, Fault fault) {
  volatile float frame[64];
  frame[depth % 64] = out[0];
  if (fault == Fault::stack_overflow || depth < 3) recurse(out, depth + 1, fault);
  if (depth == 0) out[1 + threadIdx.x] = frame[0];
}
#endif

}  // namespace

#define SELFTEST_TEXT(...) #__VA_ARGS__
#define SELFTEST_TEXT_OF(list) SELFTEST_TEXT(list)

SELFTEST_EXPORT int fault_number(const char* name) {
  const char* const text = SELFTEST_TEXT_OF((SELFTEST_FAULTS));
  const size_t length = strlen(name);
  int number = 0;
  for (const char* at = text; *at; ++at) {
    number += *at == ',';
    const bool starts = *at == '(' || *at == ' ';
    if (starts && strncmp(at + 1, name, length) == 0 && strchr(",)", at[1 + length])) return number;
  }
  return -1;
}

SELFTEST_EXPORT int run_add(const float* a, const float* b, float* c, int* total, int n, int fault) {
  return finished(
      gpu::launch(add, dim3(unsigned(n + 255) / 256), dim3(64), 0, nullptr, a, b, c, total, n, Fault(fault)));
}
SELFTEST_EXPORT int run_reverse(const void* in, void* by_assignment, void* by_memcpy, int n, int fault) {
  return finished(gpu::launch(reverse, dim3(1), dim3(unsigned(n)), 0, nullptr, static_cast<const Record*>(in),
                              static_cast<Record*>(by_assignment), static_cast<Record*>(by_memcpy), n, Fault(fault)));
}
SELFTEST_EXPORT int run_moments(const float* x, float* out, int blocks, int fault) {
  return finished(gpu::launch(moments, dim3(unsigned(blocks)), dim3(kWarps * 32), 0, nullptr, x, out, Fault(fault)));
}
SELFTEST_EXPORT int run_stencil(const float* x, const float* weights, float* y, int n, int fault) {
  size_t bytes = gpu::shared_bytes<float>(kTile + 2) + gpu::shared_bytes<float>(3);
  if (Fault(fault) == Fault::too_little_shared) bytes -= 16;
  return finished(gpu::launch(stencil, dim3(unsigned(n + kTile - 1) / kTile), dim3(kTile), bytes, nullptr, x, weights,
                              y, n, Fault(fault)));
}
SELFTEST_EXPORT int run_pipeline(float* x, float* out, int steps, int fault) {
  return finished(gpu::launch(pipeline, dim3(1), dim3(kChunk), 0, nullptr, x, out, steps, Fault(fault)));
}
SELFTEST_EXPORT int run_product(const uint16_t* a, const uint16_t* b_columns, float* d, int fault) {
  return finished(gpu::launch(product, dim3(1), dim3(kWarps * 32), 0, nullptr, a, b_columns, d, Fault(fault)));
}
SELFTEST_EXPORT int run_pack(const float* x, uint32_t* words, uint8_t* bytes, int blocks, int fault) {
  return finished(
      gpu::launch(pack, dim3(unsigned(blocks)), dim3(kWarps * 32), 0, nullptr, x, words, bytes, Fault(fault)));
}
#if !defined(__CUDACC__)
SELFTEST_EXPORT int run_recurse(float* out, int fault) {
  return finished(gpu::launch(recurse, dim3(1), dim3(32), 0, nullptr, out, 0, Fault(fault)));
}
#endif
SELFTEST_EXPORT int launch_shape(unsigned blocks, unsigned threads, size_t shared_bytes) {
  return finished(gpu::launch(stencil, dim3(blocks), dim3(threads), shared_bytes, nullptr,
                              static_cast<const float*>(nullptr), static_cast<const float*>(nullptr),
                              static_cast<float*>(nullptr), 0, Fault::none));
}
SELFTEST_EXPORT const char* last_text(int error) { return gpu::error_text(cudaError_t(error)); }

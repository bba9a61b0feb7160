// PTX instructions for the kernels, and all that is written in PTX, each beside the twin that stands for it under
// emulation. A twin takes and leaves each lane's registers exactly as the PTX ISA lays them out, so a fragment that is
// wrong on a GPU is wrong here. What a twin cannot show is a slip in the text of the instruction itself: the unit tests
// of the twins (tests/cuda_emulation/selftest/twins.cu) have to run on a GPU once.
#pragma once

#if !defined(GPU_SHARED)
#error "include gpu.cuh"
#endif

namespace gpu {

#if defined(__CUDACC__)

// For architectures that lack an instruction; no launcher should get this far.
template <class... Operands>
__device__ __forceinline__ void unsupported(Operands&&...) {
  __trap();
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

#endif

// ---- no instruction: what was derived from x before is computed again, instead of being kept in registers ----------

#if defined(__CUDACC__)

__device__ __forceinline__ void forget(int& x) { asm volatile("" : "+r"(x)); }

#else

__device__ __forceinline__ void forget(int&) {}

#endif

// ---- mma.sync.m16n8k16: d += a * b -------------------------------------------------------------------------------
//
// A is 16 x 16 row by row, B 16 x 8 column by column, both in a 16-bit type; D is 16 x 8 in fp32. With
// group = lane / 4 and quad = lane % 4, low half of a register first:
//
//   a.x = A[group    ][2 quad, 2 quad + 1]      a.z = A[group    ][2 quad + 8, 2 quad + 9]
//   a.y = A[group + 8][2 quad, 2 quad + 1]      a.w = A[group + 8][2 quad + 8, 2 quad + 9]
//   b.x = B[2 quad, 2 quad + 1][group]          b.y = B[2 quad + 8, 2 quad + 9][group]
//   d[0], d[1] = D[group][2 quad, 2 quad + 1]   d[2], d[3] = D[group + 8][2 quad, 2 quad + 1]

#if defined(__CUDACC__)

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint4& a, const uint2& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
#else
  unsupported(d, a, b);
#endif
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint4& a, const uint2& b) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
#else
  unsupported(d, a, b);
#endif
}

#else

// What one lane brings to the product; its accumulators are changed in place.
struct MmaLane {
  uint32_t a[4];
  uint32_t b[2];
  float d[4];
};

// The product of a whole warp, done once for all its lanes. A Decode turns the 16 bits of an operand into a float.
template <class Decode>
EMU_UNCHECKED void mma_m16n8k16_warp(void* const* lanes, unsigned) {
  float a[16][16], b[16][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const MmaLane& in = *static_cast<const MmaLane*>(lanes[lane]);
    const int group = lane >> 2, quad = lane & 3;
    for (int r = 0; r < 4; ++r) {
      float* pair = &a[group + 8 * (r & 1)][2 * quad + 8 * (r >> 1)];
      pair[0] = Decode::value(in.a[r] & 0xffffu);
      pair[1] = Decode::value(in.a[r] >> 16);
    }
    for (int r = 0; r < 2; ++r) {
      b[2 * quad + 8 * r][group] = Decode::value(in.b[r] & 0xffffu);
      b[2 * quad + 8 * r + 1][group] = Decode::value(in.b[r] >> 16);
    }
    for (int e = 0; e < 4; ++e) d[group + 8 * (e >> 1)][2 * quad + (e & 1)] = in.d[e];
  }
  emu::multiply_accumulate(d, a, b);
  for (int lane = 0; lane < 32; ++lane) {
    MmaLane& out = *static_cast<MmaLane*>(lanes[lane]);
    for (int e = 0; e < 4; ++e) out.d[e] = d[(lane >> 2) + 8 * (e >> 1)][2 * (lane & 3) + (e & 1)];
  }
}

template <class Decode>
inline void mma_m16n8k16(float (&d)[4], const uint4& a, const uint2& b, emu::Where where) {
  // A copy, so that the caller's accumulators need no address and can stay in registers.
  MmaLane lane{{a.x, a.y, a.z, a.w}, {b.x, b.y}, {d[0], d[1], d[2], d[3]}};
  emu::whole_warp(emu::Op::kMma, &lane, mma_m16n8k16_warp<Decode>, where);
  for (int e = 0; e < 4; ++e) d[e] = lane.d[e];
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint4& a, const uint2& b, EMU_HERE) {
  mma_m16n8k16<emu::HalfBits>(d, a, b, where);
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint4& a, const uint2& b, EMU_HERE) {
  mma_m16n8k16<emu::Bfloat16Bits>(d, a, b, where);
}

#endif

// ---- ldmatrix.x4: four 8 x 8 matrices of 16-bit values from shared memory ----------------------------------------
//
// Lanes 8 m .. 8 m + 7 name the rows of matrix m, 16 aligned bytes each. With group = lane / 4 and quad = lane % 4,
// register m gets matrix m's [group][2 quad, 2 quad + 1]; transposed, its [2 quad, 2 quad + 1][group].

#if defined(__CUDACC__)

__device__ __forceinline__ uint4 ldmatrix_x4(const void* row) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(shared_address(row))
               : "memory");
  return r;
}

__device__ __forceinline__ uint4 ldmatrix_x4_transposed(const void* row) {
  uint4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
               : "r"(shared_address(row))
               : "memory");
  return r;
}

#else

struct LdmatrixLane {
  uint16_t row[8];
  uint32_t out[4];
};

template <bool kTransposed>
EMU_UNCHECKED void ldmatrix_x4_warp(void* const* lanes, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    LdmatrixLane& out = *static_cast<LdmatrixLane*>(lanes[lane]);
    const int group = lane >> 2, quad = lane & 3;
    for (int m = 0; m < 4; ++m) {
      uint32_t pair[2];
      for (int k = 0; k < 2; ++k) {
        const int row = kTransposed ? 2 * quad + k : group, column = kTransposed ? group : 2 * quad + k;
        pair[k] = static_cast<const LdmatrixLane*>(lanes[8 * m + row])->row[column];
      }
      out.out[m] = pair[0] | pair[1] << 16;
    }
  }
}

template <bool kTransposed>
inline uint4 ldmatrix(const void* row, emu::Where where) {
  emu::expect_shared("ldmatrix", row, 16, where);
  const uint4 values = *static_cast<const uint4*>(row);
  LdmatrixLane lane;
  __builtin_memcpy(lane.row, &values, sizeof lane.row);
  emu::whole_warp(emu::Op::kLdmatrix, &lane, ldmatrix_x4_warp<kTransposed>, where);
  return make_uint4(lane.out[0], lane.out[1], lane.out[2], lane.out[3]);
}

__device__ __forceinline__ uint4 ldmatrix_x4(const void* row, EMU_HERE) { return ldmatrix<false>(row, where); }

__device__ __forceinline__ uint4 ldmatrix_x4_transposed(const void* row, EMU_HERE) {
  return ldmatrix<true>(row, where);
}

#endif

// ---- cp.async: global to shared memory, past the registers -------------------------------------------------------
//
// cp_async copies Bytes (4, 8 or 16, both addresses aligned to it) and cp_async_zero_fill only the first `valid` of
// them, with zeros behind; at valid = 0 the source is not read. cp_async_wait<N>() waits for all of this thread's
// copies but those of its N latest groups; other threads see them after a barrier.

#if defined(__CUDACC__)

template <int Bytes>
__device__ __forceinline__ void cp_async_zero_fill(void* target, const void* source, int valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(target)), "l"(source),
                 "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(shared_address(target)), "l"(source),
                 "n"(Bytes), "r"(valid)
                 : "memory");
  }
#else
  unsupported(target, source, valid);
#endif
}

template <int Bytes>
__device__ __forceinline__ void cp_async(void* target, const void* source) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(shared_address(target)), "l"(source) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;\n" ::"r"(shared_address(target)), "l"(source), "n"(Bytes)
                 : "memory");
  }
#else
  unsupported(target, source);
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  unsupported();
#endif
}

template <int Groups>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Groups) : "memory");
#else
  unsupported();
#endif
}

#else

// The copy lands as late as the program allows, in cp_async_wait; until then its target holds NaN.
template <int Bytes>
__device__ __forceinline__ void cp_async_zero_fill(void* target, const void* source, int valid, EMU_HERE) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async moves 4, 8 or 16 bytes");
  using Chunk = emu::Chunk<Bytes>;
  emu::expect_shared("cp.async", target, Bytes, where);
  emu::expect_aligned("cp.async", source, Bytes, where);
  if (valid < 0 || valid > Bytes) emu::fail(where, "cp.async of %d bytes with %d valid ones", Bytes, valid);
  emu::Copy copy{target, source, Bytes, valid, where, {}};
  if (valid == Bytes) {
    const Chunk value = *static_cast<const Chunk*>(source);
    __builtin_memcpy(copy.data, &value, Bytes);
  } else {
    for (int i = 0; i < valid; ++i) copy.data[i] = static_cast<const unsigned char*>(source)[i];
  }
  *static_cast<Chunk*>(target) = Chunk::nan();
  emu::copy_issue(copy);
}

template <int Bytes>
__device__ __forceinline__ void cp_async(void* target, const void* source, EMU_HERE) {
  cp_async_zero_fill<Bytes>(target, source, Bytes, where);
}

__device__ __forceinline__ void cp_async_commit() { emu::copy_commit(); }

template <int Groups>
__device__ __forceinline__ void cp_async_wait(EMU_HERE) {
  for (size_t count = emu::copies_to_land(Groups, where); count > 0; --count) emu::land(emu::next_to_land());
}

#endif

// ---- bar.sync: a barrier of some warps of the block --------------------------------------------------------------
//
// Barrier 0 is the one of __syncthreads; threads = 32 x the number of warps that take part.

#if defined(__CUDACC__)

__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

#else

__device__ __forceinline__ void named_barrier(int id, int threads, EMU_HERE) { emu::block_barrier(id, threads, where); }

#endif

}  // namespace gpu

// Every PTX instruction that the kernels use, for one thread of one warp: conversions, tensor cores, copies, memory
// order. Clusters and mbarriers are in ptx_cluster.h, included at the end.
//
// No other file of csrc/cuda may contain inline assembly: a plain C++ compiler gets tests/simt/ptx.h in place of this
// header, which runs the same kernels on the CPU. "Collective": all 32 lanes of the warp call together, from the same
// place.
#pragma once

#include <cstdint>

#if !defined(__CUDACC__)
#include "simt/ptx.h"
#else

// Declares `name`, the block's dynamic shared memory, aligned to 128 bytes. Kernels use no other shared memory.
#define FASTLSTM_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

#define FASTLSTM_PTX __device__ __forceinline__

namespace fastlstm {
namespace ptx {

// Hides x from the optimiser, so that values derived from it are made again after a loop, and not kept in registers
// through it.
FASTLSTM_PTX int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// -- Conversions. 16-bit floats are passed as their bits. Rounding to nearest, ties to even; NaN stays NaN; too large
// becomes infinity.

FASTLSTM_PTX float bf16_to_float(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }

FASTLSTM_PTX uint16_t float_to_bf16(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

FASTLSTM_PTX float f16_to_float(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

FASTLSTM_PTX uint16_t float_to_f16(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

// The float32 bits of x rounded to 10 bits of mantissa, ties away from zero, as mma_tf32 needs them.
FASTLSTM_PTX uint32_t float_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// -- Tensor cores: d (16 x 8, float32) += a (16 x K, row-major) b (K x 8, column-major). Collective.
//
// With group = lane / 4 and pair = lane % 4, a lane holds
//   d: rows group (d[0], d[1]) and group + 8 (d[2], d[3]), columns 2 pair and 2 pair + 1
//   a, 16-bit, two columns a word: a[0] row group, a[1] row group + 8, columns 2 pair and next; a[2], a[3] the same + 8
//   b, 16-bit, two rows a word: b[0] rows 2 pair and next, b[1] the same + 8; column group
//   a, tf32: a[0] row group, a[1] row group + 8, column pair; a[2], a[3] the same in column pair + 4
//   b, tf32: b[0] row pair, b[1] row pair + 4; column group

#define FASTLSTM_MMA(shape_and_types)                                                                                 \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

FASTLSTM_PTX void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {  // K = 16
  FASTLSTM_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}

FASTLSTM_PTX void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {  // K = 16
  FASTLSTM_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}

FASTLSTM_PTX void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {  // K = 8
  FASTLSTM_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}

#undef FASTLSTM_MMA

// -- Shared memory to fragments: 8 x 8 matrices of 16 bits. Collective.
//
// Lane 8 m + r gives the address of row r of matrix m: 16 bytes of shared memory, aligned to 16. r[m] then holds, of
// matrix m, row lane / 4, columns 2 (lane % 4) and the next. With x2, the addresses of lanes 16 to 31 are not used.

// The offset in the window of shared memory; also the cluster address of this block's own memory.
FASTLSTM_PTX uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

FASTLSTM_PTX void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

FASTLSTM_PTX void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// -- Asynchronous copies, global to shared memory, past L1.

// Starts a copy of 16 bytes; both addresses aligned to 16. Not valid: 16 zeros, and `global` is not read.
FASTLSTM_PTX void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Groups this thread's copies since the last commit.
FASTLSTM_PTX void cp_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until at most kPending of this thread's latest groups are unfinished. Other threads see the bytes after a
// barrier.
template <int kPending>
FASTLSTM_PTX void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}

// Prefetches a line of global memory into the second-level cache. The address must be inside an array.
FASTLSTM_PTX void prefetch_l2(const void* global) { asm volatile("prefetch.global.L2 [%0];" : : "l"(global)); }

// Waits until done() is true. With FASTLSTM_TRAP_HANGS, a wait of about two seconds ends the kernel with an error, so
// that a missing signal costs a test its process and not the time of the whole run.
template <class Done>
FASTLSTM_PTX void wait_until(const Done& done) {
#ifdef FASTLSTM_TRAP_HANGS
  if (done()) return;
  constexpr long long kMostClocks = 3'600'000'000;
  const long long began = clock64();
  while (!done()) {
    if (clock64() - began > kMostClocks) __trap();
  }
#else
  while (!done()) {}
#endif
}

// -- Memory order between the blocks of a grid. Pointers are to global memory.

FASTLSTM_PTX int ld_acquire_gpu(const int* p) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

// Visible to all, ordered with nothing else: for words whose value says whether they have arrived.
FASTLSTM_PTX int ld_relaxed_gpu(const int* p) {
  int value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

FASTLSTM_PTX void st_relaxed_gpu(int* p, int value) {
  asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" : : "l"(p), "r"(value) : "memory");
}

// After a barrier of the block this releases what all of its threads wrote, not only this thread's writes: causality
// order goes from their writes through the barrier to this instruction, and on to whoever acquires (PTX ISA, "Causality
// Order"). A counter that several blocks add to passes on each one's release, since every red reads and writes it.
FASTLSTM_PTX void red_release_gpu_add(int* p, int value) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" : : "l"(p), "r"(value) : "memory");
}

// Sleeps for about this long, in a polling loop.
FASTLSTM_PTX void nanosleep(unsigned nanoseconds) { asm volatile("nanosleep.u32 %0;" : : "r"(nanoseconds)); }

}  // namespace ptx
}  // namespace fastlstm

#include "cuda/device/ptx_cluster.h"

#undef FASTLSTM_PTX

#endif

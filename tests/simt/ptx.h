// Stands in for csrc/cuda/device/ptx.h where the kernels are compiled for the CPU. The same functions, each with one
// argument more: the place of the call, for reports.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "collectives.h"
#include "formats.h"
#include "grid.h"
#include "shared_memory.h"

#define FASTLSTM_SHARED(name) unsigned char* const name = ::simt::self().block->shared.data()

namespace fastlstm {
namespace ptx {

constexpr bool kHasClusters = true;

using simt::here;
using simt::Place;

inline int opaque(int x) { return x; }

using simt::bf16_to_float;
using simt::f16_to_float;
using simt::float_to_bf16;
using simt::float_to_f16;
using simt::float_to_tf32;

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = here());
void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = here());
void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = here());

void ldmatrix_x4(uint32_t (&r)[4], const void* row, Place place = here());
void ldmatrix_x2(uint32_t (&r)[2], const void* row, Place place = here());

void cp_async_16(void* shared, const void* global, bool valid, Place place = here());
void cp_async_commit();
void cp_async_wait_for(int pending);

void prefetch_l2(const void* global, Place place = here());

template <int kPending>
void cp_async_wait() {
  static_assert(kPending >= 0, "a number of groups");
  cp_async_wait_for(kPending);
}

template <class Done>
void wait_until(const Done& done) {
  while (!done()) {}
}

int ld_acquire_gpu(const int* p, Place place = here());
int ld_relaxed_gpu(const int* p, Place place = here());
void st_relaxed_gpu(int* p, int value);
void red_release_gpu_add(int* p, int value);
inline void fence_acquire_shared_cluster() { simt::preempt(); }
inline void nanosleep(unsigned) { simt::preempt(); }

inline uint32_t cluster_rank() { return simt::self().block->rank; }
inline uint32_t cluster_size() { return simt::self().block->cluster->size; }
inline void cluster_arrive_release(Place place = here()) { simt::cluster_barrier_arrive(place); }
inline void cluster_wait_acquire(Place place = here()) { simt::cluster_barrier_wait(place); }

uint32_t shared_address(const void* shared, Place place = here());
uint32_t map_to_rank(uint32_t shared_addr, uint32_t rank, Place place = here());
uint32_t ld_cluster_32(uint32_t addr, Place place = here());
void st_cluster_32(uint32_t addr, uint32_t v, Place place = here());
void st_async_32(uint32_t addr, uint32_t v, uint32_t mbarrier_addr, Place place = here());
void st_async_64(uint32_t addr, uint32_t v0, uint32_t v1, uint32_t mbarrier_addr, Place place = here());

void mbarrier_init(uint64_t* mbarrier, uint32_t count, Place place = here());
inline void mbarrier_fence_init() { simt::preempt(); }
void mbarrier_arrive(uint64_t* mbarrier, Place place = here());
void mbarrier_arrive_expect_tx(uint64_t* mbarrier, uint32_t bytes, Place place = here());
void mbarrier_arrive_remote(uint32_t mbarrier_addr, Place place = here());
bool mbarrier_try_wait(uint64_t* mbarrier, uint32_t parity, Place place = here());
void mbarrier_wait(uint64_t* mbarrier, uint32_t parity, Place place = here());

}  // namespace ptx
}  // namespace fastlstm

// The part of ptx.h that needs sm_90: thread block clusters, distributed shared memory, mbarriers. Included by ptx.h
// only.
//
// For an older architecture these functions compile to a trap, so that kernels for all architectures may be in one
// source; the host does not launch such kernels.
#pragma once

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FASTLSTM_ASM_SM90(...) asm volatile(__VA_ARGS__)
#else
#define FASTLSTM_ASM_SM90(...) __trap()
#endif

// Before PTX 8.6 there is no fence for shared memory alone; waits acquire instead.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1208
#define FASTLSTM_WAIT_ORDER "relaxed"
#define FASTLSTM_WAIT_FENCE "fence.acquire.sync_restrict::shared::cluster.cluster;"
#else
#define FASTLSTM_WAIT_ORDER "acquire"
#define FASTLSTM_WAIT_FENCE ""
#endif

namespace fastlstm {
namespace ptx {

// Whether the architecture being compiled for has what follows; without it, kernels that use it need not be compiled.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// -- The cluster's barrier: all threads of all its blocks arrive, then wait. Collective.

FASTLSTM_PTX uint32_t cluster_rank() {
  uint32_t rank = 0;
  FASTLSTM_ASM_SM90("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

FASTLSTM_PTX uint32_t cluster_size() {
  uint32_t size = 0;
  FASTLSTM_ASM_SM90("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

FASTLSTM_PTX void cluster_arrive_release() {
  FASTLSTM_ASM_SM90("barrier.cluster.arrive.release.aligned;" : : : "memory");
}

FASTLSTM_PTX void cluster_wait_acquire() { FASTLSTM_ASM_SM90("barrier.cluster.wait.acquire.aligned;" : : : "memory"); }

// -- Shared memory of another block of the cluster, by 32-bit addresses: shared_address gives one of this block,
// map_to_rank that of the same place in the block of another rank. The other block must have started, and must not end
// before the access.

FASTLSTM_PTX uint32_t map_to_rank(uint32_t shared_addr, uint32_t rank) {
  uint32_t mapped = 0;
  FASTLSTM_ASM_SM90("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared_addr), "r"(rank));
  return mapped;
}

FASTLSTM_PTX uint32_t ld_cluster_32(uint32_t addr) {
  uint32_t value = 0;
  FASTLSTM_ASM_SM90("ld.shared::cluster.b32 %0, [%1];" : "=r"(value) : "r"(addr) : "memory");
  return value;
}

FASTLSTM_PTX void st_cluster_32(uint32_t addr, uint32_t v) {
  FASTLSTM_ASM_SM90("st.shared::cluster.b32 [%0], %1;" : : "r"(addr), "r"(v) : "memory");
}

// Stores that complete later and then count 4 or 8 bytes on the mbarrier, which is in the same block as addr.
// Whoever waits for that phase sees the bytes. Addresses are aligned to the size.

FASTLSTM_PTX void st_async_32(uint32_t addr, uint32_t v, uint32_t mbarrier_addr) {
  FASTLSTM_ASM_SM90("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" : : "r"(addr), "r"(v),
                    "r"(mbarrier_addr) : "memory");
}

FASTLSTM_PTX void st_async_64(uint32_t addr, uint32_t v0, uint32_t v1, uint32_t mbarrier_addr) {
  FASTLSTM_ASM_SM90("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" : : "r"(addr),
                    "r"(v0), "r"(v1), "r"(mbarrier_addr) : "memory");
}

// -- mbarriers: 8 bytes of shared memory. A phase ends when `count` arrivals and as many bytes as expected have come;
// the next begins at once. The parity tells phases apart: 0 for the first, then 1, 0, ...

FASTLSTM_PTX void mbarrier_init(uint64_t* mbarrier, uint32_t count) {
  FASTLSTM_ASM_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" : : "r"(shared_address(mbarrier)), "r"(count) : "memory");
}

// Called by the thread that initialised the mbarriers, before the barrier after which other blocks use them.
FASTLSTM_PTX void mbarrier_fence_init() { FASTLSTM_ASM_SM90("fence.mbarrier_init.release.cluster;" : : : "memory"); }

FASTLSTM_PTX void mbarrier_arrive(uint64_t* mbarrier) {
  FASTLSTM_ASM_SM90(
      "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" : : "r"(shared_address(mbarrier)) : "memory");
}

// Arrives, and makes this phase also wait for `bytes` bytes of st_async.
FASTLSTM_PTX void mbarrier_arrive_expect_tx(uint64_t* mbarrier, uint32_t bytes) {
  FASTLSTM_ASM_SM90(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" : : "r"(shared_address(mbarrier)),
      "r"(bytes) : "memory");
}

// On an mbarrier of any block of the cluster.
FASTLSTM_PTX void mbarrier_arrive_remote(uint32_t mbarrier_addr) {
  FASTLSTM_ASM_SM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" : : "r"(mbarrier_addr) : "memory");
}

// Whether the phase with this parity is over; may sleep a little before it returns false. It orders nothing:
// fence_acquire_shared_cluster must come before what was sent is read.
FASTLSTM_PTX bool mbarrier_try_wait(uint64_t* mbarrier, uint32_t parity) {
  uint32_t done = 1;
  FASTLSTM_ASM_SM90(
      "{\n"
      ".reg .pred over;\n"
      "mbarrier.try_wait.parity." FASTLSTM_WAIT_ORDER
      ".cluster.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n"
      "}" : "=r"(done) : "r"(shared_address(mbarrier)),
      "r"(parity) : "memory");
  return done != 0;
}

// Orders what this thread has seen by relaxed operations before what follows, for shared memory of the cluster only.
FASTLSTM_PTX void fence_acquire_shared_cluster() { FASTLSTM_ASM_SM90(FASTLSTM_WAIT_FENCE : : : "memory"); }

// Waits for the end of a phase. After it, the bytes that st_async sent in it can be read, and what the senders did
// before in the cluster's shared memory is done. Global memory is not ordered.
//
// A complete-tx of st.async is a release at cluster scope, and the wait reads what it wrote. A relaxed read followed by
// fence.acquire is an acquire pattern, as an acquiring read is (PTX ISA, "Release and Acquire Patterns"), so the two
// synchronize; sync_restrict limits the order to shared::cluster objects, and the exchanges use no others. An acquiring
// wait would invalidate the first-level cache (CCTL.IVALL) after every phase, for the sake of global memory.
FASTLSTM_PTX void mbarrier_wait(uint64_t* mbarrier, uint32_t parity) {
  wait_until([&] { return mbarrier_try_wait(mbarrier, parity); });
  fence_acquire_shared_cluster();
}

}  // namespace ptx
}  // namespace fastlstm

#undef FASTLSTM_ASM_SM90
#undef FASTLSTM_WAIT_ORDER
#undef FASTLSTM_WAIT_FENCE

// Calls every function of csrc/cuda/device/ptx.h: that this compiles shows that each instruction is one that ptxas
// takes, and that the emulation has the same signatures. Not meant to be run.
#include <cuda_runtime.h>

#include "cuda/device/ptx.h"

namespace ptx = fastlstm::ptx;

__global__ void every_ptx_kernel(float* floats, uint32_t* words, int* flag, const void* global) {
  FASTLSTM_SHARED(shared);
  const int lane = threadIdx.x % 32;
  const float x = floats[lane];

  words[0] = ptx::float_to_bf16(x) + ptx::float_to_f16(x);
  floats[1] = ptx::bf16_to_float(static_cast<uint16_t>(words[2])) + ptx::f16_to_float(static_cast<uint16_t>(words[3]));
  words[4] = ptx::float_to_tf32(x);
  words[5] = static_cast<uint32_t>(ptx::opaque(lane));

  ptx::cp_async_16(shared + 16 * lane, global, lane != 3);
  ptx::cp_async_commit();
  ptx::cp_async_wait<1>();
  ptx::cp_async_wait<0>();
  ptx::prefetch_l2(global);
  __syncthreads();

  uint32_t a[4], b[2];
  float d[4] = {};
  ptx::ldmatrix_x4(a, shared + 16 * lane);
  ptx::ldmatrix_x2(b, shared + 16 * lane);
  ptx::mma_bf16(d, a, b);
  ptx::mma_f16(d, a, b);
  ptx::mma_tf32(d, a, b);
  floats[lane] = d[0] + d[1] + d[2] + d[3];

  ptx::red_release_gpu_add(flag, 1);
  while (ptx::ld_acquire_gpu(flag) < 2) ptx::nanosleep(20);
  ptx::wait_until([&] { return ptx::ld_acquire_gpu(flag) > 2; });
  ptx::st_relaxed_gpu(flag + 1, ptx::ld_relaxed_gpu(flag));

  uint64_t* mbarrier = reinterpret_cast<uint64_t*>(shared);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(mbarrier, 3);
    ptx::mbarrier_fence_init();
  }
  ptx::cluster_arrive_release();
  ptx::cluster_wait_acquire();
  const uint32_t peer = (ptx::cluster_rank() + 1) % ptx::cluster_size();
  const uint32_t there = ptx::map_to_rank(ptx::shared_address(shared), peer);
  ptx::st_cluster_32(there + 16, 1);
  words[5] = ptx::ld_cluster_32(there + 16);
  ptx::mbarrier_arrive_expect_tx(mbarrier, 12);
  ptx::st_async_32(there + 64, 1, there);
  ptx::st_async_64(there + 72, 1, 2, there);
  ptx::mbarrier_arrive(mbarrier);
  ptx::mbarrier_arrive_remote(there);
  if (!ptx::mbarrier_try_wait(mbarrier, 0)) ptx::mbarrier_wait(mbarrier, 0);
  ptx::fence_acquire_shared_cluster();
}

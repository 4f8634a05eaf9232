// One mistake each, that the harness has to name. Two blocks of 64 threads in a cluster, 256 bytes of shared memory
// each.
#include <cuda_runtime.h>

#include "kernels.h"
#include "launch.h"
#include "cuda/device/ptx.h"

namespace {

namespace ptx = fastlstm::ptx;

__device__ void cluster_barrier() {
  ptx::cluster_arrive_release();
  ptx::cluster_wait_acquire();
}

__global__ void misuse_kernel(int which, int* memory) {
  FASTLSTM_SHARED(shared);
  const int thread = threadIdx.x, lane = thread % 32;
  auto* mbarrier = reinterpret_cast<uint64_t*>(shared);
  const uint32_t peer = ptx::cluster_rank() ^ 1;
  uint32_t words[4] = {};
  float d[4] = {};
  const uint32_t b[2] = {};
  switch (which) {
    case 0:  // a thread has ended
      if (thread == 7) return;
      __syncthreads();
      break;
    case 1:  // two barriers for one
      if (thread < 32) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case 2:  // half a warp
      if (lane < 16) ptx::mma_bf16(d, words, b);
      break;
    case 3:  // two instructions for one
      if (lane < 16) {
        ptx::mma_bf16(d, words, b);
      } else {
        ptx::mma_f16(d, words, b);
      }
      break;
    case 4:  // not aligned to 16
      ptx::ldmatrix_x4(words, shared + 8);
      break;
    case 5:  // past the end
      ptx::ldmatrix_x4(words, shared + 256);
      break;
    case 6:  // past the end
      ptx::cp_async_16(shared + 248, memory, true);
      break;
    case 7:  // not aligned to 16
      ptx::cp_async_16(shared, memory + 1, true);
      break;
    case 8:  // no such lane in the mask
      if (lane < 8) memory[0] = __shfl_sync(0x000000ffu, lane, 9);
      break;
    case 9:  // a lane outside of its own mask
      __syncwarp(0x0000ffffu);
      break;
    case 10:  // past the end of the neighbour's
      ptx::st_cluster_32(ptx::map_to_rank(ptx::shared_address(shared), peer) + 256, 1);
      cluster_barrier();
      break;
    case 11:  // no such rank
      ptx::map_to_rank(ptx::shared_address(shared), 2);
      break;
    case 12:  // no such mbarrier
      ptx::mbarrier_arrive(mbarrier);
      break;
    case 13:  // one arrival too many in a phase
      if (thread == 0) {
        ptx::mbarrier_init(mbarrier, 1);
        ptx::mbarrier_arrive_expect_tx(mbarrier, 4);
        ptx::mbarrier_arrive(mbarrier);
      }
      break;
    case 14:  // data over an mbarrier
      if (thread == 0) {
        ptx::mbarrier_init(mbarrier, 1);
        memory[0] = static_cast<int>(*mbarrier = 5);
        ptx::mbarrier_arrive(mbarrier);
      }
      break;
    case 15:  // an mbarrier elsewhere than the data
      if (thread == 0) ptx::mbarrier_init(mbarrier, 1);
      cluster_barrier();
      ptx::st_async_32(ptx::map_to_rank(ptx::shared_address(shared + 64), peer), 1, ptx::shared_address(mbarrier));
      break;
    case 16:  // no arrival before
      ptx::cluster_wait_acquire();
      break;
    case 17:  // the neighbour has ended, or will have
      if (ptx::cluster_rank() == 0) return;
      while (ptx::ld_cluster_32(ptx::map_to_rank(ptx::shared_address(shared), peer)) != 1) {
        ptx::nanosleep(1);
        __syncwarp();
      }
      break;
    case 18:  // the flag is never raised
      while (atomicAdd(memory, 0) == 0) {}
      break;
    case 19:  // a store to a block that ends
      if (thread == 0 && peer == 1) {
        ptx::st_async_32(ptx::map_to_rank(ptx::shared_address(shared + 64), peer), 1,
                         ptx::map_to_rank(ptx::shared_address(mbarrier), peer));
      }
      break;
    case 20:  // many places are polled, in turn
      for (int i = 0; ptx::ld_acquire_gpu(memory + i % 64) == 0; ++i) {}
      break;
    case 21:  // 8 bytes come where 4 were expected
    case 22:  // none come
      if (thread == 0) {
        const uint32_t own = ptx::map_to_rank(ptx::shared_address(shared + 64), ptx::cluster_rank());
        ptx::mbarrier_init(mbarrier, 1);
        ptx::mbarrier_arrive_expect_tx(mbarrier, 4);
        if (which == 22) break;
        ptx::st_async_64(own, 1, 1, ptx::map_to_rank(ptx::shared_address(mbarrier), ptx::cluster_rank()));
        while (ptx::ld_cluster_32(own) != 1) ptx::mbarrier_try_wait(mbarrier, 0);
      }
      break;
    case 23:  // a cluster of one block
      if (thread == 0) {
        const uint32_t own = ptx::shared_address(shared + 64);
        ptx::mbarrier_init(mbarrier, 1);
        ptx::mbarrier_arrive_expect_tx(mbarrier, 4);
        ptx::st_async_32(own, 1, ptx::shared_address(mbarrier));
        ptx::mbarrier_wait(mbarrier, 0);
      }
      break;
    default:
      break;
  }
}

__global__ void shape_kernel() {}

}  // namespace

cudaError_t launch_misuse(int which, int* memory, cudaStream_t stream) {
  Shape shape{2, 64, 256};
  shape.cluster = which == 23 ? 1 : 2;
  return launch(shape, stream, misuse_kernel, which, memory);
}

cudaError_t launch_shape(dim3 grid, dim3 block, dim3 cluster, int cooperative, size_t shared_bytes, size_t opt_in) {
  if (opt_in > 0) {
    const cudaError_t error =
        cudaFuncSetAttribute(shape_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(opt_in));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeCooperative;
  attributes[0].val.cooperative = cooperative;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster.x;
  attributes[1].val.clusterDim.y = cluster.y;
  attributes[1].val.clusterDim.z = cluster.z;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = attributes;
  config.numAttrs = cluster.x * cluster.y * cluster.z > 1 ? 2 : 1;
  return cudaLaunchKernelEx(&config, shape_kernel);
}

// Blocks that exchange numbers step by step: through the cluster's shared memory, and through global memory.
#include <cuda_runtime.h>

#include "kernels.h"
#include "launch.h"
#include "cuda/device/ptx.h"

namespace {

namespace ptx = fastlstm::ptx;

constexpr int kThreads = 128;

// Shared memory: the mbarriers "full" of both buffers, "empty" of both, then the buffers, 128 numbers each.
__global__ void __launch_bounds__(kThreads) ring_kernel(uint32_t* x, int steps, int broken) {
  FASTLSTM_SHARED(shared);
  auto* full = reinterpret_cast<uint64_t*>(shared);
  auto* empty = full + 2;
  auto* buffers = reinterpret_cast<uint32_t*>(shared + 128);
  const uint32_t rank = ptx::cluster_rank(), size = ptx::cluster_size();
  const uint32_t to = (rank + 1) % size, from = (rank + size - 1) % size;
  uint32_t own = x[blockIdx.x * kThreads + threadIdx.x];

  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(full + i, broken == kTooFewArrivals ? 2 : 1);
      ptx::mbarrier_init(empty + i, kThreads);
    }
    ptx::mbarrier_fence_init();
  }
  if (broken != kNoBarrierAfterLoad) {
    ptx::cluster_arrive_release();
    ptx::cluster_wait_acquire();
  }

  for (int step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    const uint32_t parity = step / 2 % 2;
    if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(full + buffer, kThreads * 4 + (broken == kTooFewBytes) * 4);
    // A phase of `empty` ends when all of the neighbour's threads have read the buffer; the first is free at once.
    if (step >= 2 && broken != kNoBufferWait) ptx::mbarrier_wait(empty + buffer, parity ^ 1);
    const uint32_t there = ptx::map_to_rank(ptx::shared_address(buffers + buffer * kThreads + threadIdx.x), to);
    ptx::st_async_32(there, own, ptx::map_to_rank(ptx::shared_address(full + buffer), to));
    ptx::mbarrier_wait(full + buffer, parity);
    own += buffers[buffer * kThreads + (kThreads - 1 - threadIdx.x)];
    ptx::mbarrier_arrive_remote(ptx::map_to_rank(ptx::shared_address(empty + buffer), from));
  }
  x[blockIdx.x * kThreads + threadIdx.x] = own;
  if (broken != kNoFinalBarrier) {
    ptx::cluster_arrive_release();
    ptx::cluster_wait_acquire();
  }
}

constexpr int kWidth = 64;

__global__ void __launch_bounds__(kWidth) grid_ring_kernel(int* x, int* arrived, int steps, int broken) {
  const int blocks = gridDim.x, block = blockIdx.x, from = (block + 1) % blocks;
  for (int step = 0; step < steps; ++step) {
    const int* in = x + step % 2 * blocks * kWidth;
    int* out = x + (step + 1) % 2 * blocks * kWidth;
    out[block * kWidth + threadIdx.x] = in[block * kWidth + threadIdx.x] + in[from * kWidth + kWidth - 1 - threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::red_release_gpu_add(arrived, 1);
      if (broken != kNoSpin) {
        while (ptx::ld_acquire_gpu(arrived) < blocks * (step + 1)) ptx::nanosleep(20);
      }
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t launch_ring(uint32_t* x, int clusters, int size, int steps, int broken, cudaStream_t stream) {
  Shape shape{static_cast<unsigned>(clusters * size), kThreads, 128 + 2 * kThreads * 4};
  shape.cluster = static_cast<unsigned>(size);
  return launch(shape, stream, ring_kernel, x, steps, broken);
}

cudaError_t launch_grid_ring(int* x, int* arrived, int blocks, int steps, int broken, cudaStream_t stream) {
  Shape shape{static_cast<unsigned>(blocks), kWidth};
  shape.cooperative = broken != kNotCoresident;
  return launch(shape, stream, grid_ring_kernel, x, arrived, steps, broken);
}

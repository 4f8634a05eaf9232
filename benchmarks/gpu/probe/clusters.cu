// How fast the blocks of a cluster give each other a step's state, and how many clusters run at once.
#include "cuda/costs.h"
#include "cuda/cluster/exchange.h"
#include "probe.h"

namespace probe {

namespace {

using fastlstm::BFloat16;
using fastlstm::cuda::Exchange;
namespace ptx = fastlstm::ptx;

constexpr int kThreads = 256, kMostBlocks = 16;

// Each thread of each block has kElements numbers for all blocks, a round; the exchange is that of the kernels.
template <int kElements>
__global__ void __launch_bounds__(kThreads) all_gather(int rounds, long long* clocks) {
  FASTLSTM_SHARED(shared);
  uint64_t* mbarriers = reinterpret_cast<uint64_t*>(shared);
  const auto state = [&](int k, int block, int element) {
    return reinterpret_cast<BFloat16*>(shared + 16) + ((k % 2 * kMostBlocks + block) * kThreads * kElements + element);
  };
  const int blocks = static_cast<int>(ptx::cluster_size()), block = static_cast<int>(ptx::cluster_rank());
  Exchange<true> exchange(mbarriers, blocks * kThreads * kElements * sizeof(BFloat16), rounds);
  BFloat16 x{static_cast<uint16_t>(threadIdx.x)};
  exchange.ready();
  const long long start = clock64();
  for (int k = 0; k <= rounds; ++k) {
    exchange.wait(k);
    __syncthreads();  // the kernels have one here, between the product's sums and the cells
    if (k == rounds) break;
    if (k > 0) x = *state(k, (block + 1) % blocks, threadIdx.x);
    for (int e = 0; e < kElements; ++e) exchange.send_to_all(k + 1, state(k + 1, block, e * kThreads + threadIdx.x), x);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
  exchange.done();
}

__global__ void __launch_bounds__(kThreads) cluster_barrier(int rounds, long long* clocks) {
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) {
    ptx::cluster_arrive_release();
    ptx::cluster_wait_acquire();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
}

__global__ void __launch_bounds__(kThreads) full_blocks(int, long long*) {}

}  // namespace

void probe_clusters() {
  if (attribute(cudaDevAttrComputeCapabilityMajor) < 9) return;
  const double step = static_cast<double>(fastlstm::cuda::costs::kClusterStep);
  double few = 0, many = 0;
  for (int blocks : {2, 4, 8, 16}) {
    Launch launch;
    launch.grid = static_cast<unsigned>(blocks);
    launch.block = kThreads;
    launch.cluster = blocks;
    launch.shared_bytes = 16 + 2 * kMostBlocks * kThreads * 2 * sizeof(BFloat16);
    char detail[80];
    std::snprintf(detail, sizeof detail, "%d blocks, 512 bytes to each", blocks);
    say("all-gather in a cluster, part of a step", detail, few = clocks_a_round(all_gather<1>, launch), "clocks", step);
    std::snprintf(detail, sizeof detail, "%d blocks, 1024 bytes to each", blocks);
    say("all-gather in a cluster, part of a step", detail, many = clocks_a_round(all_gather<2>, launch), "clocks",
        step);
    std::snprintf(detail, sizeof detail, "%d blocks", blocks);
    if (many > few) {
      say("received from the other blocks of a cluster", detail, (blocks - 1) * 512 / (many - few), "bytes a clock",
          static_cast<double>(fastlstm::cuda::costs::received_bytes_per_clock(blocks)));
    }
    say("cluster barrier", detail, clocks_a_round(cluster_barrier, launch), "clocks");
    launch.shared_bytes = static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    cudaLaunchAttribute attributes[1];
    const cudaLaunchConfig_t config = configure(full_blocks, launch, attributes);
    int resident = 0;
    check(cudaOccupancyMaxActiveClusters(&resident, full_blocks, &config), "cudaOccupancyMaxActiveClusters");
    say("clusters at once, a block to a multiprocessor", detail, resident, "clusters",
        attribute(cudaDevAttrMultiProcessorCount) / blocks);
  }
}

}  // namespace probe

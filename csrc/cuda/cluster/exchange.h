// How the blocks of a cluster exchange their parts of a step's numbers: by asynchronous stores into each other's shared
// memory, which count themselves on an mbarrier there.
//
// There are two buffers, for even and odd steps. A block writes step k + 1's numbers over step k - 1's. No thread still
// reads those: all of step k's numbers have arrived, and each thread sent its part of them only after a barrier at
// which its whole block was done with step k - 1's.
#pragma once

#include "cuda/device/numbers.h"

namespace fastlstm::cuda {

// The most blocks of a cluster on any device.
constexpr int kMostInCluster = 16;

// Neighbouring threads of a warp hold neighbouring numbers. The numbers of a group of kGroup threads make 8 bytes,
// which each of these threads gets, low address first.
template <class IO>
struct Words {
  static constexpr int kGroup = 8 / sizeof(IO);
  uint32_t low, high;

  __device__ __forceinline__ explicit Words(IO x) {
    uint32_t word;
    int lane = threadIdx.x;
    if constexpr (sizeof(IO) == 2) {
      const uint32_t other = __shfl_xor_sync(~0u, static_cast<uint32_t>(x.bits), 1);
      word = lane % 2 == 0 ? x.bits | other << 16 : other | static_cast<uint32_t>(x.bits) << 16;
      lane /= 2;
    } else {
      word = __float_as_uint(x);
    }
    const uint32_t other = __shfl_xor_sync(~0u, word, kGroup / 2);
    low = lane % 2 == 0 ? word : other;
    high = lane % 2 == 0 ? other : word;
  }
};

// Stores into the shared memory of blocks of the cluster, counted on the mbarrier at the same place there; for a block
// without a cluster, into its own.
template <bool kCluster>
struct AsyncStores {
  // All threads of the warp; x goes to this place in all blocks. `copies` groups have the same numbers and share the
  // blocks; this thread is in group number `copy`.
  template <class IO>
  static __device__ __forceinline__ void to_all(uint32_t blocks, uint64_t* mbarrier, IO* place, IO x, int copy = 0,
                                                int copies = 1) {
    if constexpr (kCluster) {
      const Words<IO> words(x);
      const int member = static_cast<int>(threadIdx.x) % Words<IO>::kGroup;
      const uint32_t to = ptx::shared_address(place - member), counts = ptx::shared_address(mbarrier);
      for (uint32_t block = copy * Words<IO>::kGroup + member; block < blocks; block += copies * Words<IO>::kGroup) {
        ptx::st_async_64(ptx::map_to_rank(to, block), words.low, words.high, ptx::map_to_rank(counts, block));
      }
    } else if (copy == 0 && blocks > 0) {
      *place = x;
    }
  }

  // Two numbers to this place in one block, aligned to 8 bytes.
  static __device__ __forceinline__ void to_one(uint32_t block, uint64_t* mbarrier, float* place, float first,
                                                float second) {
    if constexpr (kCluster) {
      ptx::st_async_64(ptx::map_to_rank(ptx::shared_address(place), block), __float_as_uint(first),
                       __float_as_uint(second), ptx::map_to_rank(ptx::shared_address(mbarrier), block));
    } else {
      place[0] = first;
      place[1] = second;
    }
  }
};

template <bool kCluster>
class Exchange {
 public:
  // All threads. `mbarriers`: two, in shared memory; `bytes`: what a block receives in a step; `count`: the number of
  // steps. Nothing may be sent before `ready`, which is a barrier.
  __device__ __forceinline__ Exchange(uint64_t* mbarriers, uint32_t bytes, int64_t count)
      : mbarriers_(mbarriers), bytes_(bytes), left_(count), blocks_(kCluster ? ptx::cluster_size() : 1) {
    if (kCluster && threadIdx.x == 0) {
      for (int k = 0; k < 2; ++k) ptx::mbarrier_init(mbarriers_ + k, 1);
      ptx::mbarrier_fence_init();
      expect(1);
      expect(0);
    }
  }

  __device__ __forceinline__ void ready() const { meet(); }

  // Waits until no block of the cluster uses another's shared memory any more.
  __device__ __forceinline__ void done() const {
    if (kCluster) meet();
  }

  // Waits until all of step k's numbers have arrived; step 0 has none, or they were stored before `ready`.
  __device__ __forceinline__ void wait(int64_t k) {
    if (k == 0) return;
    if (kCluster) {
      ptx::mbarrier_wait(mbarriers_ + k % 2, static_cast<uint32_t>((k - 1) / 2 % 2));
      if (threadIdx.x == 0) expect(static_cast<int>(k % 2));
    } else {
      __syncthreads();
    }
  }

  // All threads of the warp: sends a number for this place of step k's buffer to every block.
  template <class IO>
  __device__ __forceinline__ void send_to_all(int64_t k, IO* place, IO x) const {
    AsyncStores<kCluster>::to_all(blocks_, mbarriers_ + k % 2, place, x);
  }

  // Sends two numbers for this place of step k's buffer, aligned to 8 bytes, to one block.
  __device__ __forceinline__ void send(int64_t k, uint32_t block, float* place, float first, float second) const {
    AsyncStores<kCluster>::to_one(block, mbarriers_ + k % 2, place, first, second);
  }

 private:
  __device__ __forceinline__ void meet() const {
    if (kCluster) {
      ptx::cluster_arrive_release();
      ptx::cluster_wait_acquire();
    } else {
      __syncthreads();
    }
  }

  // One thread: expects the next state at this mbarrier, if there will be one.
  __device__ __forceinline__ void expect(int which) {
    if (left_ <= 0) return;
    --left_;
    ptx::mbarrier_arrive_expect_tx(mbarriers_ + which, bytes_);
  }

  uint64_t* mbarriers_;
  uint32_t bytes_;
  int64_t left_;
  uint32_t blocks_;
};

}  // namespace fastlstm::cuda

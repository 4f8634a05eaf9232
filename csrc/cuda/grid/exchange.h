// How the blocks of a whole grid exchange a step's state, if no cluster can hold the weights: through global memory (in
// fact the second-level cache), with a counter of the blocks that have written their part.
//
// All blocks must run at once: the launch is cooperative. There are two buffers, for even and odd steps. A block writes
// step k + 1's state over step k - 1's: all blocks have counted themselves for step k, and each had copied step k - 1's
// before.
#pragma once

#include "cuda/device/numbers.h"

namespace fastlstm::cuda {

// What the blocks of a group share in global memory; both are zero at the launch.
struct GridMemory {
  unsigned char* states;  // [groups][2][kRows][kK]
  int* counters;          // [groups], kCounterStride apart: each in a cache line of its own
  static constexpr int kCounterStride = 32;
};

// Begins to copy rows from global to shared memory, 16 bytes at a time, by all threads of the block; each of the
// shape's rows gets the same number of threads. (An index over the parts of all rows would take a division for every 16
// bytes.)
template <class Shape>
__device__ __forceinline__ void copy_rows(unsigned char* to, int to_stride, const unsigned char* from, int from_stride,
                                          int rows, int row_bytes) {
  constexpr int kToARow = Shape::kThreads / Shape::kRows;
  static_assert(kToARow * Shape::kRows == Shape::kThreads);
  const int thread = static_cast<int>(threadIdx.x), row = thread / kToARow;
  if (row >= rows) return;
  for (int byte = thread % kToARow * 16; byte < row_bytes; byte += kToARow * 16) {
    ptx::cp_async_16(to + row * to_stride + byte, from + row * from_stride + byte, true);
  }
}

template <class Shape>
class GridStates {
 public:
  using IO = typename Shape::IO;
  static constexpr int kRowBytes = Shape::kK * sizeof(IO);

  // A state has `width` numbers a row and `rows` rows. Where the shape has room for more, the rest stays as `start`
  // left it.
  __device__ __forceinline__ GridStates(unsigned char* shared, const GridMemory& memory, int64_t group, int blocks,
                                        int rows, int width)
      : state_(shared + Shape::kStatesAt),
        sent_(memory.states + group * 2 * Shape::kRows * kRowBytes),
        counter_(memory.counters + group * GridMemory::kCounterStride),
        blocks_(blocks),
        rows_(rows),
        row_bytes_(width * static_cast<int>(sizeof(IO))) {}

  // Step 0's state needs no exchange.
  __device__ __forceinline__ void start(int row, int unit, IO h) const {
    reinterpret_cast<IO*>(state_ + row * Shape::kStateStride)[unit] = h;
  }
  __device__ __forceinline__ void ready() const { __syncthreads(); }

  // Waits until step k's state has arrived in shared memory.
  __device__ __forceinline__ const unsigned char* wait(int64_t k) const {
    if (k == 0) return state_;
    if (threadIdx.x == 0) {
      ptx::wait_until([&] { return ptx::ld_acquire_gpu(counter_) >= k * blocks_; });
    }
    __syncthreads();
    const unsigned char* from = sent_ + k % 2 * Shape::kRows * kRowBytes;
    copy_rows<Shape>(state_, Shape::kStateStride, from, kRowBytes, rows_, row_bytes_);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
    return state_;
  }

  __device__ __forceinline__ void send(int64_t k, int row, int unit, IO x) const {
    reinterpret_cast<IO*>(sent_ + (k % 2 * Shape::kRows + row) * kRowBytes)[unit] = x;
  }

  // All threads of the block call this after sending their part.
  __device__ __forceinline__ void sent() const {
    __syncthreads();
    if (threadIdx.x == 0) ptx::red_release_gpu_add(counter_, 1);
  }
  __device__ __forceinline__ void done() const {}

 private:
  unsigned char* state_;
  unsigned char* sent_;
  int* counter_;
  int blocks_, rows_, row_bytes_;
};

}  // namespace fastlstm::cuda

// A product whose weights stay on the chip: loaded once into registers, what does not fit there into shared memory, and then
// multiplied with a new state at every step.
//
// Here the weights are the 16-row factor of mma.sync and the batch's rows its 8 columns: a batch of one row wastes less of it.
#pragma once

#include "operands.h"

namespace fastlstm::cuda {

// A matrix of kColumns x kK weights, and how the warps of a block share it. Each warp has kTilesM tiles of 16 of the columns (the
// results' columns; mma.sync's rows), and along K kHeldChunks chunks of 32 bytes in registers and kSharedChunks in shared memory;
// kWarpsK warps split K. A state has 8 kTilesN rows.
template <class Policy_, int kWarpsM_, int kWarpsK_, int kTilesM_, int kHeldChunks_, int kSharedChunks_, int kTilesN_>
struct StationaryShape {
  using Policy = Policy_;
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;
  static constexpr int kWarpsM = kWarpsM_, kWarpsK = kWarpsK_, kTilesM = kTilesM_, kTilesN = kTilesN_;
  static constexpr int kHeldChunks = kHeldChunks_, kSharedChunks = kSharedChunks_, kChunks = kHeldChunks_ + kSharedChunks_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsK;
  static constexpr int kColumns = 16 * kTilesM * kWarpsM;
  static constexpr int kRows = 8 * kTilesN;
  static constexpr int kChunkK = 32 / sizeof(IO), kK = kWarpsK * kChunks * kChunkK;
  // Bytes between the rows of a state in shared memory: eight of them, 16 bytes each, lie on different banks.
  static constexpr int kStateStride = kK * sizeof(IO) + 16;
  static constexpr int kStateBytes = kRows * kStateStride;
  static constexpr int kWeightBytes = 32 * kWarpsM * kWarpsK * kTilesM * kSharedChunks * 16;
  static_assert(kChunks % 2 == 0 && kHeldChunks % 2 == 0, "states are loaded two chunks at a time");
};

template <class Shape>
class StationaryProduct {
 public:
  using Policy = typename Shape::Policy;
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;

  using Sums = Acc[Shape::kTilesM][Shape::kTilesN][4];

  // All threads. weight(column, k) gives the weights, zero where there are none; shared has kWeightBytes.
  template <class Weight>
  __device__ __forceinline__ StationaryProduct(unsigned char* shared, const Weight& weight)
      : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), shared_(shared + threadIdx.x * 16) {
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int chunk = 0; chunk < Shape::kHeldChunks; ++chunk) {
        fragment(held_[m][chunk], m, chunk, weight);
        __syncwarp();  // keeps the compiler from having all loads under way at once, and spilling for it
      }
#pragma unroll 1
      for (int chunk = 0; chunk < Shape::kSharedChunks; ++chunk) {
        Fragment bits;
        fragment(bits, m, Shape::kHeldChunks + chunk, weight);
        *place(m, chunk) = bits;
      }
    }
  }

  // All threads: this thread's sums of the weights with a state [kRows][kK] in shared memory, over its warp's part of K.
  __device__ __forceinline__ void run(const unsigned char* state, Sums& sums) const {
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[m][n][k] = 0;
      }
    }
    state += lane_ % 8 * Shape::kStateStride + lane_ / 8 * 16 + warp_k() * Shape::kChunks * 32;
#pragma unroll
    for (int chunk = 0; chunk < Shape::kHeldChunks; chunk += 2) {
      multiply(sums, state + chunk * 32, [&](int m, int half) -> const Fragment& { return held_[m][chunk + half]; });
    }
#pragma unroll 1
    for (int chunk = 0; chunk < Shape::kSharedChunks; chunk += 2) {
      multiply(sums, state + (Shape::kHeldChunks + chunk) * 32,
               [&](int m, int half) -> const Fragment& { return *place(m, chunk + half); });
    }
  }

  // Calls use(column, row, first, second) with the sums of each column and pair of rows (row, row + 1) that this thread has.
  template <class Use>
  __device__ __forceinline__ void for_pairs(const Sums& sums, const Use& use) const {
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          use(column(m, lane_ / 4 + half * 8), n * 8 + lane_ % 4 * 2, sums[m][n][2 * half], sums[m][n][2 * half + 1]);
        }
      }
    }
  }

  __device__ __forceinline__ int warp_k() const { return warp_ % Shape::kWarpsK; }

 private:
  using Fragment = typename Policy::A;

  __device__ __forceinline__ int column(int m, int row) const { return (warp_ / Shape::kWarpsK * Shape::kTilesM + m) * 16 + row; }

  // Two chunks, with the weights that weight(m, 0) and weight(m, 1) give.
  template <class Weight>
  static __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* state,
                                                  const Weight& weight) {
    Fragment a[2][Shape::kTilesM];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int m = 0; m < Shape::kTilesM; ++m) a[half][m] = weight(m, half);
    }
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, state + n * 8 * Shape::kStateStride);
      Policy::round(b);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const typename Policy::B factor{{b[2 * half], b[2 * half + 1]}};
#pragma unroll
        for (int m = 0; m < Shape::kTilesM; ++m) Policy::multiply(sums[m][n], a[half][m], factor);
      }
    }
  }

  __device__ __forceinline__ Fragment* place(int m, int chunk) const {
    return reinterpret_cast<Fragment*>(shared_ + (m * Shape::kSharedChunks + chunk) * Shape::kThreads * 16);
  }

  template <class Weight>
  __device__ __forceinline__ void fragment(Fragment& to, int m, int chunk, const Weight& weight) const {
    const int first = (warp_k() * Shape::kChunks + chunk) * Shape::kChunkK;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int at = column(m, lane_ / 4 + part % 2 * 8);
      Policy::pack(to.bits[part], lane_ % 4, part / 2, [&](int k) { return weight(at, first + k); });
    }
  }

  int warp_, lane_;
  unsigned char* shared_;
  Fragment held_[Shape::kTilesM][Shape::kHeldChunks];
};

}  // namespace fastlstm::cuda

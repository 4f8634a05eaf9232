// A product whose weights stay on the chip: loaded once into registers, and into shared memory what does not fit there,
// then multiplied with a new state at every step.
//
// The weights are the 16-row factor of mma.sync, the batch's rows its 8 columns: with one row, less is wasted.
#pragma once

#include "cuda/costs.h"
#include "cuda/product/float32.h"
#include "cuda/product/operands.h"

namespace fastlstm::cuda {

// A matrix of kColumns x kK weights, and how the warps of a block share it. A warp has kTilesM tiles of 16 columns
// (columns of the result, rows of mma.sync), and along K kHeldSlabs slabs of 32 bytes in registers and kSharedSlabs in
// shared memory; kWarpsK warps split K. A state has 8 kTilesN rows.
template <class Policy_, int kWarpsM_, int kWarpsK_, int kTilesM_, int kHeldSlabs_, int kSharedSlabs_, int kTilesN_>
struct StationaryShape {
  using Policy = Policy_;
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;
  static constexpr int kWarpsM = kWarpsM_, kWarpsK = kWarpsK_, kTilesM = kTilesM_, kTilesN = kTilesN_;
  static constexpr int kHeldSlabs = kHeldSlabs_, kSharedSlabs = kSharedSlabs_, kSlabs = kHeldSlabs_ + kSharedSlabs_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsK;
  static constexpr int kColumns = 16 * kTilesM * kWarpsM;
  static constexpr int kRows = 8 * kTilesN;
  static constexpr int kPairs = kSlabs / 2, kHeldPairs = kHeldSlabs / 2, kSharedPairs = kSharedSlabs / 2;
  static constexpr int kPairK = 64 / sizeof(IO), kK = kWarpsK * kPairs * kPairK;
  static constexpr int kParts = sizeof(typename Policy::Weights) / 16;
  // Bytes between the rows of a state in shared memory: 16-byte parts of eight rows are on different banks.
  static constexpr int kStateStride = kK * sizeof(IO) + 16;
  static constexpr int kStateBytes = kRows * kStateStride;
  static constexpr int kWeightBytes = kThreads * kTilesM * kSharedPairs * kParts * 16;
  static constexpr int kLoads = kTilesM * kPairs;  // of weights, one after the other
  static constexpr int kWarpsAScheduler = (kThreads / 32 + costs::kSchedulers - 1) / costs::kSchedulers;
  // A product waits for the one before it if both add to the same sums. If a scheduler has too few tiles to alternate
  // between, each tile gets two sums, of even and of odd slabs.
  static constexpr int kTilesAScheduler = kWarpsAScheduler * kTilesM * kTilesN;
  static constexpr int kSumsATile =
      !Policy::kApart && kTilesAScheduler * costs::kMma < costs::kMmaLatency * 2 / 3 ? 2 : 1;
  static_assert(kSlabs % 2 == 0 && kHeldSlabs % 2 == 0, "states are loaded two slabs at a time");

  // Predicted clocks: the longest of the tensor cores' time (or of a chain of dependent products), the schedulers' (one
  // instruction a clock), and shared memory's. Sums that begin from zero are cleared and added, four numbers each.
  static constexpr int64_t kProductClocks = [] {
    constexpr int64_t kWarps = kThreads / 32, kTurns = kWarpsAScheduler * kPairs;
    constexpr int64_t kOneOfEachChain = kTilesAScheduler * kSumsATile * costs::kMma;
    constexpr int64_t kMmas = kPairs * Policy::kProducts / kSumsATile *
                              (kOneOfEachChain > costs::kMmaLatency ? kOneOfEachChain : costs::kMmaLatency);
    constexpr int64_t kSlots =
        kTurns * kTilesN * (1 + Policy::kStateSlots + kTilesM * (Policy::kProducts + (Policy::kApart ? 8 : 0)));
    constexpr int64_t kShared = (kWeightBytes + kWarps * kPairs * kTilesN * 512) / costs::kSharedBytesPerClock;
    constexpr int64_t kIssued = kMmas > kSlots ? kMmas : kSlots;
    return kIssued > kShared ? kIssued : kShared;
  }();
};

template <class Shape>
class StationaryProduct {
 public:
  using Policy = typename Shape::Policy;
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;

  using Sums = Acc[Shape::kTilesM][Shape::kTilesN][4];

  // All threads. weight(column, k) gives the weights, zero where there are none; `shared` has kWeightBytes.
  template <class Weight>
  __device__ __forceinline__ StationaryProduct(unsigned char* shared, const Weight& weight)
      : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), shared_(shared + threadIdx.x * 16) {
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int pair = 0; pair < Shape::kHeldPairs; ++pair) {
        fragment(held_[m][pair], m, pair, weight);
        __syncwarp();  // keeps the compiler from issuing all loads at once and spilling
      }
#pragma unroll 1
      for (int pair = 0; pair < Shape::kSharedPairs; ++pair) {
        Fragment weights;
        fragment(weights, m, Shape::kHeldPairs + pair, weight);
#pragma unroll
        for (int part = 0; part < Shape::kParts; ++part) *place(m, pair, part) = weights.part[part];
      }
    }
  }

  // All threads: adds to this thread's sums the weights times a state [kRows][kK] in shared memory, over its warp's
  // part of K.
  __device__ __forceinline__ void run(const unsigned char* state, Sums& total) const {
    Sums sums[Shape::kSumsATile] = {};
    state += lane_ % 8 * Shape::kStateStride + lane_ / 8 * 16 + warp_k() * Shape::kPairs * 64;
#pragma unroll
    for (int pair = 0; pair < Shape::kHeldPairs; ++pair) {
      multiply(sums, state + pair * 64, [&](int m, int part) { return held_[m][pair].part[part]; });
    }
#pragma unroll 1
    for (int pair = 0; pair < Shape::kSharedPairs; ++pair) {
      multiply(sums, state + (Shape::kHeldPairs + pair) * 64, [&](int m, int part) { return *place(m, pair, part); });
    }
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kTilesN; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          total[m][n][k] = sums[0][m][n][k];
          if constexpr (Shape::kSumsATile == 2) total[m][n][k] += sums[1][m][n][k];
        }
      }
    }
  }

  // use(column, row, first, second) with the sums of each column and pair of rows (row, row + 1) that this thread
  // holds.
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
  using Fragment = typename Policy::Weights;

  __device__ __forceinline__ int column(int m, int row) const {
    return (warp_ / Shape::kWarpsK * Shape::kTilesM + m) * 16 + row;
  }

  // A pair of slabs; weight(m, part) gives the parts of the weights. Products of different tiles alternate, since a
  // product that adds to the sums of the last one waits for it.
  template <class Weight>
  static __device__ __forceinline__ void multiply(Sums (&sums)[Shape::kSumsATile], const unsigned char* state,
                                                  const Weight& weight) {
    Fragment a[Shape::kTilesM];
#pragma unroll
    for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
      for (int part = 0; part < Shape::kParts; ++part) a[m].part[part] = weight(m, part);
    }
#pragma unroll
    for (int n = 0; n < Shape::kTilesN; ++n) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, state + n * 8 * Shape::kStateStride);
      const typename Policy::State factor = Policy::state(b);
      Acc apart[Shape::kTilesM][4] = {};
#pragma unroll
      for (int product = 0; product < Policy::kProducts; ++product) {
#pragma unroll
        for (int m = 0; m < Shape::kTilesM; ++m) {
          Policy::multiply(Policy::kApart ? apart[m] : sums[product % Shape::kSumsATile][m][n], product, a[m], factor);
        }
      }
      if constexpr (Policy::kApart) {
#pragma unroll
        for (int m = 0; m < Shape::kTilesM; ++m) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[0][m][n][k] += apart[m][k];
        }
      }
    }
  }

  __device__ __forceinline__ typename Policy::Part* place(int m, int pair, int part) const {
    const int fragment = (m * Shape::kSharedPairs + pair) * Shape::kParts + part;
    return reinterpret_cast<typename Policy::Part*>(shared_ + fragment * Shape::kThreads * 16);
  }

  template <class Weight>
  __device__ __forceinline__ void fragment(Fragment& to, int m, int pair, const Weight& weight) const {
    const int first = (warp_k() * Shape::kPairs + pair) * Shape::kPairK;
    Policy::pack(to, lane_ % 4, [&](int half, int k) { return weight(column(m, lane_ / 4 + half * 8), first + k); });
  }

  int warp_, lane_;
  unsigned char* shared_;
  Fragment held_[Shape::kTilesM][Shape::kHeldPairs];
};

}  // namespace fastlstm::cuda

// stationary.h's product without tensor cores, for float32 with few rows: an mma.sync takes as long for one row as for
// 8. Six of them, for 256 weights, take 42 clocks of a scheduler; fused multiply-adds take 8 for each row, and a weight
// has 4 bytes instead of 6.
//
// A thread holds some weights of some columns and adds their products with the state's words, which all threads of a
// column group read at once; then the threads that share columns add their sums.
#pragma once

#include "cuda/product/stationary.h"

namespace fastlstm::cuda {

// A matrix of kColumns x kK weights. kLanesK of a warp's lanes split K, the others split the columns. A lane has
// kPerLane columns, and along K kHeld quads of numbers in registers and kShared in shared memory. kWarpsK warps split
// K.
template <int kWarpsM_, int kWarpsK_, int kLanesK_, int kPerLane_, int kHeld_, int kShared_, int kRows_>
struct PlainShape {
  using Policy = Float32Product;
  using IO = float;
  using Acc = float;
  static constexpr int kWarpsM = kWarpsM_, kWarpsK = kWarpsK_, kLanesK = kLanesK_, kPerLane = kPerLane_;
  static constexpr int kHeld = kHeld_, kShared = kShared_, kQuads = kHeld_ + kShared_, kRows = kRows_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsK;
  static constexpr int kLanesM = 32 / kLanesK;
  static constexpr int kColumns = kWarpsM * kLanesM * kPerLane;
  static constexpr int kK = kWarpsK * kQuads * kLanesK * 4;
  static constexpr int kStateStride = kK * sizeof(float) + 16;
  static constexpr int kStateBytes = kRows * kStateStride;
  static constexpr int kWeightBytes = kThreads * kPerLane * kShared * 16;
  static constexpr int kLoads = kQuads;
  static_assert(kRows % 2 == 0, "sums are given away in pairs of rows");

  // Predicted clocks: the schedulers' time for multiply-adds and shuffles, or shared memory's, whichever is longer. A
  // quad of the state counts as the 512 bytes that a warp reads, though its threads read the same.
  static constexpr int64_t kProductClocks = [] {
    constexpr int64_t kWarps = kThreads / 32, kTurns = (kWarps + costs::kSchedulers - 1) / costs::kSchedulers;
    int64_t stages = 0;
    for (int lanes = 1; lanes < kLanesK; lanes *= 2) ++stages;
    const int64_t slots = kTurns * kRows * (kQuads * (4 * kPerLane + 1) + stages * 2 * kPerLane);
    const int64_t shared = (kWeightBytes + kWarps * kQuads * kRows * 512) / costs::kSharedBytesPerClock;
    return slots > shared ? slots : shared;
  }();
};

template <int... kSizes>
class StationaryProduct<PlainShape<kSizes...>> {
 public:
  using Shape = PlainShape<kSizes...>;
  using Sums = float[Shape::kPerLane][Shape::kRows];

  // The same interface as the product on tensor cores.
  template <class Weight>
  __device__ __forceinline__ StationaryProduct(unsigned char* shared, const Weight& weight)
      : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), shared_(shared + threadIdx.x * 16) {
#pragma unroll
    for (int quad = 0; quad < Shape::kHeld; ++quad) {
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) fill(held_[c][quad], c, quad, weight);
      __syncwarp();  // as in stationary.h: not all loads at once
    }
#pragma unroll 1
    for (int quad = 0; quad < Shape::kShared; ++quad) {
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
        Quad bits;
        fill(bits, c, Shape::kHeld + quad, weight);
        *place(c, quad) = bits;
      }
    }
  }

  __device__ __forceinline__ void run(const unsigned char* state, Sums& sums) const {
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
      for (int row = 0; row < Shape::kRows; ++row) sums[c][row] = 0;
    }
    state += first_k(0) * sizeof(float);
#pragma unroll
    for (int quad = 0; quad < Shape::kHeld; ++quad) {
      multiply(sums, state + quad * kQuadBytes, [&](int c) -> const Quad& { return held_[c][quad]; });
    }
#pragma unroll 1
    for (int quad = 0; quad < Shape::kShared; ++quad) {
      multiply(sums, state + (Shape::kHeld + quad) * kQuadBytes, [&](int c) -> const Quad& { return *place(c, quad); });
    }
#pragma unroll
    for (int mask = 1; mask < Shape::kLanesK; mask *= 2) {
#pragma unroll
      for (int c = 0; c < Shape::kPerLane; ++c) {
#pragma unroll
        for (int row = 0; row < Shape::kRows; ++row) sums[c][row] += __shfl_xor_sync(~0u, sums[c][row], mask);
      }
    }
  }

  // As StationaryProduct::for_pairs, each lane for some of the sums of the lanes that share its columns.
  template <class Use>
  __device__ __forceinline__ void for_pairs(const Sums& sums, const Use& use) const {
#pragma unroll
    for (int first = 0; first < Shape::kPerLane; first += Shape::kLanesK) {
      constexpr int kLast = Shape::kPerLane - 1;
      const int c = first + lane_k();
#pragma unroll
      for (int row = 0; row < Shape::kRows; row += 2) {
        float pair[2] = {sums[first][row], sums[first][row + 1]};
#pragma unroll
        for (int k = 1; k < Shape::kLanesK; ++k) {
          // Not sums[c]: an array that is indexed by a variable is not kept in registers.
          const int other = first + k < kLast ? first + k : kLast;
          pair[0] = lane_k() >= k ? sums[other][row] : pair[0];
          pair[1] = lane_k() >= k ? sums[other][row + 1] : pair[1];
        }
        if (c < Shape::kPerLane) use(column(c), row, pair[0], pair[1]);
      }
    }
  }

  __device__ __forceinline__ int warp_k() const { return warp_ % Shape::kWarpsK; }

 private:
  struct alignas(16) Quad {
    float k[4];
  };
  static constexpr int kQuadBytes = Shape::kLanesK * 16;

  __device__ __forceinline__ int lane_k() const { return lane_ % Shape::kLanesK; }
  // Neighbouring lanes have neighbouring columns, and sums on different banks.
  __device__ __forceinline__ int column(int c) const {
    return (warp_ / Shape::kWarpsK * Shape::kPerLane + c) * Shape::kLanesM + lane_ / Shape::kLanesK;
  }
  __device__ __forceinline__ int first_k(int quad) const {
    return ((warp_k() * Shape::kQuads + quad) * Shape::kLanesK + lane_k()) * 4;
  }
  __device__ __forceinline__ Quad* place(int c, int quad) const {
    return reinterpret_cast<Quad*>(shared_ + (c * Shape::kShared + quad) * Shape::kThreads * 16);
  }

  template <class Weight>
  __device__ __forceinline__ void fill(Quad& to, int c, int quad, const Weight& weight) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) to.k[k] = weight(column(c), first_k(quad) + k);
  }

  template <class Weight>
  static __device__ __forceinline__ void multiply(Sums& sums, const unsigned char* state, const Weight& weight) {
    Quad h[Shape::kRows];
#pragma unroll
    for (int row = 0; row < Shape::kRows; ++row)
      h[row] = *reinterpret_cast<const Quad*>(state + row * Shape::kStateStride);
#pragma unroll
    for (int c = 0; c < Shape::kPerLane; ++c) {
      const Quad w = weight(c);
#pragma unroll
      for (int row = 0; row < Shape::kRows; ++row) {
#pragma unroll
        for (int k = 0; k < 4; ++k) sums[c][row] += w.k[k] * h[row].k[k];
      }
    }
  }

  int warp_, lane_;
  unsigned char* shared_;
  Quad held_[Shape::kPerLane][Shape::kHeld];
};

}  // namespace fastlstm::cuda

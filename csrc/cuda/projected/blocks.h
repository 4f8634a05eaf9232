// A layer with a projection, on the chip: what a block has of it.
//
// A block owns kUnits whole units: their rows of W_hh (kUnits x 4 gates, K = P) and their columns of W_hr (P outputs, K
// = kUnits). A step has four parts: one product with numbers that all blocks have, P a row; the cells; one product of
// the block's own numbers, whose sums are its parts of all P outputs; and the addition of these parts over the blocks.
// Forward, a block's own numbers are h~, and all blocks have y; backward, they are the gates' gradients and the
// gradient of y. Parts go to the block that owns the output (P / blocks of them each), which adds them, finishes the
// output and sends it to all blocks. So a step has two exchanges, of 4 P and sizeof(IO) P bytes a row into each block.
// If a block owned whole rows of W_hr instead, H numbers (h~) or 4 H (the gates' gradients) would have to go to all.
#pragma once

#include "core/inline.h"
#include "cuda/cluster/backward.h"

namespace fastlstm::cuda {

// How the outputs are shared out among the blocks: in slices whose size is a power of two, one for each of the first
// blocks.
struct Slices {
  int shift, count;

  // At least as many numbers as are sent together (Words).
  FASTLSTM_INLINE Slices(int64_t P, int blocks) : shift(2) {
    while ((int64_t{blocks} << shift) < P) ++shift;
    count = static_cast<int>((P + size() - 1) >> shift);
  }
  FASTLSTM_INLINE int size() const { return 1 << shift; }
  FASTLSTM_INLINE int outputs() const { return count << shift; }  // P, rounded up to whole slices
  // The block that owns an output.
  __device__ __forceinline__ int owner(int output) const { return output >> shift; }
  // Index of a row and output of a slice within a part: rows in pairs, which are sent together.
  __device__ __forceinline__ int place(int row, int output) const {
    return (((row / 2) << shift) + (output & (size() - 1))) * 2 + row % 2;
  }
};

// The two products of a block. Shared_: with what all blocks have, K up to kMostOutputs, its sums through shared memory
// to the threads of the cells. Own_: with the block's own numbers, kMostOutputs columns. kMostBlocks at most share a
// layer; with one there is no exchange.
template <class Shared_, class Own_, int kUnits_, int kMostBlocks_>
struct ProjectedShape {
  using Shared = Shared_;
  using Own = Own_;
  using IO = typename Shared::IO;
  using Acc = typename Shared::Acc;
  static constexpr int kThreads = Shared::kThreads, kRows = Shared::kRows, kUnits = kUnits_, kMostBlocks = kMostBlocks_;
  static constexpr int kMostOutputs = Shared::kK;
  static constexpr int kSumStride = Shared::kColumns + 4;
  static_assert(Own::kThreads == kThreads && Own::kRows == kRows && Own::kColumns == kMostOutputs);
  static_assert((kMostOutputs & (kMostOutputs - 1)) == 0, "slices of a power of two make up all outputs");

  // Layout of shared memory; two mbarriers come first.
  static constexpr size_t kSharedWeightsAt = 16;
  static constexpr size_t kOwnWeightsAt = kSharedWeightsAt + Shared::kWeightBytes;
  static constexpr size_t kSharedStateAt = kOwnWeightsAt + Own::kWeightBytes;
  static constexpr size_t kOwnStateAt = kSharedStateAt + Shared::kStateBytes;
  static constexpr size_t kSumsAt = kOwnStateAt + Own::kStateBytes;
  static constexpr size_t kPartsAt = kSumsAt + Shared::kWarpsK * kRows * kSumStride * sizeof(Acc);

  // Slices of more than four outputs are less than half empty.
  static constexpr int kMostInSlices = kMostBlocks > 1 ? 2 * kMostOutputs : kMostOutputs;
  static_assert(kMostBlocks == 1 || 4 * kMostBlocks <= kMostInSlices);
  static constexpr size_t kSharedBytes = kPartsAt + kMostInSlices * kRows * Own::kWarpsK * sizeof(float);

  static FASTLSTM_INLINE int part_floats(const Slices& slices) { return slices.size() * kRows; }
  static __device__ __forceinline__ int sum_at(int warp_k, int row, int column) {
    return (warp_k * kRows + row) * kSumStride + column;
  }
};

// Forward: columns of the shared product are the gates of kUnits units, one gate after the other; K of the own product
// is the units.
template <class Shared, class Own, int kMostBlocks>
struct ProjectedForwardShape : ProjectedShape<Shared, Own, Shared::kColumns / 4, kMostBlocks> {
  static_assert(Own::kK >= Shared::kColumns / 4);
};

// Backward: columns of the shared product are the units; K of the own product is the gates of kUnits units.
template <class Shared, class Own, int kMostBlocks>
struct ProjectedBackwardShape : ProjectedShape<Shared, Own, Shared::kColumns, kMostBlocks> {
  static_assert(Own::kK == 4 * Shared::kColumns);
};

// The number of this block within a cluster or a group of the grid, and the rows of the batch that it has.
template <class Shape>
struct ProjectedPart {
  int blocks, block, rows, T, row0;  // 32 bits: larger calls do not come here

  __device__ __forceinline__ ProjectedPart(const Sizes& s, int blocks, int block, int group)
      : blocks(blocks), block(block), T(static_cast<int>(s.T)), row0(group * Shape::kRows) {
    rows = s.N - row0 < Shape::kRows ? static_cast<int>(s.N - row0) : Shape::kRows;
  }
  static __device__ __forceinline__ ProjectedPart in_cluster(const Sizes& s) {
    const int blocks = Shape::kMostBlocks > 1 ? static_cast<int>(ptx::cluster_size()) : 1;
    return {s, blocks, static_cast<int>(blockIdx.x % blocks), static_cast<int>(blockIdx.x / blocks)};
  }
  static __device__ __forceinline__ ProjectedPart in_grid(const Sizes& s) {
    return {s, static_cast<int>(gridDim.x), static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y)};
  }
};

// The rows and outputs of a block's slice, shared out to its threads. With more threads than places, several lanes of a
// warp share a place, and each adds some of its parts.
template <class Shape>
class OutputPlaces {
 public:
  static constexpr int kElements =
      Shape::kUnits * Shape::kRows < Shape::kThreads ? 1 : Shape::kUnits * Shape::kRows / Shape::kThreads;

  __device__ __forceinline__ OutputPlaces(const Slices& slices, int block)
      : shift_(slices.shift), count_(block < slices.count ? slices.size() * Shape::kRows : 0) {
    while (lanes_ > 4 && Shape::kThreads / 32 * (lanes_ / 2) >= count_) lanes_ /= 2;
  }

  // Whether this thread's e-th place exists; the same in all threads of a warp.
  __device__ __forceinline__ bool mine(int e) const { return place(e) < count_; }
  __device__ __forceinline__ int row(int e) const { return place(e) >> shift_; }
  __device__ __forceinline__ int output(int e) const { return place(e) & ((1 << shift_) - 1); }
  // The number of this lane among those that share a place. Neighbours have neighbouring outputs.
  __device__ __forceinline__ int copy() const { return lane() / lanes_; }
  __device__ __forceinline__ int copies() const { return 32 / lanes_; }

  // All threads of the warp: the sum over the lanes that share a place, in a fixed order.
  __device__ __forceinline__ float add(float x) const {
    for (int apart = lanes_; apart < 32; apart *= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
  }
  // All threads of the warp: x of the first of the lanes that share a place.
  template <class IO>
  __device__ __forceinline__ IO of_first(IO x) const {
    if constexpr (sizeof(IO) == 2) {
      x.bits = static_cast<uint16_t>(__shfl_sync(~0u, static_cast<uint32_t>(x.bits), lane() % lanes_));
    } else {
      x = __shfl_sync(~0u, x, lane() % lanes_);
    }
    return x;
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ int place(int e) const {
    return (e * (Shape::kThreads / 32) + static_cast<int>(threadIdx.x) / 32) * lanes_ + lane() % lanes_;
  }

  int shift_, count_, lanes_ = 32;
};

}  // namespace fastlstm::cuda

// Which shapes of a cluster or of the grid serve a layer with a projection. Unmeasured so far. A thread has 96 words of
// weights in registers at most: 24 slabs, or 16 of float32 split into three parts. The rest of both products' weights
// is in shared memory.
#pragma once

#include <type_traits>

#include "cuda/product/float32.h"
#include "cuda/projected/backward.h"
#include "cuda/projected/forward.h"

namespace fastlstm::cuda {

// visit(use) calls use(each shape) on clusters with 8 kTilesN rows, the smallest first. A block has 4 slabs of units:
// 64 of 16 bits, 32 of 32 bits; a single block has twice as many.
template <class Policy, int kTilesN>
struct ProjectedForwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Part = StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>;

  template <class Use>
  static void visit(const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if constexpr (kTilesN == 1) use(ProjectedForwardShape<Part<8, 1, 4, 4, 0>, Part<4, 2, 1, 4, 0>, 1>{});
      use(ProjectedForwardShape<Part<8, 1, 2, 8, 0>, Part<8, 1, 1, 4, 0>, kMostInCluster>{});
      constexpr int kLess = kTilesN == 1 ? 0 : 2;  // with the sums of 16 rows, ptxas spills
      use(ProjectedForwardShape<Part<8, 1, 2, 8 - kLess, 8 + kLess>, Part<8, 1, 2, 4, 0>, kMostInCluster>{});
    } else if constexpr (std::is_same_v<Policy, Float32Product>) {
      constexpr int kLess = kTilesN == 1 ? 0 : 2;  // with the sums of 16 rows, ptxas spills
      if constexpr (kTilesN == 1) use(ProjectedForwardShape<Part<8, 1, 2, 6, 2>, Part<4, 2, 1, 4, 0>, 1>{});
      use(ProjectedForwardShape<Part<8, 1, 1, 12 - 2 * kLess, 4 + 2 * kLess>, Part<8, 1, 1, 4, 0>, kMostInCluster>{});
      use(ProjectedForwardShape<Part<8, 1, 1, 8 - kLess, 24 + kLess>, Part<8, 1, 2, 4, 0>, kMostInCluster>{});
    } else {
      if constexpr (kTilesN == 1) use(ProjectedForwardShape<Part<8, 1, 2, 8, 0>, Part<4, 2, 1, 4, 0>, 1>{});
      use(ProjectedForwardShape<Part<8, 1, 1, 16, 0>, Part<8, 1, 1, 4, 0>, kMostInCluster>{});
      use(ProjectedForwardShape<Part<8, 1, 1, 14, 18>, Part<8, 1, 2, 4, 0>, kMostInCluster>{});
    }
  }
};

template <class Policy, int kTilesN>
struct ProjectedBackwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Part = StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>;

  template <class Use>
  static void visit(const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if constexpr (kTilesN == 1) use(ProjectedBackwardShape<Part<8, 1, 1, 4, 0>, Part<4, 2, 1, 16, 0>, 1>{});
      constexpr int kLess = kTilesN == 1 ? 0 : 2;  // with the sums and the tape of 16 rows, ptxas spills
      use(ProjectedBackwardShape<Part<4, 2, 1, 4, 0>, Part<8, 1, 1, 12, 4>, kMostInCluster>{});
      use(ProjectedBackwardShape<Part<4, 2, 1, 8, 0>, Part<8, 1, 2, 8 - kLess, 8 + kLess>, kMostInCluster>{});
    } else if constexpr (std::is_same_v<Policy, Float32Product>) {
      constexpr int kLess = kTilesN == 1 ? 0 : 4;  // with the sums and the tape of 16 rows, ptxas spills
      if constexpr (kTilesN == 1) use(ProjectedBackwardShape<Part<4, 2, 1, 4, 0>, Part<4, 2, 1, 12, 4>, 1>{});
      use(ProjectedBackwardShape<Part<2, 4, 1, 4, 0>, Part<8, 1, 1, 12 - kLess, 4 + kLess>, kMostInCluster>{});
      if constexpr (kTilesN == 1)
        use(ProjectedBackwardShape<Part<2, 4, 1, 8, 0>, Part<8, 1, 2, 4, 12>, kMostInCluster>{});
    } else {
      if constexpr (kTilesN == 1) use(ProjectedBackwardShape<Part<4, 2, 1, 4, 0>, Part<4, 2, 1, 16, 0>, 1>{});
      use(ProjectedBackwardShape<Part<2, 4, 1, 4, 0>, Part<8, 1, 1, 12, 4>, kMostInCluster>{});
      use(ProjectedBackwardShape<Part<2, 4, 1, 8, 0>, Part<8, 1, 2, 8, 8>, kMostInCluster>{});
    }
  }
};

// The same for the grid: a block has 16 units. (K of the own product is two slabs at least; of 16-bit numbers, half of
// it is zeros.)
constexpr int kMostInGrid = 256;

template <class Policy, int kTilesN>
struct ProjectedForwardGridShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Part = StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>;

  template <class Use>
  static void visit(const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      use(ProjectedForwardShape<Part<2, 4, 2, 8, 0>, Part<8, 1, 4, 2, 0>, kMostInGrid>{});
      if constexpr (kTilesN == 1) use(ProjectedForwardShape<Part<2, 4, 2, 4, 12>, Part<8, 1, 8, 2, 0>, kMostInGrid>{});
    } else if constexpr (std::is_same_v<Policy, Float32Product>) {
      if constexpr (kTilesN == 1) use(ProjectedForwardShape<Part<2, 4, 2, 4, 12>, Part<8, 1, 4, 2, 0>, kMostInGrid>{});
    } else {
      use(ProjectedForwardShape<Part<2, 4, 2, 8, 8>, Part<8, 1, 4, 2, 0>, kMostInGrid>{});
    }
  }
};

template <class Policy, int kTilesN>
struct ProjectedBackwardGridShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Part = StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>;

  template <class Use>
  static void visit(const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      use(ProjectedBackwardShape<Part<1, 8, 1, 4, 0>, Part<8, 1, 4, 4, 0>, kMostInGrid>{});
      if constexpr (kTilesN == 1) use(ProjectedBackwardShape<Part<1, 8, 1, 4, 4>, Part<8, 1, 8, 2, 2>, kMostInGrid>{});
    } else if constexpr (std::is_same_v<Policy, Float32Product>) {
      if constexpr (kTilesN == 1) use(ProjectedBackwardShape<Part<1, 8, 1, 8, 0>, Part<8, 1, 4, 2, 6>, kMostInGrid>{});
    } else {
      use(ProjectedBackwardShape<Part<1, 8, 1, 8, 0>, Part<8, 1, 4, 4, 4>, kMostInGrid>{});
    }
  }
};

}  // namespace fastlstm::cuda

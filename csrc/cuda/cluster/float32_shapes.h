// Which shapes of a cluster serve float32; shapes.h has those of the other policies. The product takes most of a step,
// so a cluster has as many blocks as it may have, unless one block holds all units. The fastest shape offered is taken:
// without tensor cores for few rows, and where six bytes a weight do not fit.
#pragma once

#include "cuda/cluster/shapes.h"
#include "cuda/product/plain_stationary.h"

namespace fastlstm::cuda {

template <int kTilesN>
struct ForwardShapes<Float32Product, kTilesN> {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = ForwardShape<StationaryShape<Float32Product, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;
  template <int kWarpsM, int kWarpsK, int kLanesK, int kPerLane, int kHeld, int kShared, int kRows>
  using Plain = ForwardShape<PlainShape<kWarpsM, kWarpsK, kLanesK, kPerLane, kHeld, kShared, kRows>>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (kTilesN == 1) {
      visit_plain<2>(H, use);
      visit_plain<4>(H, use);
    }
    if (H <= 64) use(Shape<8, 1, 2, 4, 4>{});
    if (H <= 128) return use(Shape<4, 2, 1, 8, 0>{});
    if (H <= 256) return use(Shape<4, 2, 1, 16, 0>{});
    if (H <= 384) return use(Shape<6, 2, 1, 10, 14>{});
  }

  template <int kRows, class Use>
  static void visit_plain(int64_t H, const Use& use) {
    if (H <= 64) return use(Plain<2, 4, 1, 4, 4, 0, kRows>{});
    if (H <= 128) return use(Plain<1, 8, 2, 4, 2, 0, kRows>{});
    if (H <= 256) return use(Plain<1, 8, 2, 4, 4, 0, kRows>{});
    if (H <= 512) return use(Plain<1, 8, 2, 8, 3, 5, kRows>{});
  }
};

template <int kTilesN>
struct BackwardShapes<Float32Product, kTilesN> {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = BackwardShape<StationaryShape<Float32Product, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;
  template <int kWarpsM, int kWarpsK, int kLanesK, int kPerLane, int kHeld, int kShared, int kRows>
  using Plain = BackwardShape<PlainShape<kWarpsM, kWarpsK, kLanesK, kPerLane, kHeld, kShared, kRows>>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (kTilesN == 1) {
      visit_plain<2>(H, use);
      visit_plain<4>(H, use);
    }
    if (H <= 64) use(Shape<4, 2, 1, 8, 8>{});
    if (H <= 128) return use(Shape<8, 1, 1, 8, 0>{});
    if (H <= 256) return use(Shape<8, 1, 2, 8, 0>{});
    if (H <= 384) return use(Shape<12, 1, 2, 4, 8>{});
  }

  template <int kRows, class Use>
  static void visit_plain(int64_t H, const Use& use) {
    if (H <= 64) return use(Plain<1, 8, 2, 4, 4, 0, kRows>{});
    if (H <= 128) {
      if constexpr (kRows == 2) use(Plain<8, 1, 8, 4, 2, 0, kRows>{});  // with four rows not faster than tensor cores
      return;
    }
    if (H <= 256) return use(Plain<8, 1, 4, 4, 4, 0, kRows>{});
    if (H <= 512) return use(Plain<8, 1, 4, 8, 3, 5, kRows>{});
  }
};

}  // namespace fastlstm::cuda

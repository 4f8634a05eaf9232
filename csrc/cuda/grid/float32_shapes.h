// Which shapes of a whole-grid kernel serve float32; kernels.h has those of the other policies. The fastest one offered
// that fits is taken.
#pragma once

#include "cuda/grid/kernels.h"
#include "cuda/product/plain_stationary.h"

namespace fastlstm::cuda {

template <int kTilesN>
struct ForwardGridShapes<Float32Product, kTilesN> {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = ForwardShape<StationaryShape<Float32Product, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>, 1>;
  template <int kLanesK, int kPerLane, int kHeld, int kShared, int kRows>
  using Plain = ForwardShape<PlainShape<1, 8, kLanesK, kPerLane, kHeld, kShared, kRows>, 1>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (kTilesN == 1) {
      visit_plain<2>(H, use);
      visit_plain<4>(H, use);
    }
    if (H <= 512) {
      if constexpr (kTilesN == 1) use(Shape<1, 8, 1, 8, 0>{});
      return use(Shape<1, 8, 2, 4, 4>{});
    }
    if constexpr (kTilesN <= 2) {
      if (H <= 1024) return use(Shape<1, 8, 2, 6, 10>{});
    }
  }

  // Blocks of 4, 8 and 12 units.
  template <int kRows, class Use>
  static void visit_plain(int64_t H, const Use& use) {
    if (H <= 512) {
      if constexpr (kRows == 2) use(Plain<4, 2, 4, 0, kRows>{});  // with four rows slower than tensor cores
      return;
    }
    if (H <= 1024) return use(Plain<4, 4, 6, 2, kRows>{});
    if (H <= 1536) return use(Plain<4, 6, 4, 8, kRows>{});
  }
};

template <int kTilesN>
struct BackwardGridShapes<Float32Product, kTilesN> {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = BackwardGridShape<StationaryShape<Float32Product, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;
  template <int kLanesK, int kPerLane, int kHeld, int kShared, int kRows>
  using Plain = BackwardGridShape<PlainShape<1, 8, kLanesK, kPerLane, kHeld, kShared, kRows>>;

  // On tensor cores a block has 16 units, so that there are few blocks; without them, as many units as forward.
  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (kTilesN == 1) {
      visit_plain<2>(H, use);
      visit_plain<4>(H, use);
      if (H <= 1024) use(Plain<16, 4, 6, 2, 8>{});
      if (H <= 640) use(Shape<1, 8, 1, 18, 22>{});
    }
    if constexpr (kTilesN <= 2) {
      if (H <= 384) use(Shape<1, 8, 1, 14, 10>{});
    }
  }

  template <int kRows, class Use>
  static void visit_plain(int64_t H, const Use& use) {
    if (H <= 512) return use(Plain<32, 4, 2, 0, kRows>{});
    if (H <= 1024) return use(Plain<16, 4, 6, 2, kRows>{});
    if (H <= 1280) return use(Plain<16, 5, 5, 5, kRows>{});
    if constexpr (kRows == 2) {
      if (H <= 1536) return use(Plain<8, 3, 10, 14, kRows>{});
    }
  }
};

}  // namespace fastlstm::cuda

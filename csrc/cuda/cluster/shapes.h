// Which shapes of a cluster serve which sizes. Unmeasured so far: a layer's weights must fit the registers and shared
// memory of the cluster. More blocks share the product and send more; fewer leave room for more clusters. The fastest
// shape offered is taken. A thread has 96 words of weights in registers at most; with more, ptxas spills.
#pragma once

#include "cuda/cluster/backward.h"

namespace fastlstm::cuda {

// visit(H, use) calls use(each shape that serves H) with 8 kTilesN rows a cluster; a cluster has as many blocks as hold
// all units, 16 at most. Some shapes have no room for more rows, or are not faster with them.
template <class Policy, int kTilesN>
struct ForwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = ForwardShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;
  static constexpr bool kFewRows = kTilesN == 1;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return use(Shape<8, 1, 2, 4, 0>{});
      if (H <= 128) {
        use(Shape<8, 1, 1, 8, 0>{});
        if constexpr (kFewRows) use(Shape<16, 1, 2, 4, 4>{});
      } else if (H <= 256) {
        if constexpr (kFewRows) use(Shape<4, 2, 1, 8, 0>{});
        if constexpr (kFewRows) use(Shape<8, 1, 1, 16, 0>{});
        use(Shape<8, 1, 2, 10, 6>{});
      } else if (H <= 512) {
        if constexpr (kFewRows) use(Shape<8, 1, 1, 24, 8>{});
        use(Shape<8, 1, 2, 12, 20>{});
      } else if (H <= 768) {
        if constexpr (kFewRows) use(Shape<12, 1, 1, 16, 32>{});
      }
    } else {
      if (H <= 64) return use(Shape<8, 1, 2, 8, 0>{});
      if (H <= 128) {
        if constexpr (kFewRows) use(Shape<8, 1, 1, 16, 0>{});
        use(Shape<8, 1, 2, 12, 4>{});
      } else if (H <= 256) {
        if constexpr (kFewRows) use(Shape<4, 2, 1, 16, 0>{});
        if constexpr (kFewRows) use(Shape<8, 1, 1, 24, 8>{});
        use(Shape<8, 1, 2, 12, 20>{});
      } else if (H <= 512) {
        if constexpr (kFewRows) use(Shape<4, 2, 2, 12, 20>{});
      }
    }
  }
};

template <class Policy, int kTilesN>
struct BackwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = BackwardShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;
  static constexpr bool kFewRows = kTilesN == 1;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return use(Shape<4, 2, 1, 8, 0>{});
      if (H <= 128) {
        use(Shape<8, 1, 1, 8, 0>{});
        if constexpr (kFewRows) use(Shape<8, 2, 1, 6, 10>{});
      } else if (H <= 256) {
        if constexpr (kFewRows) use(Shape<8, 1, 2, 4, 0>{});
        if constexpr (kFewRows) use(Shape<8, 1, 2, 8, 0>{});
        use(Shape<8, 1, 2, 10, 6>{});
      } else if (H <= 512) {
        if constexpr (kFewRows) use(Shape<8, 1, 4, 4, 4>{});
        if constexpr (kFewRows) use(Shape<8, 1, 4, 6, 10>{});
      } else if (H <= 768) {
        if constexpr (kFewRows) use(Shape<12, 1, 4, 6, 6>{});
      }
    } else {
      if (H <= 64) return use(Shape<4, 2, 1, 12, 4>{});
      if (H <= 128) {
        if constexpr (kFewRows) use(Shape<8, 1, 1, 16, 0>{});
        use(Shape<8, 1, 1, 18, 14>{});
      } else if (H <= 256) {
        use(Shape<8, 1, 2, 12, 4>{});
        if constexpr (kFewRows) use(Shape<8, 1, 2, 8, 0>{});
        if constexpr (kFewRows) use(Shape<8, 1, 2, 10, 22>{});
      } else if (H <= 512) {
        if constexpr (kFewRows) use(Shape<8, 1, 4, 6, 10>{});
      }
    }
  }
};

}  // namespace fastlstm::cuda

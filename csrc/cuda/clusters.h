// Which shape of a cluster serves which sizes. Unmeasured so far: the weights of a layer must fit the cluster's registers and
// shared memory, and the fewest blocks that hold them exchange the least. Registers hold 96 words of weights a thread at most;
// with more, ptxas spills.
#pragma once

#include "cluster_backward.h"

namespace fastlstm::cuda {

// visit(H, use) calls use with a value of the shape that serves H with 8 kTilesN rows a cluster, if there is one; a cluster has as
// many blocks as it takes to hold all units. A row with 1 in place of kTilesN has no room for more.
template <class Policy, int kTilesN>
struct ForwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared, int kN = kTilesN>
  using Shape = ForwardShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kN>>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return use(Shape<8, 1, 2, 4, 0>{});
      if (H <= 128) return use(Shape<16, 1, 2, 4, 4, 1>{});
      if (H <= 256) return use(Shape<8, 1, 2, 10, 6>{});
      if (H <= 512) return use(Shape<8, 1, 2, 12, 20>{});
      if (H <= 768) return use(Shape<12, 1, 1, 16, 32, 1>{});
    } else {
      if (H <= 64) return use(Shape<8, 1, 2, 8, 0>{});
      if (H <= 128) return use(Shape<8, 1, 2, 12, 4>{});
      if (H <= 256) return use(Shape<8, 1, 2, 12, 20>{});
      if (H <= 512) return use(Shape<4, 2, 2, 12, 20, 1>{});
    }
  }
};

template <class Policy, int kTilesN>
struct BackwardShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared, int kN = kTilesN>
  using Shape = BackwardShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kN>>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return use(Shape<4, 2, 1, 8, 0>{});
      if (H <= 128) return use(Shape<8, 2, 1, 6, 10, 1>{});
      if (H <= 256) return use(Shape<8, 1, 2, 10, 6>{});
      if (H <= 512) return use(Shape<8, 1, 4, 6, 10, 1>{});
      if (H <= 768) return use(Shape<12, 1, 4, 6, 6, 1>{});
    } else {
      if (H <= 64) return use(Shape<4, 2, 1, 12, 4>{});
      if (H <= 128) return use(Shape<8, 1, 1, 20, 12>{});
      if (H <= 256) return use(Shape<8, 1, 2, 10, 22, 1>{});
      if (H <= 512) return use(Shape<8, 1, 4, 6, 10, 1>{});
    }
  }
};

}  // namespace fastlstm::cuda

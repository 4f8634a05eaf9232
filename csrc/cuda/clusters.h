// Which shape of a cluster serves which sizes. Unmeasured so far: the weights of a layer must fit the cluster's registers and
// shared memory, and the fewest blocks that hold them exchange the least. Registers hold 96 words of weights a thread at most;
// with more, ptxas spills.
#pragma once

#include "cluster_backward.h"

namespace fastlstm::cuda {

// visit(H, use) calls use with a value of the shape that serves H with 8 kTilesN rows a cluster, if there is one; a cluster has as
// many blocks as it takes to hold all units.
template <class Policy, int kTilesN>
struct ForwardShapes {
  template <class Visit>
  static void visit(int64_t H, const Visit& visit) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return visit(StationaryShape<Policy, 4, 8, 1, 2, 4, 0, kTilesN>{});
      if (H <= 128) return visit(StationaryShape<Policy, 4, 16, 1, 2, 4, 4, 1>{});  // more rows would spill
      if (H <= 256) return visit(StationaryShape<Policy, 4, 8, 1, 2, 10, 6, kTilesN>{});
      if (H <= 512) return visit(StationaryShape<Policy, 4, 8, 1, 2, 12, 20, kTilesN>{});
    } else {
      if (H <= 64) return visit(StationaryShape<Policy, 4, 8, 1, 2, 8, 0, kTilesN>{});
      if (H <= 128) return visit(StationaryShape<Policy, 4, 8, 1, 2, 12, 4, kTilesN>{});
      if (H <= 256) return visit(StationaryShape<Policy, 4, 8, 1, 2, 12, 20, kTilesN>{});
    }
  }
};

template <class Policy, int kTilesN>
struct BackwardShapes {
  template <class Visit>
  static void visit(int64_t H, const Visit& visit) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 64) return visit(StationaryShape<Policy, 1, 4, 2, 1, 8, 0, kTilesN>{});
      if (H <= 128) return visit(StationaryShape<Policy, 1, 8, 2, 1, 6, 10, 1>{});
      if (H <= 256) return visit(StationaryShape<Policy, 1, 4, 2, 1, 20, 12, kTilesN>{});
      if (H <= 512) return visit(StationaryShape<Policy, 1, 2, 4, 1, 20, 12, kTilesN>{});
    } else {
      if (H <= 64) return visit(StationaryShape<Policy, 1, 4, 2, 1, 16, 0, kTilesN>{});
      if (H <= 128) return visit(StationaryShape<Policy, 1, 4, 2, 1, 20, 12, kTilesN>{});
      if (H <= 256) return visit(StationaryShape<Policy, 1, 2, 4, 1, 20, 12, kTilesN>{});
    }
  }
};

// Whether a policy has shapes at all: those on the tensor cores do.
template <class Policy>
constexpr bool kHasClusters = false;
template <>
constexpr bool kHasClusters<BFloat16Product> = true;
template <>
constexpr bool kHasClusters<Float16Product> = true;
template <>
constexpr bool kHasClusters<TF32Product> = true;

}  // namespace fastlstm::cuda

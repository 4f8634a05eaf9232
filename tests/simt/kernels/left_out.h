// Kernels that a program does without, in the place of their sources: they take no call.
#pragma once

#include "cuda/families.h"

namespace fastlstm::cuda {

#define FASTLSTM_LEFT_OUT(Family)                                           \
  template <class Policy, class Args>                                       \
  Offer Family<Policy, Args>::offer(const Args&, const DeviceFacts&, int) { \
    return {};                                                              \
  }                                                                         \
  template <class Policy, class Args>                                       \
  size_t Family<Policy, Args>::workspace(const Args&, int) {                \
    return 0;                                                               \
  }                                                                         \
  template <class Policy, class Args>                                       \
  void Family<Policy, Args>::run(const Args&, int, void*, Launcher&) {}
#define FASTLSTM_LEFT_OUT_FOR(Family, Policy)  \
  template struct Family<Policy, ForwardArgs>; \
  template struct Family<Policy, BackwardArgs>;

FASTLSTM_LEFT_OUT(StepKernels)
FASTLSTM_LEFT_OUT(ClusterKernels)
FASTLSTM_LEFT_OUT(GridKernels)
FASTLSTM_LEFT_OUT(ProjectedClusterKernels)
FASTLSTM_LEFT_OUT(ProjectedGridKernels)

}  // namespace fastlstm::cuda

// Launches the recurrence on clusters, if there is a shape for it and the device has room for its clusters.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/cluster/best_shape.h"
#include "cuda/cluster/on_chip_call.h"
#include "cuda/cluster/shapes.h"
#include "cuda/costs.h"
#include "cuda/families.h"

namespace fastlstm::cuda {

// Whether a kernel for clusters, or one for single blocks, may have this number of blocks. A cluster has two at least:
// st.async in a cluster of one is undefined (PTX ISA, st.async: %cluster_nctarank > 1).
constexpr bool blocks_serve(int64_t blocks, bool in_clusters) {
  return in_clusters ? blocks >= 2 && blocks <= kMostInCluster : blocks == 1;
}

// How the clusters of a call are launched; without kClusters, single blocks.
template <class Call, bool kClusters>
class ClusterLaunch {
 public:
  using Kernel = void (*)(Call);

  ClusterLaunch(Kernel kernel, int blocks, int64_t clusters, int64_t D, int threads, size_t shared) : kernel_(kernel) {
    config_.gridDim = dim3(static_cast<unsigned>(clusters * blocks), 1, static_cast<unsigned>(D));
    config_.blockDim = dim3(static_cast<unsigned>(threads));
    config_.dynamicSmemBytes = shared;
    attribute_.id = cudaLaunchAttributeClusterDimension;
    attribute_.val.clusterDim.x = static_cast<unsigned>(blocks);
    attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    config_.attrs = &attribute_;
    config_.numAttrs = kClusters ? 1 : 0;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;

  // How many clusters run at once; 0 if the device has no room for one, or no code.
  int resident(const DeviceFacts& device) {
    const void* function = reinterpret_cast<const void*>(kernel_);
    int clusters = device.multiprocessors;
    bool fine = allow_shared_bytes(function, config_.dynamicSmemBytes);
    if (fine && kClusters) {
      // On a GPU for which there is only PTX of an older architecture, the kernel exists but is empty.
      cudaFuncAttributes code{};
      fine = cudaFuncGetAttributes(&code, function) == cudaSuccess && code.ptxVersion >= 90 &&
             cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
             cudaOccupancyMaxActiveClusters(&clusters, kernel_, &config_) == cudaSuccess;
    }
    if (!fine) cudaGetLastError();  // "no" is an answer, and must not be reported as the next call's error
    return fine ? clusters : 0;
  }

  void operator()(Launcher& launch, const char* name, const Call& call) {
    if constexpr (kClusters) {
      launch.in_clusters(name, kernel_, config_, call);
    } else {
      launch.configured(name, kernel_, config_, call);
    }
  }

 private:
  Kernel kernel_;
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

// One block that holds all units needs no cluster.
template <class Shape>
constexpr bool kInClusters = Shape::kUnits != Shape::kMostUnits;

template <class Shape, class IO, class Acc>
auto kernel_for(const ClusterForwardCall<IO, Acc>&) {
  return lstm_forward_kernel_cluster<Shape, kInClusters<Shape>>;
}
template <class Shape, class IO, class Acc>
auto kernel_for(const ClusterBackwardCall<IO, Acc>&) {
  return lstm_backward_kernel_cluster<Shape, kInClusters<Shape>>;
}

// A call with one shape.
template <class Shape, class Call>
class ClusterPlan {
 public:
  ClusterPlan(const Call& call, const DeviceFacts& device)
      : call_(call),
        blocks_(static_cast<int>((call.sizes.H + Shape::kUnits - 1) / Shape::kUnits)),
        clusters_((call.sizes.N + Shape::kRows - 1) / Shape::kRows),
        multiprocessors_(device.multiprocessors),
        launch_(kernel_for<Shape>(call), blocks_, clusters_, call.sizes.D, Shape::kThreads, Shape::kSharedBytes),
        resident_(blocks_serve(blocks_, kClusters) && (!kClusters || device.capability >= 9) ? known_resident(device)
                                                                                             : 0) {}

  // Predicted clocks of a step for all rows: the product; what other blocks send, at the rate of distributed shared
  // memory; and a constant for the cell and the exchange. Clusters without room wait for others to end; blocks on one
  // multiprocessor share it.
  Offer offer() const {
    if (resident_ == 0) return {};
    const int64_t all = clusters_ * call_.sizes.D, rounds = (all + resident_ - 1) / resident_;
    const int64_t together = (std::min<int64_t>(all, resident_) * blocks_ + multiprocessors_ - 1) / multiprocessors_;
    const int64_t received = (blocks_ - 1) * Shape::kSentBytes / costs::received_bytes_per_clock(blocks_);
    const int64_t step = costs::kClusterStep + together * (Shape::kProductClocks + received);
    return {rounds * step, costs::kLaunch + rounds * Shape::kLoads * costs::kMemory};
  }

  void run(Launcher& launch, const char* name) { launch_(launch, name, call_); }

 private:
  static constexpr bool kClusters = kInClusters<Shape>;

  int known_resident(const DeviceFacts& device) {
    static std::atomic<uint64_t> answers[kMostInCluster + 1];
    return known(answers[blocks_], device, [&] { return launch_.resident(device); });
  }

  const Call& call_;
  int blocks_;
  int64_t clusters_;
  int multiprocessors_;
  ClusterLaunch<Call, kClusters> launch_;
  int resident_;
};

// use(each shape for H), in the order of their numbers: first those with 8 rows a cluster, then those with 16.
template <class Policy, class Use>
void visit_cluster_shapes(const ForwardArgs& a, const Use& use) {
  ForwardShapes<Policy, 1>::visit(a.sizes.H, use);
  ForwardShapes<Policy, 2>::visit(a.sizes.H, use);
}
template <class Policy, class Use>
void visit_cluster_shapes(const BackwardArgs& a, const Use& use) {
  BackwardShapes<Policy, 1>::visit(a.sizes.H, use);
  BackwardShapes<Policy, 2>::visit(a.sizes.H, use);
}

template <class Policy, class Args>
Offer ClusterKernels<Policy, Args>::offer(const Args& a, const DeviceFacts& device, int only) {
  if (!on_chip_may_take(a.sizes)) return {};
  const auto call = on_chip_call<Policy>(a);
  BestShape best(a.sizes.T, only);
  visit_cluster_shapes<Policy>(
      a, [&](auto of) { best.add(ClusterPlan<decltype(of), CallOf<Policy, Args>>(call, device).offer()); });
  return best.offer();
}

template <class Policy, class Args>
size_t ClusterKernels<Policy, Args>::workspace(const Args&, int) {
  return 0;
}

template <class Policy, class Args>
void ClusterKernels<Policy, Args>::run(const Args& a, int shape, void*, Launcher& launch) {
  constexpr bool kForward = std::is_same_v<Args, ForwardArgs>;
  const DeviceFacts device;
  const auto call = on_chip_call<Policy>(a);
  const auto launch_on = [&](auto of) {
    ClusterPlan<decltype(of), CallOf<Policy, Args>> plan(call, device);
    plan.run(launch, kForward ? "lstm_forward_kernel_cluster" : "lstm_backward_kernel_cluster");
  };
  visit_cluster_shapes<Policy>(a, Numbered(shape, launch_on));
}

}  // namespace fastlstm::cuda

// Launches the recurrence on clusters, where there is a shape for it and the device has room for its clusters.
#pragma once

#include "clusters.h"
#include "launch.h"
#include "on_chip_call.h"
#include "tiles.h"

namespace fastlstm::cuda {

// How the clusters of a call are launched.
template <class Call>
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
    config_.numAttrs = blocks > 1 ? 1 : 0;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;

  // Whether the device has room for one cluster at least.
  bool fits() {
    const void* function = reinterpret_cast<const void*>(kernel_);
    bool fine = allow_shared_bytes(function, config_.dynamicSmemBytes);
    if (fine && config_.numAttrs > 0) {
      // On a GPU for which there is only the PTX of an older architecture, the kernel is there, but empty.
      cudaFuncAttributes code{};
      int resident = 0;
      fine = cudaFuncGetAttributes(&code, function) == cudaSuccess && code.ptxVersion >= 90 &&
             cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
             cudaOccupancyMaxActiveClusters(&resident, kernel_, &config_) == cudaSuccess && resident > 0;
    }
    if (!fine) cudaGetLastError();  // a "no" is not an error, and must not be reported as the next call's
    return fine;
  }

  void operator()(Launcher& launch, const char* name, const Call& call) { launch.configured(name, kernel_, config_, call); }

 private:
  Kernel kernel_;
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

// One block needs no cluster where it holds all units.
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

// Launches `call` on clusters of a shape, or with no launcher only asks; false if the device has no room for them.
template <class Shape, class Call>
bool launch_on_clusters(Launcher* launch, const char* name, const Call& call) {
  const Sizes& s = call.sizes;
  const int blocks = static_cast<int>((s.H + Shape::kUnits - 1) / Shape::kUnits);
  const int64_t clusters = (s.N + Shape::kRows - 1) / Shape::kRows;
  ClusterLaunch<Call> cluster(kernel_for<Shape>(call), blocks, clusters, s.D, Shape::kThreads, Shape::kSharedBytes);
  if (!cluster.fits()) return false;
  if (launch != nullptr) cluster(*launch, name, call);
  return true;
}

// Predicted clocks of a step on clusters of a shape, for all rows: the tensor cores' or shared memory's part of the product,
// whichever is longer, and what the cell and the exchange take. Clusters that find no room wait for others to end.
template <class Shape>
int64_t cluster_clocks(const Sizes& s, int multiprocessors) {
  constexpr int64_t kMma = 7, kSchedulers = 4, kSharedBytesPerClock = 128, kRest = 900;
  constexpr int64_t kWarps = Shape::kThreads / 32, kTilesK = Shape::kChunks * Shape::kTilesN;
  constexpr int64_t kMmas = (kWarps + kSchedulers - 1) / kSchedulers * Shape::kTilesM * kTilesK * kMma;
  constexpr int64_t kShared = (Shape::kWeightBytes + kWarps * kTilesK * 256) / kSharedBytesPerClock;
  const int64_t blocks = (s.H + Shape::kUnits - 1) / Shape::kUnits, at_once = multiprocessors / blocks;
  const int64_t clusters = (s.N + Shape::kRows - 1) / Shape::kRows * s.D;
  const int64_t rounds = at_once > 0 ? (clusters + at_once - 1) / at_once : clusters;
  return rounds * (kRest + (kMmas > kShared ? kMmas : kShared));
}

// Asks take(shape) with the shape for H, with 8 or 16 rows a cluster, that is predicted to be fastest, unless the step kernels, at
// `step_clocks`, are; take says whether it was served.
template <template <class, int> class Shapes, class Policy, class Take>
bool visit_shape(const Sizes& s, const DeviceFacts& device, int64_t step_clocks, const Take& take) {
  bool taken = false;
  int64_t clocks[2] = {INT64_MAX, INT64_MAX};
  const auto predict = [&](int64_t& to) {
    return [&](auto shape) {
      using Shape = decltype(shape);
      if (!kInClusters<Shape> || device.capability >= 9) to = cluster_clocks<Shape>(s, device.multiprocessors);
    };
  };
  const auto ask = [&](auto shape) { taken = take(shape); };
  Shapes<Policy, 1>::visit(s.H, predict(clocks[0]));
  Shapes<Policy, 2>::visit(s.H, predict(clocks[1]));
  if (clocks[0] <= clocks[1] && clocks[0] <= step_clocks) {
    Shapes<Policy, 1>::visit(s.H, ask);
  } else if (clocks[1] <= step_clocks) {
    Shapes<Policy, 2>::visit(s.H, ask);
  }
  return taken;
}

template <class Policy>
bool run_clusters(const ForwardArgs& a, Launcher* launch) {
  using IO = typename Policy::IO;
  if (!on_chip_may_take(a.sizes, a.weight_hr)) return false;
  const auto call = on_chip_call<Policy>(a);
  const DeviceFacts device;
  const Sizes& s = a.sizes;
  const int64_t in_steps = choose_tile(s.N, s.H, 4, s.H * sizeof(IO), s.D, device, false).clocks;
  return visit_shape<ForwardShapes, Policy>(s, device, in_steps, [&](auto shape) {
    return launch_on_clusters<decltype(shape)>(launch, "lstm_forward_kernel_cluster", call);
  });
}

template <class Policy>
bool run_clusters(const BackwardArgs& a, Launcher* launch) {
  using IO = typename Policy::IO;
  if (!on_chip_may_take(a.sizes, a.weight_hr)) return false;
  const auto call = on_chip_call<Policy>(a);
  const DeviceFacts device;
  const Sizes& s = a.sizes;
  const int64_t in_steps = choose_tile(s.N, s.H, 1, 4 * s.H * sizeof(IO), s.D, device, false).clocks;
  return visit_shape<BackwardShapes, Policy>(s, device, in_steps, [&](auto shape) {
    return launch_on_clusters<decltype(shape)>(launch, "lstm_backward_kernel_cluster", call);
  });
}

}  // namespace fastlstm::cuda

// Launches the recurrence on clusters, where there is a shape for it and the device has room for its clusters.
#pragma once

#include <algorithm>
#include <atomic>

#include "clusters.h"
#include "costs.h"
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

  // How many clusters run at once; 0 where the device has no room for one, or no code.
  int resident(const DeviceFacts& device) {
    const void* function = reinterpret_cast<const void*>(kernel_);
    int clusters = device.multiprocessors;
    bool fine = allow_shared_bytes(function, config_.dynamicSmemBytes);
    if (fine && config_.numAttrs > 0) {
      // On a GPU for which there is only the PTX of an older architecture, the kernel is there, but empty.
      cudaFuncAttributes code{};
      fine = cudaFuncGetAttributes(&code, function) == cudaSuccess && code.ptxVersion >= 90 &&
             cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
             cudaOccupancyMaxActiveClusters(&clusters, kernel_, &config_) == cudaSuccess;
    }
    if (!fine) cudaGetLastError();  // a "no" is not an error, and must not be reported as the next call's
    return fine ? clusters : 0;
  }

  void operator()(Launcher& launch, const char* name, const Call& call) { launch.configured(name, kernel_, config_, call); }

 private:
  Kernel kernel_;
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

// What ask() said of this device before, or says now: a number of 15 bits. Asking the device takes longer than a step, and its answer
// stays the same.
template <class Ask>
int known(std::atomic<uint64_t>& answer, const DeviceFacts& device, const Ask& ask) {
  const uint64_t asked = device.fingerprint() << 16 | 1, before = answer.load(std::memory_order_relaxed);
  if ((before & ~uint64_t{0xfffe}) == asked) return static_cast<int>((before & 0xfffe) >> 1);
  const int now = ask();
  answer.store(asked | static_cast<uint64_t>(now) << 1, std::memory_order_relaxed);
  return now;
}

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

// One call on one shape.
template <class Shape, class Call>
class ClusterPlan {
 public:
  ClusterPlan(const Call& call, const DeviceFacts& device)
      : call_(call),
        blocks_(static_cast<int>((call.sizes.H + Shape::kUnits - 1) / Shape::kUnits)),
        clusters_((call.sizes.N + Shape::kRows - 1) / Shape::kRows),
        multiprocessors_(device.multiprocessors),
        launch_(kernel_for<Shape>(call), blocks_, clusters_, call.sizes.D, Shape::kThreads, Shape::kSharedBytes),
        resident_(kInClusters<Shape> && device.capability < 9 ? 0 : known_resident(device)) {}

  // Predicted clocks of a step for all rows, INT64_MAX where it cannot run: the product; what other blocks send, at the rate of
  // distributed shared memory; and what the cell and the exchange take whatever their size. Clusters that find no room wait for others
  // to end, and blocks on one multiprocessor share it.
  int64_t clocks() const {
    if (resident_ == 0) return INT64_MAX;
    const int64_t all = clusters_ * call_.sizes.D, rounds = (all + resident_ - 1) / resident_;
    const int64_t together = (std::min<int64_t>(all, resident_) * blocks_ + multiprocessors_ - 1) / multiprocessors_;
    const int64_t received = (blocks_ - 1) * Shape::kSentBytes / costs::kReceivedBytesPerClock;
    return rounds * (costs::kClusterStep + together * (Shape::kProductClocks + received));
  }

  void run(Launcher& launch, const char* name) { launch_(launch, name, call_); }

 private:
  int known_resident(const DeviceFacts& device) {
    static std::atomic<uint64_t> answers[kMostInCluster + 1];
    return known(answers[blocks_], device, [&] { return launch_.resident(device); });
  }

  const Call& call_;
  int blocks_;
  int64_t clusters_;
  int multiprocessors_;
  ClusterLaunch<Call> launch_;
  int resident_;
};

// Runs the call on clusters with 8 or 16 rows, whichever is predicted to be faster, or with no launcher only asks; false where the
// step kernels, at `in_steps`, are predicted to be faster than both.
template <template <class, int> class Shapes, class Policy, class Call>
bool run_on_clusters(const Call& call, const char* name, int64_t in_steps, Launcher* launch) {
  const DeviceFacts device;
  int64_t best = INT64_MAX;
  const auto visit_both = [&](const auto& use) {
    Shapes<Policy, 1>::visit(call.sizes.H, use);
    Shapes<Policy, 2>::visit(call.sizes.H, use);
  };
  visit_both([&](auto shape) { best = std::min(best, ClusterPlan<decltype(shape), Call>(call, device).clocks()); });
  if (best == INT64_MAX || best > in_steps) return false;
  bool taken = false;
  visit_both([&](auto shape) {
    ClusterPlan<decltype(shape), Call> plan(call, device);
    if (taken || plan.clocks() != best) return;
    taken = true;
    if (launch != nullptr) plan.run(*launch, name);
  });
  return taken;
}

template <class Policy>
bool run_clusters(const ForwardArgs& a, Launcher* launch) {
  const Sizes& s = a.sizes;
  if (!on_chip_may_take(s)) return false;
  const int64_t in_steps = choose_tile<Policy, 4>(s.N, s.H, s.H, s.D, DeviceFacts()).clocks;
  return run_on_clusters<ForwardShapes, Policy>(on_chip_call<Policy>(a), "lstm_forward_kernel_cluster", in_steps, launch);
}

template <class Policy>
bool run_clusters(const BackwardArgs& a, Launcher* launch) {
  const Sizes& s = a.sizes;
  if (!on_chip_may_take(s)) return false;
  const int64_t in_steps = choose_tile<Policy, 1>(s.N, s.H, 4 * s.H, s.D, DeviceFacts()).clocks;
  return run_on_clusters<BackwardShapes, Policy>(on_chip_call<Policy>(a), "lstm_backward_kernel_cluster", in_steps, launch);
}

}  // namespace fastlstm::cuda

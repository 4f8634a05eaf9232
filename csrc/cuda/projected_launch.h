// Launches the recurrence with a projection on clusters or on the grid, where there is a shape for it, the device has room, and it is
// predicted to be faster than the step kernels.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../core/layout.h"
#include "cluster_launch.h"
#include "projected_shapes.h"

namespace fastlstm::cuda {

// One call on one shape: its blocks, its slices, and what a step is predicted to take.
template <class Shape>
struct ProjectedPlan {
  int64_t blocks, groups, D;
  Slices slices;

  explicit ProjectedPlan(const Sizes& s)
      : blocks((s.H + Shape::kUnits - 1) / Shape::kUnits),
        groups((s.N + Shape::kRows - 1) / Shape::kRows),
        D(s.D),
        slices(s.P, static_cast<int>(std::min<int64_t>(blocks, Shape::kMostBlocks))) {}

  bool serves(const Sizes& s, const DeviceFacts& device) const {
    return blocks <= Shape::kMostBlocks && s.P <= Shape::kMostOutputs && slices.size() <= Shape::kUnits &&
           Shape::kSharedBytes <= static_cast<size_t>(device.shared_bytes);
  }

  static constexpr int64_t kProductClocks = Shape::Shared::kProductClocks + Shape::Own::kProductClocks;
  // Of the parts that come into a block, two rows at a time, and of the outputs.
  int64_t part_bytes(const Sizes& s) const {
    const int64_t rows = std::min<int64_t>(s.N, Shape::kRows);
    return blocks * Shape::Own::kWarpsK * slices.size() * ((rows + 1) / 2 * 2) * static_cast<int64_t>(sizeof(float));
  }
  int64_t output_bytes(const Sizes& s) const {
    return slices.outputs() * std::min<int64_t>(s.N, Shape::kRows) * static_cast<int64_t>(sizeof(typename Shape::IO));
  }
};

template <class Shape, class IO, class Acc>
auto projected_cluster_kernel(const ClusterForwardCall<IO, Acc>&) {
  return lstm_forward_kernel_projected_cluster<Shape>;
}
template <class Shape, class IO, class Acc>
auto projected_cluster_kernel(const ClusterBackwardCall<IO, Acc>&) {
  return lstm_backward_kernel_projected_cluster<Shape>;
}
template <class Shape, class IO, class Acc>
auto projected_grid_kernel(const ClusterForwardCall<IO, Acc>&) {
  return lstm_forward_kernel_projected_grid<Shape>;
}
template <class Shape, class IO, class Acc>
auto projected_grid_kernel(const ClusterBackwardCall<IO, Acc>&) {
  return lstm_backward_kernel_projected_grid<Shape>;
}

// The clusters of a shape for a call.
template <class Shape, class Call>
class ProjectedClusters {
 public:
  ProjectedClusters(const Call& call, const DeviceFacts& device)
      : call_(call),
        plan_(call.sizes),
        launch_(projected_cluster_kernel<Shape>(call), static_cast<int>(plan_.blocks), plan_.groups, plan_.D, Shape::kThreads,
                Shape::kSharedBytes),
        resident_(serves(device) ? known_resident(device) : 0) {}

  // Predicted clocks of a step for all rows, INT64_MAX where it cannot run: both products; what other blocks send; and twice what an
  // exchange and what comes before it take, within a block alone the barriers in place of it. Clusters that find no room wait for
  // others to end.
  int64_t clocks() const {
    constexpr int64_t kStep = kCluster ? 2 * costs::kClusterStep : costs::kClusterStep;
    if (resident_ == 0) return INT64_MAX;
    const Sizes& s = call_.sizes;
    const int64_t rounds = (plan_.groups * plan_.D + resident_ - 1) / resident_;
    const int64_t received = (plan_.part_bytes(s) + plan_.output_bytes(s)) * (plan_.blocks - 1) / plan_.blocks;
    return rounds * (kStep + plan_.kProductClocks + received / costs::kReceivedBytesPerClock);
  }

  void run(Launcher& launch, const char* name) { launch_(launch, name, call_); }

 private:
  static constexpr bool kCluster = Shape::kMostBlocks > 1;

  bool serves(const DeviceFacts& device) const {
    return plan_.serves(call_.sizes, device) && (!kCluster || device.capability >= 9);
  }
  int known_resident(const DeviceFacts& device) {
    static std::atomic<uint64_t> answers[Shape::kMostBlocks + 1];
    return known(answers[plan_.blocks], device, [&] { return launch_.resident(device); });
  }

  const Call& call_;
  ProjectedPlan<Shape> plan_;
  ClusterLaunch<Call> launch_;
  int resident_;
};

// Predicted clocks of a step on the grid, INT64_MAX where it cannot run: all blocks must run at once, one to a multiprocessor, and
// their count over all steps must stay within 32 bits. Parts are written to the second-level cache, and read again.
template <class Shape>
int64_t projected_grid_clocks(const Sizes& s, const DeviceFacts& device) {
  constexpr int64_t kMostCount = int64_t{1} << 30;
  const ProjectedPlan<Shape> plan(s);
  if (!plan.serves(s, device) || plan.groups > device.multiprocessors ||
      plan.blocks * plan.groups * plan.D > device.multiprocessors || s.T >= kMostCount / plan.blocks) {
    return INT64_MAX;
  }
  const int64_t bytes = 2 * plan.part_bytes(s) + plan.output_bytes(s);
  return 2 * costs::kGridStep + plan.kProductClocks + bytes / costs::kCacheBytesPerClock;
}

// Launches `call` on the grid, or with no launcher says in `bytes` what memory it would need; false if the device has no room.
template <class Shape, class Call>
bool launch_projected_grid(Launcher* launch, const char* name, const Call& call, void* workspace, size_t& bytes) {
  using Reduction = GridReduction<Shape>;
  const ProjectedPlan<Shape> plan(call.sizes);
  const auto kernel = projected_grid_kernel<Shape>(call);
  if (!allow_shared_bytes(reinterpret_cast<const void*>(kernel), Shape::kSharedBytes)) return false;
  Layout layout(static_cast<char*>(workspace));
  const int64_t groups = plan.groups * plan.D;
  ProjectedGridMemory memory;
  memory.counters = layout.array<int>(groups * 2 * GridMemory::kCounterStride);
  memory.states = layout.array<unsigned char>(groups * Shape::kRows * Reduction::kRowBytes);
  const size_t cleared = layout.used();
  memory.parts =
      layout.array<float>(groups * plan.slices.count * plan.blocks * Shape::Own::kWarpsK * Shape::part_floats(plan.slices));
  bytes = layout.used();
  if (launch == nullptr) return true;
  launch->clear(name, workspace, cleared);
  const dim3 blocks(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.groups), static_cast<unsigned>(plan.D));
  launch->cooperative(name, kernel, blocks, Shape::kThreads, Shape::kSharedBytes, call, memory);
  return true;
}

// Calls use with each shape of 8 and of 16 rows.
template <template <class, int> class Shapes, class Policy, class Use>
void visit_projected(const Use& use) {
  Shapes<Policy, 1>::visit(use);
  Shapes<Policy, 2>::visit(use);
}

// What the two launches of a step are predicted to take.
template <class Policy>
int64_t projected_step_clocks(const ForwardArgs& a, const DeviceFacts& device) {
  const Sizes& s = a.sizes;
  return choose_tile<Policy, 4>(s.N, s.H, s.P, s.D, device).clocks + choose_tile<Policy, 1>(s.N, s.P, s.H, s.D, device).clocks;
}
template <class Policy>
int64_t projected_step_clocks(const BackwardArgs& a, const DeviceFacts& device) {
  const Sizes& s = a.sizes;
  return choose_tile<Policy, 1>(s.N, s.P, 4 * s.H, s.D, device).clocks + choose_tile<Policy, 1>(s.N, s.H, s.P, s.D, device).clocks;
}

// Runs the call on the clusters that are predicted to be fastest, or with no launcher only asks; false where the step kernels are.
template <template <class, int> class Shapes, class Policy, class Args>
bool run_on_projected_clusters(const Args& a, const char* name, Launcher* launch) {
  if (a.weight_hr == nullptr || !on_chip_may_take(a.sizes)) return false;
  const DeviceFacts device;
  const auto call = on_chip_call<Policy>(a);
  using Call = std::remove_const_t<decltype(call)>;
  int64_t best = INT64_MAX;
  visit_projected<Shapes, Policy>(
      [&](auto shape) { best = std::min(best, ProjectedClusters<decltype(shape), Call>(call, device).clocks()); });
  if (best == INT64_MAX || best > projected_step_clocks<Policy>(a, device)) return false;
  bool taken = false;
  visit_projected<Shapes, Policy>([&](auto shape) {
    ProjectedClusters<decltype(shape), Call> clusters(call, device);
    if (taken || clusters.clocks() != best) return;
    taken = true;
    if (launch != nullptr) clusters.run(*launch, name);
  });
  return taken;
}

// The same on the grid, where `bytes` is set to what memory it needs.
template <template <class, int> class Shapes, class Policy, class Args>
bool run_on_projected_grid(const Args& a, const char* name, Launcher* launch, void* workspace, size_t& bytes) {
  if (a.weight_hr == nullptr || !on_chip_may_take(a.sizes)) return false;
  const DeviceFacts device;
  const auto call = on_chip_call<Policy>(a);
  int64_t best = INT64_MAX;
  visit_projected<Shapes, Policy>(
      [&](auto shape) { best = std::min(best, projected_grid_clocks<decltype(shape)>(a.sizes, device)); });
  if (best == INT64_MAX || best > projected_step_clocks<Policy>(a, device)) return false;
  bool taken = false;
  visit_projected<Shapes, Policy>([&](auto shape) {
    using Shape = decltype(shape);
    if (taken || projected_grid_clocks<Shape>(a.sizes, device) != best) return;
    taken = launch_projected_grid<Shape>(launch, name, call, workspace, bytes);
  });
  return taken;
}

template <class Policy>
bool run_projected_clusters(const ForwardArgs& a, Launcher* launch) {
  return run_on_projected_clusters<ProjectedForwardShapes, Policy>(a, "lstm_forward_kernel_projected_cluster", launch);
}
template <class Policy>
bool run_projected_clusters(const BackwardArgs& a, Launcher* launch) {
  return run_on_projected_clusters<ProjectedBackwardShapes, Policy>(a, "lstm_backward_kernel_projected_cluster", launch);
}
template <class Policy>
bool run_projected_grid(const ForwardArgs& a, Launcher* launch, void* workspace, size_t& bytes) {
  return run_on_projected_grid<ProjectedForwardGridShapes, Policy>(a, "lstm_forward_kernel_projected_grid", launch, workspace, bytes);
}
template <class Policy>
bool run_projected_grid(const BackwardArgs& a, Launcher* launch, void* workspace, size_t& bytes) {
  return run_on_projected_grid<ProjectedBackwardGridShapes, Policy>(a, "lstm_backward_kernel_projected_grid", launch, workspace, bytes);
}

}  // namespace fastlstm::cuda

// Launches the recurrence with a projection on clusters or on the grid, if there is a shape for it and the device has
// room.
#pragma once

#include "cuda/cluster/launch.h"
#include "cuda/grid/launch.h"
#include "cuda/projected/shapes.h"

namespace fastlstm::cuda {

// A call with one shape: its blocks, its slices, and the predicted time of a step.
template <class Shape>
struct ProjectedPlan {
  int64_t blocks, groups, D;
  Slices slices;

  explicit ProjectedPlan(const Sizes& s)
      : blocks((s.H + Shape::kUnits - 1) / Shape::kUnits),
        groups((s.N + Shape::kRows - 1) / Shape::kRows),
        D(s.D),
        slices(s.P, static_cast<int>(std::min<int64_t>(blocks, Shape::kMostBlocks))) {}

  bool serves(const Sizes& s) const {
    return blocks <= Shape::kMostBlocks && s.P <= Shape::kMostOutputs && slices.size() <= Shape::kUnits;
  }

  static constexpr int64_t kProductClocks = Shape::Shared::kProductClocks + Shape::Own::kProductClocks;
  static constexpr int64_t kWeightClocks = (Shape::Shared::kLoads + Shape::Own::kLoads) * costs::kMemory;
  // Bytes of parts that come into a block, two rows at a time, and of outputs.
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
class ProjectedClusterPlan {
 public:
  ProjectedClusterPlan(const Call& call, const DeviceFacts& device)
      : call_(call),
        plan_(call.sizes),
        launch_(projected_cluster_kernel<Shape>(call), static_cast<int>(plan_.blocks), plan_.groups, plan_.D,
                Shape::kThreads, Shape::kSharedBytes),
        resident_(plan_.serves(call.sizes) && blocks_serve(plan_.blocks, kCluster) &&
                          (!kCluster || device.capability >= 9)
                      ? known_resident(device)
                      : 0) {}

  // Predicted clocks of a step for all rows: both products; what other blocks send; and two constants for the exchanges
  // and what comes before them, or for barriers in a single block. Clusters without room wait for others to end.
  Offer offer() const {
    constexpr int64_t kStep = kCluster ? 2 * costs::kClusterStep : costs::kClusterStep;
    if (resident_ == 0) return {};
    const Sizes& s = call_.sizes;
    const int64_t rounds = (plan_.groups * plan_.D + resident_ - 1) / resident_;
    const int64_t received = (plan_.part_bytes(s) + plan_.output_bytes(s)) * (plan_.blocks - 1) / plan_.blocks;
    const int64_t step = kStep + plan_.kProductClocks + received / costs::received_bytes_per_clock(plan_.blocks);
    return {rounds * step, costs::kLaunch + rounds * plan_.kWeightClocks};
  }

  void run(Launcher& launch, const char* name) { launch_(launch, name, call_); }

 private:
  static constexpr bool kCluster = Shape::kMostBlocks > 1;

  int known_resident(const DeviceFacts& device) {
    static std::atomic<uint64_t> answers[Shape::kMostBlocks + 1];
    return known(answers[plan_.blocks], device, [&] { return launch_.resident(device); });
  }

  const Call& call_;
  ProjectedPlan<Shape> plan_;
  ClusterLaunch<Call, kCluster> launch_;
  int resident_;
};

// The grid's offer for a call: parts are written to the second-level cache and read again.
template <class Shape, class Call>
Offer projected_grid_offer(const Call& call, const DeviceFacts& device) {
  static std::atomic<uint64_t> answer;
  const Sizes& s = call.sizes;
  const ProjectedPlan<Shape> plan(s);
  const auto ask = [&] {
    return resident_blocks(projected_grid_kernel<Shape>(call), Shape::kThreads, Shape::kSharedBytes, device);
  };
  if (!plan.serves(s) || !blocks_fit(plan.blocks, plan.groups, plan.D, s.T, known(answer, device, ask))) return {};
  const int64_t bytes = 2 * plan.part_bytes(s) + plan.output_bytes(s);
  const int64_t step =
      2 * costs::kGridStep + plan.kProductClocks + costs::cache_clocks(plan.blocks * plan.groups * plan.D, bytes);
  return {step, 2 * costs::kLaunch + plan.kWeightClocks};
}

// Where the blocks' memory is in a workspace of `used` bytes, of which the first `cleared` are zero at the launch.
template <class Shape>
struct ProjectedGridLayout {
  ProjectedGridMemory memory;
  size_t cleared, used;

  ProjectedGridLayout(const ProjectedPlan<Shape>& plan, void* workspace) {
    Layout layout(static_cast<char*>(workspace));
    const int64_t groups = plan.groups * plan.D;
    memory.counters = layout.array<int>(groups * 2 * GridMemory::kCounterStride);
    memory.states = layout.array<unsigned char>(groups * Shape::kRows * GridReduction<Shape>::kRowBytes);
    cleared = layout.used();
    memory.parts = layout.array<float>(groups * plan.slices.count * plan.blocks * Shape::Own::kWarpsK *
                                       Shape::part_floats(plan.slices));
    used = layout.used();
  }
};

// use(each shape), in the order of their numbers: with 8 rows, then with 16.
template <template <class, int> class Shapes, class Policy, class Use>
void visit_projected(const Use& use) {
  Shapes<Policy, 1>::visit(use);
  Shapes<Policy, 2>::visit(use);
}
template <class Policy, class Use>
void visit_projected_clusters(const ForwardArgs&, const Use& use) {
  visit_projected<ProjectedForwardShapes, Policy>(use);
}
template <class Policy, class Use>
void visit_projected_clusters(const BackwardArgs&, const Use& use) {
  visit_projected<ProjectedBackwardShapes, Policy>(use);
}
template <class Policy, class Use>
void visit_projected_grids(const ForwardArgs&, const Use& use) {
  visit_projected<ProjectedForwardGridShapes, Policy>(use);
}
template <class Policy, class Use>
void visit_projected_grids(const BackwardArgs&, const Use& use) {
  visit_projected<ProjectedBackwardGridShapes, Policy>(use);
}

template <class Policy, class Args>
Offer ProjectedClusterKernels<Policy, Args>::offer(const Args& a, const DeviceFacts& device, int only) {
  if (!on_chip_may_take(a.sizes)) return {};
  const auto call = on_chip_call<Policy>(a);
  BestShape best(a.sizes.T, only);
  visit_projected_clusters<Policy>(
      a, [&](auto of) { best.add(ProjectedClusterPlan<decltype(of), CallOf<Policy, Args>>(call, device).offer()); });
  return best.offer();
}

template <class Policy, class Args>
size_t ProjectedClusterKernels<Policy, Args>::workspace(const Args&, int) {
  return 0;
}

template <class Policy, class Args>
void ProjectedClusterKernels<Policy, Args>::run(const Args& a, int shape, void*, Launcher& launch) {
  constexpr bool kForward = std::is_same_v<Args, ForwardArgs>;
  const DeviceFacts device;
  const auto call = on_chip_call<Policy>(a);
  const auto launch_on = [&](auto of) {
    ProjectedClusterPlan<decltype(of), CallOf<Policy, Args>> clusters(call, device);
    clusters.run(launch, kForward ? "lstm_forward_kernel_projected_cluster" : "lstm_backward_kernel_projected_cluster");
  };
  visit_projected_clusters<Policy>(a, Numbered(shape, launch_on));
}

template <class Policy, class Args>
Offer ProjectedGridKernels<Policy, Args>::offer(const Args& a, const DeviceFacts& device, int only) {
  if (!on_chip_may_take(a.sizes)) return {};
  const auto call = on_chip_call<Policy>(a);
  BestShape best(a.sizes.T, only);
  visit_projected_grids<Policy>(a, [&](auto of) { best.add(projected_grid_offer<decltype(of)>(call, device)); });
  return best.offer();
}

template <class Policy, class Args>
size_t ProjectedGridKernels<Policy, Args>::workspace(const Args& a, int shape) {
  size_t bytes = 0;
  const auto read = [&](auto of) {
    using Shape = decltype(of);
    bytes = ProjectedGridLayout<Shape>(ProjectedPlan<Shape>(a.sizes), nullptr).used;
  };
  visit_projected_grids<Policy>(a, Numbered(shape, read));
  return bytes;
}

template <class Policy, class Args>
void ProjectedGridKernels<Policy, Args>::run(const Args& a, int shape, void* workspace, Launcher& launch) {
  constexpr bool kForward = std::is_same_v<Args, ForwardArgs>;
  const char* name = kForward ? "lstm_forward_kernel_projected_grid" : "lstm_backward_kernel_projected_grid";
  const auto call = on_chip_call<Policy>(a);
  const auto launch_on = [&](auto of) {
    using Shape = decltype(of);
    const ProjectedPlan<Shape> plan(a.sizes);
    const ProjectedGridLayout<Shape> layout(plan, workspace);
    launch.clear(name, workspace, layout.cleared);
    const dim3 blocks(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.groups),
                      static_cast<unsigned>(plan.D));
    launch.cooperative(name, projected_grid_kernel<Shape>(call), blocks, Shape::kThreads, Shape::kSharedBytes, call,
                       layout.memory);
  };
  visit_projected_grids<Policy>(a, Numbered(shape, launch_on));
}

}  // namespace fastlstm::cuda

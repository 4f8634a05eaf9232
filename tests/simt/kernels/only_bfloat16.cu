// The recurrence of csrc/cuda for bfloat16 alone: in steps, with ON_CLUSTERS on small clusters, with ON_GRID on a grid of small
// blocks, with PROJECTED too for a layer with a projection. For tests that compile it often.
#include "backward_steps.h"
#include "clusters.h"
#include "forward_steps.h"
#include "grid_kernels.h"
#include "projected_shapes.h"

namespace fastlstm::cuda {

template <class Shape>
struct OneShape {
  template <class Use>
  static void visit(int64_t, const Use& use) {
    use(Shape{});
  }
};

// All for H up to 64. Clusters of blocks with 16 units each.
template <int kTilesN>
struct ForwardShapes<BFloat16Product, kTilesN> : OneShape<ForwardShape<StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>>> {};
template <int kTilesN>
struct BackwardShapes<BFloat16Product, kTilesN> : OneShape<BackwardShape<StationaryShape<BFloat16Product, 2, 2, 2, 2, 0, 1>>> {};

// Blocks with 8 and 16 units.
template <int kTilesN>
struct ForwardGridShapes<BFloat16Product, kTilesN> : OneShape<ForwardShape<StationaryShape<BFloat16Product, 1, 2, 2, 2, 0, 1>, 1>> {
};
template <int kTilesN>
struct BackwardGridShapes<BFloat16Product, kTilesN>
    : OneShape<BackwardGridShape<StationaryShape<BFloat16Product, 1, 2, 1, 4, 4, 1>>> {};

// With a projection, both on blocks with 16 units, for P up to 64.
template <template <class, class, int> class Projected, class Shared, class Own>
struct OneProjectedShape {
  template <class Use>
  static void visit(const Use& use) {
    use(Projected<Shared, Own, 8>{});
  }
};
using ProjectedForwardOnce = OneProjectedShape<ProjectedForwardShape, StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>,
                                               StationaryShape<BFloat16Product, 2, 1, 2, 2, 0, 1>>;
using ProjectedBackwardOnce = OneProjectedShape<ProjectedBackwardShape, StationaryShape<BFloat16Product, 1, 2, 1, 2, 0, 1>,
                                                StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>>;
template <int kTilesN>
struct ProjectedForwardShapes<BFloat16Product, kTilesN> : ProjectedForwardOnce {};
template <int kTilesN>
struct ProjectedBackwardShapes<BFloat16Product, kTilesN> : ProjectedBackwardOnce {};
template <int kTilesN>
struct ProjectedForwardGridShapes<BFloat16Product, kTilesN> : ProjectedForwardOnce {};
template <int kTilesN>
struct ProjectedBackwardGridShapes<BFloat16Product, kTilesN> : ProjectedBackwardOnce {};

}  // namespace fastlstm::cuda

#include "cluster_launch.h"
#include "grid_launch.h"
#include "projected_launch.h"

namespace fastlstm::cuda {

// Without a launcher only the workspace is asked for.
template <class Args>
bool run_on_chip(const Args& args, Launcher* launch, void* workspace, size_t& bytes) {
  bytes = 0;
#if defined(ON_CLUSTERS) && defined(PROJECTED)
  return run_projected_clusters<BFloat16Product>(args, launch);
#elif defined(ON_CLUSTERS)
  return run_clusters<BFloat16Product>(args, launch);
#elif defined(ON_GRID) && defined(PROJECTED)
  return run_projected_grid<BFloat16Product>(args, launch, workspace, bytes);
#elif defined(ON_GRID)
  return run_grid<BFloat16Product>(args, launch, workspace, bytes);
#else
  bytes = steps_workspace<BFloat16Product>(args);
  if (launch != nullptr) run_steps<BFloat16Product>(args, workspace, *launch);
  return true;
#endif
}

template <class Args>
size_t workspace_of(const Args& args) {
  size_t bytes = 0;
  run_on_chip(args, nullptr, nullptr, bytes);
  return bytes;
}

template <class Args>
Status run(const Args& args, void* workspace, void* stream) {
  Launcher launch(args.sizes, stream);
  size_t bytes = 0;
  if (!run_on_chip(args, &launch, workspace, bytes)) return {1, "the family does not take these sizes"};
  return launch.status();
}

size_t forward_workspace(const ForwardArgs& args) { return workspace_of(args); }
size_t backward_workspace(const BackwardArgs& args) { return workspace_of(args); }

Status forward(const ForwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }
Status backward(const BackwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }

}  // namespace fastlstm::cuda

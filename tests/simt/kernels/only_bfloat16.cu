// The recurrence of csrc/cuda for bfloat16 alone: in steps, with ON_CLUSTERS on small clusters, with ON_GRID on a grid
// of small blocks, with PROJECTED too for a layer with a projection. For tests that compile it often.
#include "cuda/cluster/shapes.h"
#include "cuda/grid/kernels.h"
#include "cuda/projected/shapes.h"

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
struct ForwardShapes<BFloat16Product, kTilesN>
    : OneShape<ForwardShape<StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>>> {};
template <int kTilesN>
struct BackwardShapes<BFloat16Product, kTilesN>
    : OneShape<BackwardShape<StationaryShape<BFloat16Product, 2, 2, 2, 2, 0, 1>>> {};

// Blocks with 8 and 16 units.
template <int kTilesN>
struct ForwardGridShapes<BFloat16Product, kTilesN>
    : OneShape<ForwardShape<StationaryShape<BFloat16Product, 1, 2, 2, 2, 0, 1>, 1>> {};
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
using ProjectedForwardOnce =
    OneProjectedShape<ProjectedForwardShape, StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>,
                      StationaryShape<BFloat16Product, 2, 1, 2, 2, 0, 1>>;
using ProjectedBackwardOnce =
    OneProjectedShape<ProjectedBackwardShape, StationaryShape<BFloat16Product, 1, 2, 1, 2, 0, 1>,
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

#include "cuda/cluster/launch.h"
#include "cuda/grid/launch.h"
#include "cuda/projected/launch.h"
#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template <class Args>
#if defined(ON_CLUSTERS) && defined(PROJECTED)
using Only = ProjectedClusterKernels<BFloat16Product, Args>;
#elif defined(ON_CLUSTERS)
using Only = ClusterKernels<BFloat16Product, Args>;
#elif defined(ON_GRID) && defined(PROJECTED)
using Only = ProjectedGridKernels<BFloat16Product, Args>;
#elif defined(ON_GRID)
using Only = GridKernels<BFloat16Product, Args>;
#else
using Only = StepKernels<BFloat16Product, Args>;
#endif

template <class Args>
Choice choose_only(const Args& args) {
  Choice choice;
  choice.offer = Only<Args>::offer(args, DeviceFacts(), kAnyShape);
  if (choice.offer.possible()) choice.workspace = Only<Args>::workspace(args, choice.offer.shape);
  return choice;
}

template <class Args>
Status run(const Args& args, const Choice& choice, void* workspace, void* stream) {
  if (!choice.offer.possible()) return {1, "the family does not take these sizes"};
  Launcher launch(args.sizes, stream);
  Only<Args>::run(args, choice.offer.shape, workspace, launch);
  return launch.status();
}

Choice choose(const ForwardArgs& args) { return choose_only(args); }
Choice choose(const BackwardArgs& args) { return choose_only(args); }

Status forward(const ForwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}
Status backward(const BackwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}

}  // namespace fastlstm::cuda

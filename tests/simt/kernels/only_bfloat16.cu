// The recurrence of csrc/cuda for bfloat16 alone: in steps, with ON_CLUSTERS on small clusters, with ON_GRID on a grid of small
// blocks. For tests that compile it often.
#include "backward_steps.h"
#include "clusters.h"
#include "forward_steps.h"
#include "grid_kernels.h"

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

}  // namespace fastlstm::cuda

#include "cluster_launch.h"
#include "grid_launch.h"

namespace fastlstm::cuda {

#if defined(ON_CLUSTERS)

size_t forward_workspace(const ForwardArgs&) { return 0; }
size_t backward_workspace(const BackwardArgs&) { return 0; }

bool take(const ForwardArgs& args, Launcher& launch, void*) { return forward_on_clusters<BFloat16Product>(args, &launch); }
bool take(const BackwardArgs& args, Launcher& launch, void*) { return backward_on_clusters<BFloat16Product>(args, &launch); }

#elif defined(ON_GRID)

size_t forward_workspace(const ForwardArgs& args) {
  size_t bytes = 0;
  forward_on_grid<BFloat16Product>(args, nullptr, nullptr, bytes);
  return bytes;
}

size_t backward_workspace(const BackwardArgs& args) {
  size_t bytes = 0;
  backward_on_grid<BFloat16Product>(args, nullptr, nullptr, bytes);
  return bytes;
}

bool take(const ForwardArgs& args, Launcher& launch, void* workspace) {
  size_t bytes = 0;
  return forward_on_grid<BFloat16Product>(args, &launch, workspace, bytes);
}

bool take(const BackwardArgs& args, Launcher& launch, void* workspace) {
  size_t bytes = 0;
  return backward_on_grid<BFloat16Product>(args, &launch, workspace, bytes);
}

#endif

#if defined(ON_CLUSTERS) || defined(ON_GRID)

template <class Args>
Status run(const Args& args, void* workspace, void* stream) {
  Launcher launch(args.sizes, stream);
  if (!take(args, launch, workspace)) return {1, "the family does not take these sizes"};
  return launch.status();
}

Status forward(const ForwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }
Status backward(const BackwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }

#else

size_t forward_workspace(const ForwardArgs& args) { return ForwardSteps<BFloat16Product>(args, nullptr).workspace(); }
size_t backward_workspace(const BackwardArgs& args) { return BackwardSteps<BFloat16Product>(args, nullptr).workspace(); }

Status forward(const ForwardArgs& args, void* workspace, void* stream) {
  return ForwardSteps<BFloat16Product>(args, workspace).run(stream);
}

Status backward(const BackwardArgs& args, void* workspace, void* stream) {
  return BackwardSteps<BFloat16Product>(args, workspace).run(stream);
}

#endif

}  // namespace fastlstm::cuda

// The recurrence of csrc/cuda for bfloat16 alone, in steps or with ON_CLUSTERS on small clusters: for tests that compile it often.
#include "backward_steps.h"
#include "clusters.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

// Up to four blocks, with 16 units each.
template <int kTilesN>
struct ForwardShapes<BFloat16Product, kTilesN> {
  template <class Use>
  static void visit(int64_t, const Use& use) {
    use(ForwardShape<StationaryShape<BFloat16Product, 2, 1, 2, 2, 2, 1>>{});
  }
};

template <int kTilesN>
struct BackwardShapes<BFloat16Product, kTilesN> {
  template <class Use>
  static void visit(int64_t, const Use& use) {
    use(BackwardShape<StationaryShape<BFloat16Product, 2, 2, 2, 2, 0, 1>>{});
  }
};

}  // namespace fastlstm::cuda

#include "cluster_launch.h"

namespace fastlstm::cuda {

size_t forward_workspace(const ForwardArgs& args) { return ForwardSteps<BFloat16Product>(args, nullptr).workspace(); }
size_t backward_workspace(const BackwardArgs& args) { return BackwardSteps<BFloat16Product>(args, nullptr).workspace(); }

#if defined(ON_CLUSTERS)

Status forward(const ForwardArgs& args, void*, void* stream) {
  Launcher launch(args.sizes, stream);
  if (!forward_on_clusters<BFloat16Product>(args, &launch)) return {1, "no clusters for these sizes"};
  return launch.status();
}

Status backward(const BackwardArgs& args, void*, void* stream) {
  Launcher launch(args.sizes, stream);
  if (!backward_on_clusters<BFloat16Product>(args, &launch)) return {1, "no clusters for these sizes"};
  return launch.status();
}

#else

Status forward(const ForwardArgs& args, void* workspace, void* stream) {
  return ForwardSteps<BFloat16Product>(args, workspace).run(stream);
}

Status backward(const BackwardArgs& args, void* workspace, void* stream) {
  return BackwardSteps<BFloat16Product>(args, workspace).run(stream);
}

#endif

}  // namespace fastlstm::cuda

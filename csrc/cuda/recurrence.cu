// The entry points: which policy multiplies for a dtype.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

extern template class ForwardSteps<BFloat16Product>;
extern template class ForwardSteps<Float16Product>;
extern template class ForwardSteps<TF32Product>;
extern template class ForwardSteps<Float32Product>;
extern template class ForwardSteps<Float64Product>;
extern template class BackwardSteps<BFloat16Product>;
extern template class BackwardSteps<Float16Product>;
extern template class BackwardSteps<TF32Product>;
extern template class BackwardSteps<Float32Product>;
extern template class BackwardSteps<Float64Product>;

namespace {

template <template <class> class Steps, class Args, class Use>
auto with_policy(const Args& args, void* workspace, const Use& use) {
  switch (args.dtype) {
    case DType::kBFloat16: return use(Steps<BFloat16Product>(args, workspace));
    case DType::kFloat16: return use(Steps<Float16Product>(args, workspace));
    case DType::kFloat64: return use(Steps<Float64Product>(args, workspace));
    case DType::kFloat32: break;
  }
  return args.tf32 ? use(Steps<TF32Product>(args, workspace)) : use(Steps<Float32Product>(args, workspace));
}

constexpr auto kWorkspace = [](const auto& steps) { return steps.workspace(); };

}  // namespace

size_t forward_workspace(const ForwardArgs& args) { return with_policy<ForwardSteps>(args, nullptr, kWorkspace); }

size_t backward_workspace(const BackwardArgs& args) { return with_policy<BackwardSteps>(args, nullptr, kWorkspace); }

Status forward(const ForwardArgs& args, void* workspace, void* stream) {
  return with_policy<ForwardSteps>(args, workspace, [stream](auto steps) { return steps.run(stream); });
}

Status backward(const BackwardArgs& args, void* workspace, void* stream) {
  return with_policy<BackwardSteps>(args, workspace, [stream](auto steps) { return steps.run(stream); });
}

}  // namespace fastlstm::cuda

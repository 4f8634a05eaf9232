// The entry points: which family of kernels takes a call, and which policy multiplies for its dtype.

#include <cstdlib>
#include <cstring>

#include "backward_steps.h"
#include "cluster_launch.h"
#include "forward_steps.h"
#include "grid_launch.h"

namespace fastlstm::cuda {

#define FASTLSTM_COMPILED_ELSEWHERE(Policy)        \
  extern template class ForwardSteps<Policy>;      \
  extern template class BackwardSteps<Policy>;
FASTLSTM_COMPILED_ELSEWHERE(BFloat16Product)
FASTLSTM_COMPILED_ELSEWHERE(Float16Product)
FASTLSTM_COMPILED_ELSEWHERE(TF32Product)
FASTLSTM_COMPILED_ELSEWHERE(Float32Product)
FASTLSTM_COMPILED_ELSEWHERE(Float64Product)
#undef FASTLSTM_COMPILED_ELSEWHERE

#define FASTLSTM_COMPILED_ELSEWHERE(Policy)                                                    \
  extern template bool forward_on_clusters<Policy>(const ForwardArgs& args, Launcher* launch); \
  extern template bool backward_on_clusters<Policy>(const BackwardArgs& args, Launcher* launch); \
  extern template bool forward_on_grid<Policy>(const ForwardArgs&, Launcher*, void*, size_t&);   \
  extern template bool backward_on_grid<Policy>(const BackwardArgs&, Launcher*, void*, size_t&);
FASTLSTM_COMPILED_ELSEWHERE(BFloat16Product)
FASTLSTM_COMPILED_ELSEWHERE(Float16Product)
FASTLSTM_COMPILED_ELSEWHERE(TF32Product)
#undef FASTLSTM_COMPILED_ELSEWHERE

namespace {

// Calls use with a value of the policy for the call's dtype.
template <class Args, class Use>
auto with_policy(const Args& args, const Use& use) {
  switch (args.dtype) {
    case DType::kBFloat16: return use(BFloat16Product{});
    case DType::kFloat16: return use(Float16Product{});
    case DType::kFloat64: return use(Float64Product{});
    case DType::kFloat32: break;
  }
  return args.tf32 ? use(TF32Product{}) : use(Float32Product{});
}

// Whether a family may be used. FASTLSTM_CUDA_KERNELS names the families to choose from, such as "step" or "cluster step", to compare
// them, or where one is suspected; the step kernels always remain.
bool wanted(const char* family) {
  const char* kernels = std::getenv("FASTLSTM_CUDA_KERNELS");
  return kernels == nullptr || std::strcmp(kernels, "auto") == 0 || std::strstr(kernels, family) != nullptr;
}

// The families that keep the weights on the chip: take the call with a launcher, or without one say whether they would, and with
// how many bytes of workspace.
template <class Policy>
bool on_chip(const ForwardArgs& args, Launcher* launch, void* workspace, size_t& bytes) {
  if constexpr (kHasClusters<Policy>) {
    bytes = 0;
    if (wanted("cluster") && forward_on_clusters<Policy>(args, launch)) return true;
    return wanted("grid") && forward_on_grid<Policy>(args, launch, workspace, bytes);
  }
  return false;
}

template <class Policy>
bool on_chip(const BackwardArgs& args, Launcher* launch, void* workspace, size_t& bytes) {
  if constexpr (kHasClusters<Policy>) {
    bytes = 0;
    if (wanted("cluster") && backward_on_clusters<Policy>(args, launch)) return true;
    return wanted("grid") && backward_on_grid<Policy>(args, launch, workspace, bytes);
  }
  return false;
}

// torch has made the device the current one, but for its own CUDA runtime: this library has one of its own, linked in.
template <class Args>
void enter_device(const Args& args) {
  cudaSetDevice(args.device);
}

template <template <class> class Steps, class Args>
size_t workspace_of(const Args& args) {
  enter_device(args);
  return with_policy(args, [&](auto policy) {
    using Policy = decltype(policy);
    size_t bytes = 0;
    return on_chip<Policy>(args, nullptr, nullptr, bytes) ? bytes : Steps<Policy>(args, nullptr).workspace();
  });
}

template <template <class> class Steps, class Args>
Status run(const Args& args, void* workspace, void* stream) {
  enter_device(args);
  return with_policy(args, [&](auto policy) {
    using Policy = decltype(policy);
    Launcher launch(args.sizes, stream);
    size_t bytes = 0;
    if (on_chip<Policy>(args, &launch, workspace, bytes)) return launch.status();
    return Steps<Policy>(args, workspace).run(stream);
  });
}

}  // namespace

size_t forward_workspace(const ForwardArgs& args) { return workspace_of<ForwardSteps>(args); }
size_t backward_workspace(const BackwardArgs& args) { return workspace_of<BackwardSteps>(args); }

Status forward(const ForwardArgs& args, void* workspace, void* stream) { return run<ForwardSteps>(args, workspace, stream); }
Status backward(const BackwardArgs& args, void* workspace, void* stream) { return run<BackwardSteps>(args, workspace, stream); }

}  // namespace fastlstm::cuda

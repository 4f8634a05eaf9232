// The entry points: which family of kernels takes a call, and which policy multiplies for its dtype.

#include <cstdlib>
#include <cstring>

#include "families.h"

namespace fastlstm::cuda {

namespace {

template <class Policy_>
struct Chosen {
  using Policy = Policy_;
};

// Calls use with the policy for the call's dtype.
template <class Args, class Use>
auto with_policy(const Args& args, const Use& use) {
  switch (args.dtype) {
    case DType::kBFloat16: return use(Chosen<BFloat16Product>());
    case DType::kFloat16: return use(Chosen<Float16Product>());
    case DType::kFloat64: return use(Chosen<Float64Product>());
    case DType::kFloat32: break;
  }
  return args.tf32 ? use(Chosen<TF32Product>()) : use(Chosen<Float32Product>());
}

// Whether a family may be used. FASTLSTM_CUDA_KERNELS names the families to choose from, such as "step" or "cluster step", to compare
// them, or where one is suspected; the step kernels always remain.
bool wanted(const char* family) {
  const char* kernels = std::getenv("FASTLSTM_CUDA_KERNELS");
  return kernels == nullptr || std::strcmp(kernels, "auto") == 0 || std::strstr(kernels, family) != nullptr;
}

template <class Policy, class Args>
bool run_on_chip(const Args& args, Launcher* launch, void* workspace, size_t& bytes) {
  bytes = 0;
  if constexpr (kOnChip<Policy>) {
    if (args.weight_hr != nullptr) {
      if (wanted("cluster") && run_projected_clusters<Policy>(args, launch)) return true;
      return wanted("grid") && run_projected_grid<Policy>(args, launch, workspace, bytes);
    }
    if (wanted("cluster") && run_clusters<Policy>(args, launch)) return true;
    return wanted("grid") && run_grid<Policy>(args, launch, workspace, bytes);
  }
  return false;
}

// torch has made the device the current one, but for its own CUDA runtime: this library has one of its own, linked in.
template <class Args>
void enter_device(const Args& args) {
  cudaSetDevice(args.device);
}

template <class Args>
size_t workspace_of(const Args& args) {
  enter_device(args);
  return with_policy(args, [&](auto chosen) {
    using Policy = typename decltype(chosen)::Policy;
    size_t bytes = 0;
    return run_on_chip<Policy>(args, nullptr, nullptr, bytes) ? bytes : steps_workspace<Policy>(args);
  });
}

template <class Args>
Status run(const Args& args, void* workspace, void* stream) {
  enter_device(args);
  Launcher launch(args.sizes, stream);
  with_policy(args, [&](auto chosen) {
    using Policy = typename decltype(chosen)::Policy;
    size_t bytes = 0;
    if (!run_on_chip<Policy>(args, &launch, workspace, bytes)) run_steps<Policy>(args, workspace, launch);
  });
  return launch.status();
}

}  // namespace

size_t forward_workspace(const ForwardArgs& args) { return workspace_of(args); }
size_t backward_workspace(const BackwardArgs& args) { return workspace_of(args); }

Status forward(const ForwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }
Status backward(const BackwardArgs& args, void* workspace, void* stream) { return run(args, workspace, stream); }

}  // namespace fastlstm::cuda

// The entry points: which family of kernels takes a call, and which policy multiplies its dtype.
//
// torch has made the device current, but for its own CUDA runtime; this library links a runtime of its own.

#include <cstdlib>
#include <cstring>

#include "cuda/families.h"

namespace fastlstm::cuda {

namespace {

// Whether a family may be chosen, and with which shape. FASTLSTM_CUDA_KERNELS names them, as in "step", "cluster grid",
// or "grid:1" for shape 1 of those for the call's sizes: for comparisons, and to avoid a family that may be broken.
struct Wanted {
  bool family = true;
  int shape = kAnyShape;

  explicit Wanted(Family which) {
    constexpr const char* kNames[] = {"cluster", "grid", "step"};
    const char *kernels = std::getenv("FASTLSTM_CUDA_KERNELS"), *name = kNames[static_cast<int>(which)];
    if (kernels == nullptr || std::strcmp(kernels, "auto") == 0) return;
    const char* found = std::strstr(kernels, name);
    family = found != nullptr;
    if (family && found[std::strlen(name)] == ':') shape = std::atoi(found + std::strlen(name) + 1);
  }
};

// use(family, its kernels) for each family that the policy has.
template <class Policy, class Args, class Use>
void visit_families(const Args& args, const Use& use) {
  if constexpr (kOnChip<Policy>) {
    if (args.weight_hr != nullptr) {
      use(Family::kCluster, ProjectedClusterKernels<Policy, Args>());
      use(Family::kGrid, ProjectedGridKernels<Policy, Args>());
    } else {
      use(Family::kCluster, ClusterKernels<Policy, Args>());
      use(Family::kGrid, GridKernels<Policy, Args>());
    }
  }
  use(Family::kStep, StepKernels<Policy, Args>());
}

// use(the kernels of one family for the call's dtype).
template <class Args, class Use>
void with_family(const Args& args, Family which, const Use& use) {
  with_policy(args, [&](auto chosen) {
    visit_families<typename decltype(chosen)::Policy>(args, [&](Family family, auto kernels) {
      if (family == which) use(kernels);
    });
  });
}

template <class Args>
Choice choose_family(const Args& args) {
  cudaSetDevice(args.device);
  const DeviceFacts device;
  Choice best;
  with_policy(args, [&](auto chosen) {
    visit_families<typename decltype(chosen)::Policy>(args, [&](Family family, auto kernels) {
      const Wanted wanted(family);
      const bool last_resort = family == Family::kStep && !best.offer.possible();
      if (!wanted.family && !last_resort) return;
      const Offer offer = kernels.offer(args, device, wanted.shape);
      if (offer.beats(best.offer, args.sizes.T)) best = {family, offer};
    });
  });
  with_family(args, best.family, [&](auto kernels) { best.workspace = kernels.workspace(args, best.offer.shape); });
  return best;
}

template <class Args>
Status run(const Args& args, const Choice& choice, void* workspace, void* stream) {
  cudaSetDevice(args.device);
  Launcher launch(args.sizes, stream);
  with_family(args, choice.family, [&](auto kernels) { kernels.run(args, choice.offer.shape, workspace, launch); });
  return launch.status();
}

}  // namespace

Choice choose(const ForwardArgs& args) { return choose_family(args); }
Choice choose(const BackwardArgs& args) { return choose_family(args); }

Status forward(const ForwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}
Status backward(const BackwardArgs& args, const Choice& choice, void* workspace, void* stream) {
  return run(args, choice, workspace, stream);
}

}  // namespace fastlstm::cuda

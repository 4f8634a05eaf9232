// The variants' entry points: which policy multiplies the call's dtype.

#include "cuda/variant/recurrence.h"

#include "cuda/variant/families.h"

namespace fastlstm::cuda {

namespace {

// torch has made the device current, but for its own CUDA runtime; this library links a runtime of its own.
template <class Args, class... More>
size_t run(const Args& args, void* workspace, Launcher* launch, const More&... more) {
  cudaSetDevice(args.device);
  return with_policy(args, [&](auto chosen) {
    return run_variant<typename decltype(chosen)::Policy>(args, more..., workspace, launch);
  });
}

}  // namespace

size_t variant_forward_workspace(const ForwardArgs& args) { return run(args, nullptr, nullptr, Variant{}); }
size_t variant_backward_workspace(const BackwardArgs& args) {
  return run(args, nullptr, nullptr, Variant{}, VariantTape{});
}

Status variant_forward(const ForwardArgs& args, const Variant& variant, void* workspace, void* stream) {
  Launcher launch(args.sizes, stream);
  run(args, workspace, &launch, variant);
  return launch.status();
}

Status variant_backward(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, void* workspace,
                        void* stream) {
  Launcher launch(args.sizes, stream);
  run(args, workspace, &launch, variant, tape);
  return launch.status();
}

}  // namespace fastlstm::cuda

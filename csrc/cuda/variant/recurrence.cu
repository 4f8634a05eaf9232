// The variants' entry points: which policy multiplies the call's dtype.

#include "cuda/variant/recurrence.h"

#include "cuda/variant/families.h"

namespace fastlstm::cuda {

namespace {

template <class Policy_>
struct Chosen {
  using Policy = Policy_;
};

// torch has made the device current, but for its own CUDA runtime; this library links a runtime of its own.
template <class Args, class... More>
size_t run(const Args& args, void* workspace, Launcher* launch, const More&... more) {
  cudaSetDevice(args.device);
  const auto with = [&](auto chosen) {
    return run_variant<typename decltype(chosen)::Policy>(args, more..., workspace, launch);
  };
  switch (args.dtype) {
    case DType::kBFloat16:
      return with(Chosen<BFloat16Product>());
    case DType::kFloat16:
      return with(Chosen<Float16Product>());
    case DType::kFloat64:
      return with(Chosen<Float64Product>());
    case DType::kFloat32:
      break;
  }
  return args.tf32 ? with(Chosen<TF32Product>()) : with(Chosen<Float32Product>());
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

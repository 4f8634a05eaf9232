// lstm_variant_forward and the loop of lstm_variant_backward on CUDA tensors.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "cuda/variant/recurrence.h"
#include "torch/cuda_kernels.h"
#include "torch/variant_ops.h"

namespace fastlstm {

namespace {

struct CudaVariants : CudaCall {
  using CudaCall::CudaCall;

  void forward(ForwardArgs& args, const Variant& variant) const {
    complete(args);
    launch(cuda::variant_forward_workspace(args),
           [&](void* workspace, void* stream) { return cuda::variant_forward(args, variant, workspace, stream); });
  }
  void backward(BackwardArgs& args, const Variant& variant, const VariantTape& tape) const {
    complete(args);
    launch(cuda::variant_backward_workspace(args), [&](void* workspace, void* stream) {
      return cuda::variant_backward(args, variant, tape, workspace, stream);
    });
  }
};

using CudaVariantOps = VariantOps<CudaVariants, bool>;

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, FASTLSTM_CUDA_KEY, m) {
  m.impl(FASTLSTM_CUDA_OP("variant_forward"), TORCH_BOX(&fastlstm::CudaVariantOps::forward));
  m.impl(FASTLSTM_CUDA_OP("variant_loop"), TORCH_BOX(&fastlstm::CudaVariantOps::loop));
}

#endif

// lstm_forward and lstm_backward on CUDA tensors.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "torch/cuda_kernels.h"
#include "torch/recurrence_ops.h"

namespace fastlstm {

namespace {

struct Cuda : CudaCall {
  using CudaCall::CudaCall;

  void forward(ForwardArgs& args) const {
    complete(args);
    const cuda::Choice choice = cuda::choose(args);
    launch(choice.workspace,
           [&](void* workspace, void* stream) { return cuda::forward(args, choice, workspace, stream); });
  }
  void backward(BackwardArgs& args) const {
    complete(args);
    const cuda::Choice choice = cuda::choose(args);
    launch(choice.workspace,
           [&](void* workspace, void* stream) { return cuda::backward(args, choice, workspace, stream); });
  }
};

using CudaOps = RecurrenceOps<Cuda, bool>;

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, FASTLSTM_CUDA_KEY, m) {
  m.impl(FASTLSTM_CUDA_OP("forward"), TORCH_BOX(&fastlstm::CudaOps::forward));
  m.impl(FASTLSTM_CUDA_OP("backward"), TORCH_BOX(&fastlstm::CudaOps::backward));
}

#endif

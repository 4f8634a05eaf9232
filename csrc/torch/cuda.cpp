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

namespace {

template <class Args>
std::vector<int64_t> described(const std::vector<int64_t>& call) {
  alignas(16) static const char projection[16] = {};  // weights are looked at only for being there
  Args args{};
  args.device = static_cast<int>(call[0]);
  const OnDevice device(args.device);
  args.dtype = static_cast<DType>(call[1]);
  args.tf32 = call[2] != 0;
  args.sizes = {call[3], call[4], call[5], call[6], call[7]};
  if (call[8] != 0) args.weight_hr[0] = projection;
  const cuda::Choice choice = cuda::choose(args);
  return {static_cast<int64_t>(choice.family), choice.offer.step, choice.offer.once, choice.offer.shape};
}

}  // namespace

// What is chosen for a call of device, dtype, tf32, T, N, D, H, P, projected: the family's number, the clocks of a step
// and those once, the shape's number.
std::vector<int64_t> cuda_choice(std::vector<int64_t> call, bool backward) {
  STD_TORCH_CHECK(call.size() == 9, "fastlstm: call has ", call.size(), " numbers, expected 9");
  return backward ? described<cuda::BackwardArgs>(call) : described<cuda::ForwardArgs>(call);
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, FASTLSTM_CUDA_KEY, m) {
  m.impl(FASTLSTM_CUDA_OP("forward"), TORCH_BOX(&fastlstm::CudaOps::forward));
  m.impl(FASTLSTM_CUDA_OP("backward"), TORCH_BOX(&fastlstm::CudaOps::backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) {
  m.impl(FASTLSTM_CUDA_OP("choice"), TORCH_BOX(&fastlstm::cuda_choice));
}

#endif

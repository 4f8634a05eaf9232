// lstm_forward and lstm_backward on CUDA tensors, with one more argument: whether float32 may be rounded to tf32 in
// products. fastlstm/backends/gpu.py reads torch's settings and calls these.
//
// With FASTLSTM_SIMT the same code serves CPU tensors, with the kernels run by tests/simt.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "torch/cuda_device.h"
#include "torch/recurrence_args.h"

namespace fastlstm {

ForwardResults cuda_forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                            OptionalTensor lengths, OptionalTensor reset_mask, bool save_tape, bool save_cells,
                            bool tf32) {
  const ForwardInputs in{gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask};
  const ForwardStart start = start_forward(in, save_tape, save_cells);
  if (start.done) return start.results();
  const OnDevice device(h0);
  Held held;
  cuda::ForwardArgs args = forward_args<cuda::ForwardArgs>(held, start, in);
  args.device = device.index();
  args.tf32 = tf32;
  const cuda::Choice choice = cuda::choose(args);
  Tensor workspace = scratch(h0, choice.workspace);
  raise_if_failed(cuda::forward(args, choice, workspace.mutable_data_ptr(), device.stream()));
  return start.results();
}

BackwardResults cuda_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells,
                              OptionalTensor dgates_out, Tensor h0, Tensor c0, Tensor weight_hh,
                              OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
                              OptionalTensor reset_mask, bool wide_gates, bool tf32) {
  refuse_gates_gradient(dgates_out);
  const BackwardInputs in{doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask};
  const BackwardStart start = start_backward(in, wide_gates);
  if (start.done) return start.results();
  const OnDevice device(h0);
  Held held;
  cuda::BackwardArgs args = backward_args<cuda::BackwardArgs>(held, start, in);
  args.device = device.index();
  args.tf32 = tf32;
  const cuda::Choice choice = cuda::choose(args);
  Tensor workspace = scratch(h0, choice.workspace);
  raise_if_failed(cuda::backward(args, choice, workspace.mutable_data_ptr(), device.stream()));
  return start.results();
}

namespace {

template <class Args>
std::vector<int64_t> described(const std::vector<int64_t>& call) {
  static const char projection = 0;  // weights are looked at only for being there
  Args args{};
  args.device = static_cast<int>(call[0]);
  args.dtype = static_cast<DType>(call[1]);
  args.tf32 = call[2] != 0;
  args.sizes = {call[3], call[4], call[5], call[6], call[7]};
  if (call[8] != 0) args.weight_hr[0] = &projection;
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

#if defined(FASTLSTM_SIMT)
#define FASTLSTM_PREFIX "simt_kernels"
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
#else
#define FASTLSTM_PREFIX "cuda_kernels"
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
#endif
  m.impl(FASTLSTM_PREFIX "_forward", TORCH_BOX(&fastlstm::cuda_forward));
  m.impl(FASTLSTM_PREFIX "_backward", TORCH_BOX(&fastlstm::cuda_backward));
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) {
  m.impl(FASTLSTM_PREFIX "_choice", TORCH_BOX(&fastlstm::cuda_choice));
}

#endif

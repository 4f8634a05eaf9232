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

#endif

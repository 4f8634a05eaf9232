// lstm_forward and lstm_backward on the CPU: the recurrence of a layer from gate inputs that were made outside.

#include "torch/recurrence_args.h"

namespace fastlstm {

ForwardResults lstm_forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                            OptionalTensor lengths, OptionalTensor reset_mask, bool save_tape, bool save_cells) {
  const ForwardInputs in{gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask};
  const ForwardStart start = start_forward(in, save_tape, save_cells);
  if (start.done) return start.results();
  Held held;
  ForwardArgs args = forward_args<ForwardArgs>(held, start, in);
  args.float32_parts = float32_parts(h0.scalar_type());
  cpu_kernels().forward(args, threads());
  return start.results();
}

BackwardResults lstm_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells,
                              OptionalTensor dgates_out, Tensor h0, Tensor c0, Tensor weight_hh,
                              OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
                              OptionalTensor reset_mask, bool wide_gates) {
  refuse_gates_gradient(dgates_out);
  const BackwardInputs in{doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask};
  const BackwardStart start = start_backward(in, wide_gates);
  if (start.done) return start.results();
  Held held;
  BackwardArgs args = backward_args<BackwardArgs>(held, start, in);
  args.float32_parts = float32_parts(h0.scalar_type());
  cpu_kernels().backward(args, threads());
  return start.results();
}

}  // namespace fastlstm

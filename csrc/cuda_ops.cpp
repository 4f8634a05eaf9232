// lstm_forward and lstm_backward on CUDA tensors, with one more argument: whether float32 may be rounded to tf32 in products.
// fastlstm/cuda_ops.py reads torch's settings and calls these.
//
// With FASTLSTM_SIMT the same code serves CPU tensors, with the kernels run by tests/simt.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "cuda_device.h"
#include "recurrence_call.h"

namespace fastlstm {

ForwardResults cuda_forward(
    Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor lengths,
    OptionalTensor reset_mask, bool save_tape, bool save_cells, bool tf32) {
  ForwardStart start = start_forward(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells);
  if (start.done) return start.results();
  const OnDevice device(h0);
  Held held;
  cuda::ForwardArgs args{};
  args.device = device.index();
  args.sizes = start.sizes;
  args.dtype = start.io;
  args.tf32 = tf32;
  args.wide_gates = start.wide_gates;
  args.wide_states = start.wide_states;
  args.gates_x = held.rows(gates_x, &args.gates_stride_t, &args.gates_stride_n);
  args.h0 = held.data(h0);
  args.c0 = held.data(c0);
  args.weight_hh = held.data(weight_hh);
  args.weight_hr = held.data(weight_hr);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.output = start.output.mutable_data_ptr();
  args.h_n = start.h_n.mutable_data_ptr();
  args.c_n = start.c_n.mutable_data_ptr();
  args.cells = start.keep_cells ? start.cells.mutable_data_ptr() : nullptr;
  args.gates = start.keep_gates ? start.gates.mutable_data_ptr() : nullptr;
  const cuda::Choice choice = cuda::choose(args);
  Tensor workspace = scratch(h0, choice.workspace);
  raise_if_failed(cuda::forward(args, choice, workspace.mutable_data_ptr(), device.stream()));
  return start.results();
}

BackwardResults cuda_backward(
    OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, OptionalTensor dgates_out,
    Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
    OptionalTensor reset_mask, bool wide_gates, bool tf32) {
  BackwardStart start = start_backward(doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, gates,
                                       lengths, reset_mask, wide_gates);
  if (start.done) return start.results();
  const OnDevice device(h0);
  Held held;
  cuda::BackwardArgs args{};
  args.device = device.index();
  args.sizes = start.sizes;
  args.dtype = start.io;
  args.tf32 = tf32;
  args.wide_gates = start.wide_gates;
  args.wide_states = start.wide_states;
  if (doutput) args.doutput = held.rows(*doutput, &args.doutput_stride_t, &args.doutput_stride_n);
  args.dh_n = held.data(dh_n);
  args.dc_n = held.data(dc_n);
  args.dcells = held.data(dcells);
  args.c0 = held.data(c0);
  args.weight_hh = held.data(weight_hh);
  args.weight_hr = held.data(weight_hr);
  args.cells = held.data(cells);
  args.gates = held.data(gates);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.dgates_x = start.dgates_x.mutable_data_ptr();
  args.dh0 = start.dh0.mutable_data_ptr();
  args.dc0 = start.dc0.mutable_data_ptr();
  args.dhidden = weight_hr ? start.dhidden.mutable_data_ptr() : nullptr;
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

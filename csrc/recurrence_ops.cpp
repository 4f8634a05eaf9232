// lstm_forward and lstm_backward on the CPU: the recurrence of a layer from gate inputs that were made outside.

#include "recurrence_call.h"

namespace fastlstm {

namespace {

// Where each direction's part of a contiguous [D, ...] array of `elements` each starts.
void by_direction(const void* data, int64_t D, int64_t elements, ScalarType dtype, const void* (&parts)[2]) {
  const int64_t bytes = bytes_of(dtype);
  for (int64_t d = 0; d < D; ++d) parts[d] = data == nullptr ? nullptr : static_cast<const char*>(data) + d * elements * bytes;
}

}  // namespace

ForwardResults lstm_forward(
    Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor lengths,
    OptionalTensor reset_mask, bool save_tape, bool save_cells) {
  ForwardStart start = start_forward(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells);
  if (start.done) return start.results();
  const Sizes& s = start.sizes;
  const ScalarType dtype = h0.scalar_type();
  Held held;
  ForwardArgs args{};
  args.sizes = s;
  args.dtype = start.io;
  args.float32_parts = float32_parts(dtype);
  args.wide_gates = start.wide_gates;
  args.wide_states = start.wide_states;
  args.gates_x = held.rows(gates_x, &args.gates_strides.t, &args.gates_strides.n);
  args.gates_strides.d = 4 * s.H;
  args.h0 = held.data(h0);
  args.c0 = held.data(c0);
  by_direction(held.data(weight_hh), s.D, 4 * s.H * s.P, dtype, args.weight_hh);
  by_direction(held.data(weight_hr), s.D, s.P * s.H, dtype, args.weight_hr);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.output = start.output.mutable_data_ptr();
  args.h_n = start.h_n.mutable_data_ptr();
  args.c_n = start.c_n.mutable_data_ptr();
  args.cells = start.keep_cells ? start.cells.mutable_data_ptr() : nullptr;
  args.gates = start.keep_gates ? start.gates.mutable_data_ptr() : nullptr;
  cpu_kernels().forward(args, threads());
  return start.results();
}

BackwardResults lstm_backward(
    OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, OptionalTensor dgates_out,
    Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
    OptionalTensor reset_mask, bool wide_gates) {
  BackwardStart start = start_backward(doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, gates,
                                       lengths, reset_mask, wide_gates);
  if (start.done) return start.results();
  const Sizes& s = start.sizes;
  const ScalarType dtype = h0.scalar_type();
  Held held;
  BackwardArgs args{};
  args.sizes = s;
  args.dtype = start.io;
  args.float32_parts = float32_parts(dtype);
  args.wide_gates = start.wide_gates;
  args.wide_states = start.wide_states;
  if (doutput) args.doutput = held.rows(*doutput, &args.doutput_stride_t, &args.doutput_stride_n);
  args.dh_n = held.data(dh_n);
  args.dc_n = held.data(dc_n);
  args.dcells = held.data(dcells);
  args.c0 = held.data(c0);
  by_direction(held.data(weight_hh), s.D, 4 * s.H * s.P, dtype, args.weight_hh);
  by_direction(held.data(weight_hr), s.D, s.P * s.H, dtype, args.weight_hr);
  args.cells = held.data(cells);
  args.gates = held.data(gates);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.dgates_x = start.dgates_x.mutable_data_ptr();
  args.dh0 = start.dh0.mutable_data_ptr();
  args.dc0 = start.dc0.mutable_data_ptr();
  args.dgates_strides = {4 * s.H, s.N * s.D * 4 * s.H, s.D * 4 * s.H};
  args.dhidden = weight_hr ? start.dhidden.mutable_data_ptr() : nullptr;
  args.dhidden_strides = {s.P, s.N * s.D * s.P, s.D * s.P};
  cpu_kernels().backward(args, threads());
  return start.results();
}

}  // namespace fastlstm

// The arguments of the kernels, from a checked call's tensors: the CPU's ForwardArgs and BackwardArgs
// (cpu/recurrence.h) or CUDA's (cuda/recurrence.h). The caller sets what only one of them has.
#pragma once

#include "cuda/recurrence.h"
#include "torch/recurrence_call.h"

namespace fastlstm {

// A contiguous [D, ...] array with `elements` for each direction: where each direction begins.
inline void put_weights(const void* data, int64_t D, int64_t elements, ScalarType dtype, const void* (&parts)[2]) {
  const int64_t bytes = bytes_of(dtype);
  for (int64_t d = 0; d < D; ++d)
    parts[d] = data == nullptr ? nullptr : static_cast<const char*>(data) + d * elements * bytes;
}

// The CPU's results have strides, since they may be of a chunk of steps.
inline void put_result_strides(BackwardArgs& args) {
  const Sizes& s = args.sizes;
  args.dgates_strides = {4 * s.H, s.N * s.D * 4 * s.H, s.D * 4 * s.H};
  args.dhidden_strides = {s.P, s.N * s.D * s.P, s.D * s.P};
}

inline void put_result_strides(cuda::BackwardArgs&) {}

// The arguments that both passes have; `in` is a ForwardInputs or a BackwardInputs, `start` its checked form.
template <class Args, class Start, class Inputs>
Args common_args(Held& held, const Start& start, const Inputs& in) {
  const Sizes& s = start.sizes;
  const ScalarType dtype = in.h0->scalar_type();
  Args args{};
  args.sizes = s;
  args.dtype = start.io;
  args.wide_gates = start.wide_gates;
  args.wide_states = start.wide_states;
  args.c0 = held.data(*in.c0);
  put_weights(held.data(*in.weight_hh), s.D, 4 * s.H * s.P, dtype, args.weight_hh);
  put_weights(held.data(*in.weight_hr), s.D, s.P * s.H, dtype, args.weight_hr);
  args.lengths = static_cast<const int64_t*>(held.data(*in.lengths));
  args.reset_mask = static_cast<const bool*>(held.data(*in.reset_mask));
  return args;
}

// `held` keeps what was made contiguous for the kernels; they write to start.results().
template <class Args>
Args forward_args(Held& held, const ForwardStart& start, const ForwardInputs& in) {
  Args args = common_args<Args>(held, start, in);
  args.gates_x = held.rows(*in.gates_x, &args.gates_strides.t, &args.gates_strides.n);
  args.gates_strides.d = 4 * args.sizes.H;
  args.h0 = held.data(*in.h0);
  args.output = start.output.mutable_data_ptr();
  args.h_n = start.h_n.mutable_data_ptr();
  args.c_n = start.c_n.mutable_data_ptr();
  args.cells = start.keep_cells ? start.cells.mutable_data_ptr() : nullptr;
  args.gates = start.keep_gates ? start.gates.mutable_data_ptr() : nullptr;
  return args;
}

template <class Args>
Args backward_args(Held& held, const BackwardStart& start, const BackwardInputs& in) {
  Args args = common_args<Args>(held, start, in);
  if (*in.doutput) args.doutput = held.rows(**in.doutput, &args.doutput_stride_t, &args.doutput_stride_n);
  args.dh_n = held.data(*in.dh_n);
  args.dc_n = held.data(*in.dc_n);
  args.dcells = held.data(*in.dcells);
  args.cells = held.data(*in.cells);
  args.gates = held.data(*in.gates);
  args.dgates_x = start.dgates_x.mutable_data_ptr();
  args.dh0 = start.dh0.mutable_data_ptr();
  args.dc0 = start.dc0.mutable_data_ptr();
  args.dhidden = *in.weight_hr ? start.dhidden.mutable_data_ptr() : nullptr;
  put_result_strides(args);
  return args;
}

}  // namespace fastlstm

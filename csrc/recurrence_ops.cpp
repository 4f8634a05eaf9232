// lstm_forward and lstm_backward: the recurrence of a layer from gate inputs that were made outside. Every shape, dtype and stride
// is checked here, before a kernel sees a pointer.

#include "ops.h"
#include "tensors.h"

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
  STD_TORCH_CHECK(gates_x.dim() == 4, "fastlstm: gates_x has ", gates_x.dim(), " dimensions, expected 4: (T, N, D, 4H)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  const int64_t T = gates_x.size(0), N = gates_x.size(1), D = gates_x.size(2), P = h0.size(2), H = c0.size(2);
  const ScalarType dtype = h0.scalar_type(), wide = wide_type(dtype);
  const bool wide_gates = gates_x.scalar_type() != dtype;
  const DType io = dtype_of(h0, "h0");
  STD_TORCH_CHECK(D == 1 || D == 2, "fastlstm: gates_x has ", D, " directions, expected 1 or 2");
  check(gates_x, "gates_x", {T, N, D, 4 * H}, wide_gates ? wide : dtype);
  check_units(H, P);
  check(h0, "h0", {D, N, P}, dtype);
  check(c0, "c0", {D, N, H}, dtype);
  check(weight_hh, "weight_hh", {D, 4 * H, P}, dtype);
  check(weight_hr, "weight_hr", {D, P, H}, dtype);
  STD_TORCH_CHECK(weight_hr || P == H, "fastlstm: h0 is ", P, " wide, expected H = ", H, " without weight_hr");
  check_masks(lengths, reset_mask, T, N);

  Tensor output = empty({T, N, D * P}, dtype), h_n = empty({D, N, P}, dtype), c_n = empty({D, N, H}, dtype);
  const bool keep_cells = save_tape || save_cells;
  Tensor cells = keep_cells ? empty({T, N, D, H}, wide) : empty({0}, wide);
  Tensor gates = save_tape ? empty({T, N, D, 4 * H}, dtype) : empty({0}, dtype);
  if (T == 0 || N == 0) {
    torch::stable::copy_(h_n, h0);
    torch::stable::copy_(c_n, c0);
    return {output, h_n, c_n, cells, gates};
  }
  Held held;
  ForwardArgs args{};
  args.sizes = {T, N, D, H, P};
  args.dtype = io;
  args.wide_gates = wide_gates;
  args.gates_x = held.rows(gates_x, &args.gates_strides.t, &args.gates_strides.n);
  args.gates_strides.d = 4 * H;
  args.h0 = held.data(h0);
  args.c0 = held.data(c0);
  by_direction(held.data(weight_hh), D, 4 * H * P, dtype, args.weight_hh);
  by_direction(held.data(weight_hr), D, P * H, dtype, args.weight_hr);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.cells = keep_cells ? cells.mutable_data_ptr() : nullptr;
  args.gates = save_tape ? gates.mutable_data_ptr() : nullptr;
  cpu_kernels().forward(args, threads());
  return {output, h_n, c_n, cells, gates};
}

BackwardResults lstm_backward(
    OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, OptionalTensor dgates_out,
    Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
    OptionalTensor reset_mask, bool wide_gates) {
  STD_TORCH_CHECK(!dgates_out, "fastlstm: a gradient of the gates is the reference's to take: call reference_backward");
  STD_TORCH_CHECK(gates.dim() == 4, "fastlstm: gates has ", gates.dim(), " dimensions, expected 4: the tape of lstm_forward");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  const int64_t T = gates.size(0), N = gates.size(1), D = gates.size(2), P = h0.size(2), H = c0.size(2);
  const ScalarType dtype = h0.scalar_type(), wide = wide_type(dtype);
  const DType io = dtype_of(h0, "h0");
  STD_TORCH_CHECK(D == 1 || D == 2, "fastlstm: gates has ", D, " directions, expected 1 or 2");
  check(gates, "gates", {T, N, D, 4 * H}, dtype);
  check(cells, "cells", {T, N, D, H}, wide);
  check_units(H, P);
  check(h0, "h0", {D, N, P}, dtype);
  check(c0, "c0", {D, N, H}, dtype);
  check(weight_hh, "weight_hh", {D, 4 * H, P}, dtype);
  check(weight_hr, "weight_hr", {D, P, H}, dtype);
  STD_TORCH_CHECK(weight_hr || P == H, "fastlstm: h0 is ", P, " wide, expected H = ", H, " without weight_hr");
  check(doutput, "doutput", {T, N, D * P}, dtype);
  check(dh_n, "dh_n", {D, N, P}, dtype);
  check(dc_n, "dc_n", {D, N, H}, dtype);
  check(dcells, "dcells", {T, N, D, H}, wide);
  check_masks(lengths, reset_mask, T, N);

  Tensor dgates_x = empty({T, N, D, 4 * H}, wide_gates ? wide : dtype), dh0 = empty({D, N, P}, dtype),
         dc0 = empty({D, N, H}, dtype);
  Tensor dhidden = weight_hr ? empty({T, N, D, P}, wide) : empty({0}, wide);
  if (T == 0 || N == 0) {
    if (dh_n) torch::stable::copy_(dh0, *dh_n); else torch::stable::zero_(dh0);
    if (dc_n) torch::stable::copy_(dc0, *dc_n); else torch::stable::zero_(dc0);
    return {dgates_x, dh0, dc0, dhidden};
  }
  Held held;
  BackwardArgs args{};
  args.sizes = {T, N, D, H, P};
  args.dtype = io;
  args.wide_gates = wide_gates && wide != dtype;
  if (doutput) args.doutput = held.rows(*doutput, &args.doutput_stride_t, &args.doutput_stride_n);
  args.dh_n = held.data(dh_n);
  args.dc_n = held.data(dc_n);
  args.dcells = held.data(dcells);
  args.c0 = held.data(c0);
  by_direction(held.data(weight_hh), D, 4 * H * P, dtype, args.weight_hh);
  by_direction(held.data(weight_hr), D, P * H, dtype, args.weight_hr);
  args.cells = held.data(cells);
  args.gates = held.data(gates);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.dgates_x = dgates_x.mutable_data_ptr();
  args.dh0 = dh0.mutable_data_ptr();
  args.dc0 = dc0.mutable_data_ptr();
  args.dgates_strides = {4 * H, N * D * 4 * H, D * 4 * H};
  args.dhidden = weight_hr ? dhidden.mutable_data_ptr() : nullptr;
  args.dhidden_strides = {P, N * D * P, D * P};
  cpu_kernels().backward(args, threads());
  return {dgates_x, dh0, dc0, dhidden};
}

}  // namespace fastlstm

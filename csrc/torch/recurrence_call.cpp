#include "torch/recurrence_call.h"

namespace fastlstm {

namespace {

// Sizes from gates (T, N, D, 4H) and the states; the other arguments are checked against them.
Sizes sizes_of(const Tensor& gates, const char* name, const Tensor& h0, const Tensor& c0,
               const OptionalTensor& weight_hr) {
  STD_TORCH_CHECK(gates.dim() == 4, "fastlstm: ", name, " has ", gates.dim(), " dimensions, expected 4: (T, N, D, 4H)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3,
                  "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  Sizes s{};
  s.T = gates.size(0), s.N = gates.size(1), s.D = gates.size(2);
  s.H = c0.size(2), s.P = h0.size(2);
  STD_TORCH_CHECK(s.D == 1 || s.D == 2, "fastlstm: ", name, " has ", s.D, " directions, expected 1 or 2");
  check_units(s.H, s.P);
  STD_TORCH_CHECK(weight_hr || s.P == s.H, "fastlstm: h0 is ", s.P, " wide, expected H = ", s.H, " without weight_hr");
  return s;
}

void check_weights_and_states(const Sizes& s, const Tensor& h0, const Tensor& c0, const Tensor& weight_hh,
                              const OptionalTensor& weight_hr, bool wide_states, const Where& where) {
  const ScalarType dtype = h0.scalar_type();
  check(h0, "h0", {s.D, s.N, s.P}, dtype, where);
  check(c0, "c0", {s.D, s.N, s.H}, wide_states ? wide_type(dtype) : dtype, where);
  check(weight_hh, "weight_hh", {s.D, 4 * s.H, s.P}, dtype, where);
  check(weight_hr, "weight_hr", {s.D, s.P, s.H}, dtype, where);
}

// A result that may not be asked for, and has then no elements.
Tensor optional_result(const Tensor& like, bool wanted, const Extents& sizes, ScalarType dtype) {
  return empty_beside(like, wanted ? sizes : Extents{0}, dtype);
}

void copy_or_clear(Tensor& into, const OptionalTensor& from) {
  if (from)
    torch::stable::copy_(into, *from);
  else
    torch::stable::zero_(into);
}

}  // namespace

ForwardStart start_forward(const ForwardInputs& in, bool save_tape, bool save_cells) {
  const Sizes s = sizes_of(*in.gates_x, "gates_x", *in.h0, *in.c0, *in.weight_hr);
  const Where where = Where::of(*in.gates_x);
  const ScalarType dtype = in.h0->scalar_type(), wide = wide_type(dtype);
  ForwardStart start;
  start.sizes = s;
  start.io = dtype_of(*in.h0, "h0");
  start.wide_gates = in.gates_x->scalar_type() != dtype;
  start.wide_states = in.c0->scalar_type() != dtype;
  check(*in.gates_x, "gates_x", {s.T, s.N, s.D, 4 * s.H}, start.wide_gates ? wide : dtype, where);
  check_weights_and_states(s, *in.h0, *in.c0, *in.weight_hh, *in.weight_hr, start.wide_states, where);
  check_masks(*in.lengths, *in.reset_mask, s.T, s.N, where);

  start.keep_cells = save_tape || save_cells;
  start.keep_gates = save_tape;
  start.output = empty_beside(*in.h0, {s.T, s.N, s.D * s.P}, dtype);
  start.h_n = empty_beside(*in.h0, {s.D, s.N, s.P}, dtype);
  start.c_n = empty_beside(*in.h0, {s.D, s.N, s.H}, in.c0->scalar_type());
  start.cells = optional_result(*in.h0, start.keep_cells, {s.T, s.N, s.D, s.H}, wide);
  start.gates = optional_result(*in.h0, start.keep_gates, {s.T, s.N, s.D, 4 * s.H}, dtype);
  start.done = s.T == 0 || s.N == 0;
  if (start.done) {
    torch::stable::copy_(start.h_n, *in.h0);
    torch::stable::copy_(start.c_n, *in.c0);
  }
  return start;
}

BackwardStart start_backward(const BackwardInputs& in, bool wide_gates) {
  const Sizes s = sizes_of(*in.gates, "gates, the tape of lstm_forward,", *in.h0, *in.c0, *in.weight_hr);
  const Where where = Where::of(*in.gates);
  const ScalarType dtype = in.h0->scalar_type(), wide = wide_type(dtype);
  BackwardStart start;
  start.sizes = s;
  start.io = dtype_of(*in.h0, "h0");
  start.wide_gates = wide_gates && wide != dtype;
  start.wide_states = in.c0->scalar_type() != dtype;
  const ScalarType states = start.wide_states ? wide : dtype;
  check(*in.gates, "gates", {s.T, s.N, s.D, 4 * s.H}, dtype, where);
  check(*in.cells, "cells", {s.T, s.N, s.D, s.H}, wide, where);
  check_weights_and_states(s, *in.h0, *in.c0, *in.weight_hh, *in.weight_hr, start.wide_states, where);
  check(*in.doutput, "doutput", {s.T, s.N, s.D * s.P}, dtype, where);
  check(*in.dh_n, "dh_n", {s.D, s.N, s.P}, states, where);
  check(*in.dc_n, "dc_n", {s.D, s.N, s.H}, states, where);
  check(*in.dcells, "dcells", {s.T, s.N, s.D, s.H}, wide, where);
  check_masks(*in.lengths, *in.reset_mask, s.T, s.N, where);

  start.dgates_x = empty_beside(*in.h0, {s.T, s.N, s.D, 4 * s.H}, wide_gates ? wide : dtype);
  start.dh0 = empty_beside(*in.h0, {s.D, s.N, s.P}, states);
  start.dc0 = empty_beside(*in.h0, {s.D, s.N, s.H}, states);
  start.dhidden = optional_result(*in.h0, in.weight_hr->has_value(), {s.T, s.N, s.D, s.P}, wide);
  start.done = s.T == 0 || s.N == 0;
  if (start.done) {
    copy_or_clear(start.dh0, *in.dh_n);
    copy_or_clear(start.dc0, *in.dc_n);
  }
  return start;
}

}  // namespace fastlstm

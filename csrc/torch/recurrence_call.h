// What the ops of the recurrence share on every device: every shape, dtype and device is checked here, before a kernel
// gets a pointer, and the results are allocated.
#pragma once

#include "torch/tensors.h"

namespace fastlstm {

// Pointers to an op's arguments, none of them null.
struct ForwardInputs {
  const Tensor *gates_x, *h0, *c0, *weight_hh;
  const OptionalTensor *weight_hr, *lengths, *reset_mask;
};

struct ForwardStart {
  Sizes sizes;
  DType io;
  bool wide_gates;
  bool wide_states;  // c0, c_n and the gradients of the states are in the wide type
  Tensor output, h_n, c_n;
  Tensor cells, gates;  // without elements if not asked for
  bool keep_cells, keep_gates;
  bool done;  // no steps or no rows: the results are complete

  ForwardResults results() const { return {output, h_n, c_n, cells, gates}; }
};

ForwardStart start_forward(const ForwardInputs& in, bool save_tape, bool save_cells);

struct BackwardInputs {
  const OptionalTensor *doutput, *dh_n, *dc_n, *dcells;
  const Tensor *h0, *c0, *weight_hh;
  const OptionalTensor* weight_hr;
  const Tensor *cells, *gates;
  const OptionalTensor *lengths, *reset_mask;
};

struct BackwardStart {
  Sizes sizes;
  DType io;
  bool wide_gates;
  bool wide_states;  // c0 and the gradients of the states are in the wide type
  Tensor dgates_x, dh0, dc0;
  Tensor dhidden;  // without elements if there is no projection
  bool done;

  BackwardResults results() const { return {dgates_x, dh0, dc0, dhidden}; }
};

BackwardStart start_backward(const BackwardInputs& in, bool wide_gates);

}  // namespace fastlstm

// What lstm_forward and lstm_backward have in common on every device: every shape, dtype and device is checked here,
// before a kernel sees a pointer, and the results are allocated.
#pragma once

#include "torch/ops.h"
#include "torch/tensors.h"

namespace fastlstm {

// An op's arguments, where they lie; none is null.
struct ForwardInputs {
  const Tensor *gates_x, *h0, *c0, *weight_hh;
  const OptionalTensor *weight_hr, *lengths, *reset_mask;
};

struct ForwardStart {
  Sizes sizes;
  DType io;
  bool wide_gates;
  bool wide_states;  // c and the gradients of both states come and go in the wide type
  Tensor output, h_n, c_n;
  Tensor cells, gates;  // without elements where they are not asked for
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
  bool wide_states;  // c and the gradients of both states come and go in the wide type
  Tensor dgates_x, dh0, dc0;
  Tensor dhidden;  // without elements where there is no projection
  bool done;

  BackwardResults results() const { return {dgates_x, dh0, dc0, dhidden}; }
};

BackwardStart start_backward(const BackwardInputs& in, bool wide_gates);

}  // namespace fastlstm

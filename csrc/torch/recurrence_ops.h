// lstm_forward and lstm_backward for the kernels of one backend: the recurrence of a layer, from gate inputs that were
// made outside.
//
// Backend(h0, settings...) makes h0's device current while it lives. It has the types `ForwardArgs` and `BackwardArgs`
// of its kernels' arguments; `forward(args)` and `backward(args)` run the kernels. Settings: arguments that its ops
// have after those of the schemas in fastlstm/ops/recurrence.py.
#pragma once

#include "torch/recurrence_args.h"

namespace fastlstm {

template <class Backend, class... Settings>
struct RecurrenceOps {
  static ForwardResults forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                                OptionalTensor lengths, OptionalTensor reset_mask, bool save_tape, bool save_cells,
                                Settings... settings) {
    ForwardInputs in;
    in.gates_x = &gates_x, in.h0 = &h0, in.c0 = &c0;
    in.weight_hh = &weight_hh, in.weight_hr = &weight_hr;
    in.lengths = &lengths, in.reset_mask = &reset_mask;
    const ForwardStart start = start_forward(in, save_tape, save_cells);
    if (start.done) return start.results();
    const Backend backend(h0, settings...);
    Held held;
    auto args = forward_args<typename Backend::ForwardArgs>(held, start, in);
    backend.forward(args);
    return start.results();
  }

  static BackwardResults backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                  OptionalTensor dcells, OptionalTensor dgates_out, Tensor h0, Tensor c0,
                                  Tensor weight_hh, OptionalTensor weight_hr, Tensor cells, Tensor gates,
                                  OptionalTensor lengths, OptionalTensor reset_mask, bool wide_gates,
                                  Settings... settings) {
    STD_TORCH_CHECK(!dgates_out,
                    "fastlstm: a gradient of the gates is the reference's to take: call reference_backward");
    BackwardInputs in;
    in.doutput = &doutput, in.dh_n = &dh_n, in.dc_n = &dc_n, in.dcells = &dcells;
    in.h0 = &h0, in.c0 = &c0, in.cells = &cells, in.gates = &gates;
    in.weight_hh = &weight_hh, in.weight_hr = &weight_hr;
    in.lengths = &lengths, in.reset_mask = &reset_mask;
    const BackwardStart start = start_backward(in, wide_gates);
    if (start.done) return start.results();
    const Backend backend(h0, settings...);
    Held held;
    auto args = backward_args<typename Backend::BackwardArgs>(held, start, in);
    backend.backward(args);
    return start.results();
  }
};

}  // namespace fastlstm

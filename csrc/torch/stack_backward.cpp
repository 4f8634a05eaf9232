// lstm_stack_backward: all gradients of lstm_stack_forward in one call, from its tape.

#include "torch/stack_tape.h"

namespace fastlstm {

static std::vector<Tensor> lstm_stack_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                               OptionalTensor dcells, OptionalTensor x, OptionalTensor h0,
                                               OptionalTensor c0, std::vector<Tensor> matrices, Tensor output,
                                               std::vector<Tensor> tape_tensors, OptionalTensor lengths,
                                               OptionalTensor reset_mask, std::optional<std::vector<Tensor>> noise,
                                               int64_t layers, bool bidirectional, bool batch_first, bool wide_products,
                                               std::vector<bool> needs) {
  return must_fit("lstm_stack_backward", [&] {
    const BackwardCall<Stack> checked(doutput, dcells, x, matrices, output, tape_tensors, layers, bidirectional,
                                      batch_first, wide_products, needs);
    const Stack& s = checked.s;
    const Tape& tape = checked.tape;
    const int64_t lowest = checked.lowest, I = checked.I;
    check(dh_n, "dh_n", s.state_sizes(s.P), s.dtype);
    check(dc_n, "dc_n", s.state_sizes(s.H), s.dtype);
    const std::vector<Tensor> factors = noise_of(s, noise);
    const FilledStates h(s, h0, s.P), c(s, c0, s.H);
    const Masks masks(s, lengths, reset_mask);
    masks.fit_lengths(s);
    Gradients into(s, needs, lowest, I);
    std::vector<char> unwanted(s.h_bytes() + s.c_bytes());  // the kernels write the states' gradients in any case

    Held held;
    const void *dh_n_data = held.data(dh_n), *dc_n_data = held.data(dc_n);
    OptionalTensor from_above;  // the gradient of a layer's output, from the layer over it
    if (doutput) from_above = s.time_major(*doutput);
    for (int64_t k = s.L - 1; k >= lowest; --k) {
      const bool last = k == s.L - 1, pass_down = k > lowest;
      const LayerShape shape = s.layer(k, I, s.dtype);
      const OptionalTensor drops = k > 0 && !factors.empty() ? factors[k - 1] : OptionalTensor();
      if (k > 0) check(tape.below(k), "a layer's input", {s.T, s.N, shape.I}, s.dtype);
      check(tape.cells(k), "cells", {s.T, s.N, s.D, s.H}, shape.wide);
      check(tape.gates(k), "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype);
      const Tensor input = k == 0 ? s.time_major(*x) : drops ? times(tape.below(k), *drops) : tape.below(k);
      const std::vector<DirectionWeights> of_layer = tape.weights(k, shape.I);
      OptionalTensor below;
      if (pass_down) below = s.make({s.T, s.N, shape.I});
      Held of_call;
      LayerBackward call{{}, shape, input, of_layer};
      if (from_above) call.doutput = of_call.rows(*from_above, &call.doutput_stride_t, &call.doutput_stride_n);
      call.dh_n = part_of(dh_n_data, k * s.h_bytes());
      call.dc_n = part_of(dc_n_data, k * s.c_bytes());
      OptionalTensor wide_dcells;
      if (last && dcells) {
        wide_dcells = converted(s.time_major(*dcells), shape.wide);
        call.dcells = of_call.data(*wide_dcells);
      }
      call.h0 = h.of(k);
      call.c0 = c.of(k);
      // The output that this layer gave is what the one over it took.
      call.output = last ? s.steps_of(output, of_call) : of_call.data(tape.below(k + 1));
      call.cells = of_call.data(tape.cells(k));
      call.gates = of_call.data(tape.gates(k));
      call.lengths = masks.lengths;
      call.reset_mask = masks.reset_mask;
      call.dx = pass_down ? below->mutable_data_ptr() : k == 0 ? into.data(0) : nullptr;
      call.dh0 = needs[1] ? part_of(into.data(1), k * s.h_bytes()) : unwanted.data();
      call.dc0 = needs[2] ? part_of(into.data(2), k * s.c_bytes()) : unwanted.data() + s.h_bytes();
      for (int64_t d = 0; d < s.D; ++d) call.dweights[d] = into.of(k * s.D + d);
      run(call);
      from_above = pass_down && drops ? times(*below, *drops) : below;
    }
    return into.tensors;
  });
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_stack_backward", TORCH_BOX(&fastlstm::lstm_stack_backward));
}

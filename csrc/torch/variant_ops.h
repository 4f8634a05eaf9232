// lstm_variant_forward and the loop of lstm_variant_backward for the kernels of one backend. Backend and Settings as in
// recurrence_ops.h; its `forward` and `backward` also take the variant. The schemas are in fastlstm/ops/variant.py.
#pragma once

#include "torch/recurrence_args.h"
#include "torch/variant_call.h"

namespace fastlstm {

template <class Backend, class... Settings>
struct VariantOps {
  static ForwardResults forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                                OptionalTensor h_mask, OptionalTensor norm_hh, OptionalTensor norm_c,
                                OptionalTensor bias_c, OptionalTensor lengths, OptionalTensor reset_mask,
                                OptionalTensor seed, double zoneout_h, double zoneout_c, int64_t stream,
                                int64_t first_step, bool save_tape, bool save_cells, Settings... settings) {
    ForwardInputs in;
    in.gates_x = &gates_x, in.h0 = &h0, in.c0 = &c0;
    in.weight_hh = &weight_hh, in.weight_hr = &weight_hr;
    in.lengths = &lengths, in.reset_mask = &reset_mask;
    const ForwardStart start = start_forward(in, save_tape, save_cells);
    Held held;
    const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h,
                                       zoneout_c, stream, first_step);
    if (start.done) return start.results();
    const Backend backend(h0, settings...);
    auto args = forward_args<typename Backend::ForwardArgs>(held, start, in);
    backend.forward(args, variant);
    return start.results();
  }

  static VariantLoopResults loop(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                 OptionalTensor dcells, Tensor h0, Tensor c0, Tensor weight_hh,
                                 OptionalTensor weight_hr, OptionalTensor h_mask, OptionalTensor norm_hh,
                                 OptionalTensor norm_c, OptionalTensor bias_c, Tensor cells, Tensor gates,
                                 Tensor candidates, OptionalTensor product_hat, OptionalTensor product_scale,
                                 OptionalTensor cell_hat, OptionalTensor cell_scale, OptionalTensor lengths,
                                 OptionalTensor reset_mask, OptionalTensor seed, double zoneout_h, double zoneout_c,
                                 int64_t stream, int64_t first_step, bool wide_gates, Settings... settings) {
    BackwardInputs in;
    in.doutput = &doutput, in.dh_n = &dh_n, in.dc_n = &dc_n, in.dcells = &dcells;
    in.h0 = &h0, in.c0 = &c0, in.cells = &cells, in.gates = &gates;
    in.weight_hh = &weight_hh, in.weight_hr = &weight_hr;
    in.lengths = &lengths, in.reset_mask = &reset_mask;
    const BackwardStart start = start_backward(in, wide_gates);
    Held held;
    const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h,
                                       zoneout_c, stream, first_step);
    const VariantLoopStart loop = start_variant_loop(held, start, h0, norm_hh.has_value(), candidates, product_hat,
                                                     product_scale, cell_hat, cell_scale);
    const VariantLoopResults results{start.dgates_x, start.dh0, start.dc0, start.dhidden, loop.dproducts, loop.dshown};
    if (start.done) return results;
    const Backend backend(h0, settings...);
    auto args = backward_args<typename Backend::BackwardArgs>(held, start, in);
    backend.backward(args, variant, loop.tape);
    return results;
  }
};

}  // namespace fastlstm

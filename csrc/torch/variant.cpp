// lstm_variant_forward and the loop of lstm_variant_backward on the CPU. Shapes and meanings stand in
// fastlstm/ops/variant.py and fastlstm/reference/variant.py.

#include "torch/recurrence_args.h"
#include "torch/variant_call.h"

namespace fastlstm {

namespace {

ForwardResults variant_forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                               OptionalTensor h_mask, OptionalTensor norm_hh, OptionalTensor norm_c,
                               OptionalTensor bias_c, OptionalTensor lengths, OptionalTensor reset_mask,
                               OptionalTensor seed, double zoneout_h, double zoneout_c, int64_t stream,
                               int64_t first_step, bool save_tape, bool save_cells) {
  const ForwardInputs in{gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask};
  const ForwardStart start = start_forward(in, save_tape, save_cells);
  Held held;
  const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c,
                                     stream, first_step);
  if (start.done) return start.results();
  const ForwardArgs args = forward_args<ForwardArgs>(held, start, in);
  cpu_kernels().variants->forward(args, variant, threads());
  return start.results();
}

VariantLoopResults variant_loop(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells,
                                Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor h_mask,
                                OptionalTensor norm_hh, OptionalTensor norm_c, OptionalTensor bias_c, Tensor cells,
                                Tensor gates, Tensor candidates, OptionalTensor product_hat,
                                OptionalTensor product_scale, OptionalTensor cell_hat, OptionalTensor cell_scale,
                                OptionalTensor lengths, OptionalTensor reset_mask, OptionalTensor seed,
                                double zoneout_h, double zoneout_c, int64_t stream, int64_t first_step,
                                bool wide_gates) {
  const BackwardInputs in{doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask};
  const BackwardStart start = start_backward(in, wide_gates);
  Held held;
  const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c,
                                     stream, first_step);
  VariantLoopStart loop = start_variant_loop(held, start, h0, norm_hh.has_value(), candidates, product_hat,
                                             product_scale, cell_hat, cell_scale);
  const VariantLoopResults results{start.dgates_x, start.dh0, start.dc0, start.dhidden, loop.dproducts, loop.dshown};
  if (start.done) return results;
  const BackwardArgs args = backward_args<BackwardArgs>(held, start, in);
  cpu_kernels().variants->backward(args, variant, loop.tape, threads());
  return results;
}

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_variant_forward", TORCH_BOX(&fastlstm::variant_forward));
  m.impl("lstm_variant_loop", TORCH_BOX(&fastlstm::variant_loop));
}

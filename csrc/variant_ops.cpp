// lstm_variant_forward and the loop of lstm_variant_backward on the CPU. Shapes and meanings stand in fastlstm/variant_ops.py and
// fastlstm/variant_reference.py.

#include "cpu/variant.h"
#include "variant_call.h"

namespace fastlstm {

namespace {

void by_direction(const void* data, int64_t D, int64_t elements, ScalarType dtype, const void* (&parts)[2]) {
  const int64_t bytes = bytes_of(dtype);
  for (int64_t d = 0; d < D; ++d) parts[d] = data == nullptr ? nullptr : static_cast<const char*>(data) + d * elements * bytes;
}

ForwardResults variant_forward(
    Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor h_mask, OptionalTensor norm_hh,
    OptionalTensor norm_c, OptionalTensor bias_c, OptionalTensor lengths, OptionalTensor reset_mask, OptionalTensor seed,
    double zoneout_h, double zoneout_c, int64_t stream, int64_t first_step, bool save_tape, bool save_cells) {
  ForwardStart start = start_forward(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, save_tape, save_cells);
  check_states(start.wide_states);
  const Sizes& s = start.sizes;
  Held held;
  const Variant variant =
      variant_of(held, s, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c, stream, first_step);
  if (start.done) return start.results();
  const ScalarType dtype = h0.scalar_type();
  ForwardArgs args{};
  args.sizes = s;
  args.dtype = start.io;
  args.wide_gates = start.wide_gates;
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
  cpu_variant_kernels().forward(args, variant, threads());
  return start.results();
}

VariantLoopResults variant_loop(
    OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, Tensor h0, Tensor c0, Tensor weight_hh,
    OptionalTensor weight_hr, OptionalTensor h_mask, OptionalTensor norm_hh, OptionalTensor norm_c, OptionalTensor bias_c,
    Tensor cells, Tensor gates, Tensor candidates, OptionalTensor product_hat, OptionalTensor product_scale, OptionalTensor cell_hat,
    OptionalTensor cell_scale, OptionalTensor lengths, OptionalTensor reset_mask, OptionalTensor seed, double zoneout_h,
    double zoneout_c, int64_t stream, int64_t first_step, bool wide_gates) {
  BackwardStart start = start_backward(doutput, dh_n, dc_n, dcells, std::nullopt, h0, c0, weight_hh, weight_hr, cells, gates, lengths,
                                       reset_mask, wide_gates);
  check_states(start.wide_states);
  const Sizes& s = start.sizes;
  Held held;
  const Variant variant =
      variant_of(held, s, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c, stream, first_step);
  VariantLoopStart loop =
      start_variant_loop(held, start, h0, norm_hh.has_value(), candidates, product_hat, product_scale, cell_hat, cell_scale);
  const VariantLoopResults results{start.dgates_x, start.dh0, start.dc0, start.dhidden, loop.dproducts, loop.dshown};
  if (start.done) return results;
  const ScalarType dtype = h0.scalar_type();
  BackwardArgs args{};
  args.sizes = s;
  args.dtype = start.io;
  args.wide_gates = start.wide_gates;
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
  args.dhidden = weight_hr ? start.dhidden.mutable_data_ptr() : nullptr;
  cpu_variant_kernels().backward(args, variant, loop.tape, threads());
  return results;
}

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_variant_forward", TORCH_BOX(&fastlstm::variant_forward));
  m.impl("lstm_variant_loop", TORCH_BOX(&fastlstm::variant_loop));
}

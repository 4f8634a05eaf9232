// The variants' forward and the loop of their backward on CUDA tensors; see variant.cpp for the same on the CPU, and
// cuda.cpp for the last argument.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "cuda/variant/recurrence.h"
#include "torch/cuda_device.h"
#include "torch/recurrence_args.h"
#include "torch/variant_call.h"

namespace fastlstm {

namespace {

ForwardResults cuda_variant_forward(Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr,
                                    OptionalTensor h_mask, OptionalTensor norm_hh, OptionalTensor norm_c,
                                    OptionalTensor bias_c, OptionalTensor lengths, OptionalTensor reset_mask,
                                    OptionalTensor seed, double zoneout_h, double zoneout_c, int64_t stream,
                                    int64_t first_step, bool save_tape, bool save_cells, bool tf32) {
  const ForwardInputs in{gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask};
  const ForwardStart start = start_forward(in, save_tape, save_cells);
  Held held;
  const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c,
                                     stream, first_step);
  if (start.done) return start.results();
  const OnDevice device(h0);
  cuda::ForwardArgs args = forward_args<cuda::ForwardArgs>(held, start, in);
  args.device = device.index();
  args.tf32 = tf32;
  Tensor workspace = scratch(h0, cuda::variant_forward_workspace(args));
  raise_if_failed(cuda::variant_forward(args, variant, workspace.mutable_data_ptr(), device.stream()));
  return start.results();
}

VariantLoopResults cuda_variant_loop(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                     OptionalTensor dcells, Tensor h0, Tensor c0, Tensor weight_hh,
                                     OptionalTensor weight_hr, OptionalTensor h_mask, OptionalTensor norm_hh,
                                     OptionalTensor norm_c, OptionalTensor bias_c, Tensor cells, Tensor gates,
                                     Tensor candidates, OptionalTensor product_hat, OptionalTensor product_scale,
                                     OptionalTensor cell_hat, OptionalTensor cell_scale, OptionalTensor lengths,
                                     OptionalTensor reset_mask, OptionalTensor seed, double zoneout_h, double zoneout_c,
                                     int64_t stream, int64_t first_step, bool wide_gates, bool tf32) {
  const BackwardInputs in{doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask};
  const BackwardStart start = start_backward(in, wide_gates);
  Held held;
  const Variant variant = variant_of(held, start.sizes, h0, h_mask, norm_hh, norm_c, bias_c, seed, zoneout_h, zoneout_c,
                                     stream, first_step);
  VariantLoopStart loop = start_variant_loop(held, start, h0, norm_hh.has_value(), candidates, product_hat,
                                             product_scale, cell_hat, cell_scale);
  const VariantLoopResults results{start.dgates_x, start.dh0, start.dc0, start.dhidden, loop.dproducts, loop.dshown};
  if (start.done) return results;
  const OnDevice device(h0);
  cuda::BackwardArgs args = backward_args<cuda::BackwardArgs>(held, start, in);
  args.device = device.index();
  args.tf32 = tf32;
  Tensor workspace = scratch(h0, cuda::variant_backward_workspace(args));
  raise_if_failed(cuda::variant_backward(args, variant, loop.tape, workspace.mutable_data_ptr(), device.stream()));
  return results;
}

}  // namespace

}  // namespace fastlstm

#if defined(FASTLSTM_SIMT)
#define FASTLSTM_PREFIX "simt_kernels"
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
#else
#define FASTLSTM_PREFIX "cuda_kernels"
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
#endif
  m.impl(FASTLSTM_PREFIX "_variant_forward", TORCH_BOX(&fastlstm::cuda_variant_forward));
  m.impl(FASTLSTM_PREFIX "_variant_loop", TORCH_BOX(&fastlstm::cuda_variant_loop));
}

#endif

// What the variants' ops check and allocate besides recurrence_call.h, on every device.
#pragma once

#include "core/variant.h"
#include "torch/recurrence_call.h"

namespace fastlstm {

// dgates_x, dh0, dc0, dhidden, dproducts, dshown
using VariantLoopResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The variant that the arguments ask for, checked against the call's sizes; `held` keeps its tensors.
inline Variant variant_of(Held& held, const Sizes& s, const Tensor& h0, const OptionalTensor& h_mask,
                          const OptionalTensor& norm_hh, const OptionalTensor& norm_c, const OptionalTensor& bias_c,
                          const OptionalTensor& seed, double zoneout_h, double zoneout_c, int64_t stream,
                          int64_t first_step) {
  const ScalarType dtype = h0.scalar_type();
  const Where where = Where::of(h0);
  check(h_mask, "h_mask", {s.D, s.N, s.P}, wide_type(dtype), where);
  check(norm_hh, "norm_hh", {s.D, 4 * s.H}, dtype, where);
  check(norm_c, "norm_c", {s.D, s.H}, dtype, where);
  check(bias_c, "bias_c", {s.D, s.H}, dtype, where);
  check(seed, "seed", {1}, ScalarType::Long, where);
  STD_TORCH_CHECK(norm_hh.has_value() == norm_c.has_value() && (norm_c || !bias_c),
                  "fastlstm: norm_hh and norm_c are given both or neither, and bias_c only with them");
  STD_TORCH_CHECK(stream >= 0 && (s.D == 1 || stream % 2 == 0), "fastlstm: stream is ", stream,
                  ", expected 2 * layer, or 2 * layer + 1 for the reverse direction alone");
  for (double p : {zoneout_h, zoneout_c}) {
    STD_TORCH_CHECK(p >= 0 && p <= 1, "fastlstm: zoneout is ", p, ", expected a probability in [0, 1]");
  }
  Variant variant{};
  variant.h_mask = held.data(h_mask);
  variant.norm_hh = held.data(norm_hh);
  variant.norm_c = held.data(norm_c);
  variant.bias_c = held.data(bias_c);
  variant.seed = static_cast<const int64_t*>(held.data(seed));
  variant.zoneout_h = zoneout_h;
  variant.zoneout_c = zoneout_c;
  variant.stream = stream;
  variant.first_step = first_step;
  return variant;
}

// The loop's part of the tape, checked, and its results `dproducts` and `dshown`.
struct VariantLoopStart {
  Tensor dproducts, dshown;
  VariantTape tape;
};

inline VariantLoopStart start_variant_loop(Held& held, const BackwardStart& start, const Tensor& h0, bool normed,
                                           const Tensor& candidates, const OptionalTensor& product_hat,
                                           const OptionalTensor& product_scale, const OptionalTensor& cell_hat,
                                           const OptionalTensor& cell_scale) {
  const Sizes& s = start.sizes;
  const ScalarType wide = wide_type(h0.scalar_type()), gates_type = start.dgates_x.scalar_type();
  const Where where = Where::of(h0);
  check(candidates, "candidates", {s.T, s.N, s.D, s.H}, wide, where);
  check(product_hat, "product_hat", {s.T, s.N, s.D, 4 * s.H}, wide, where);
  check(product_scale, "product_scale", {s.T, s.N, s.D, 1}, wide, where);
  check(cell_hat, "cell_hat", {s.T, s.N, s.D, s.H}, wide, where);
  check(cell_scale, "cell_scale", {s.T, s.N, s.D, 1}, wide, where);
  STD_TORCH_CHECK(!normed || (product_hat && product_scale && cell_hat && cell_scale),
                  "fastlstm: layer normalisation needs product_hat, product_scale, cell_hat and cell_scale");
  VariantLoopStart loop;
  loop.dproducts = normed ? empty_beside(h0, {s.T, s.N, s.D, 4 * s.H}, gates_type) : empty_beside(h0, {0}, gates_type);
  loop.dshown = normed ? empty_beside(h0, {s.T, s.N, s.D, s.H}, wide) : empty_beside(h0, {0}, wide);
  loop.tape = {};
  loop.tape.candidates = held.data(candidates);
  loop.tape.product_hat = held.data(product_hat);
  loop.tape.product_scale = held.data(product_scale);
  loop.tape.cell_hat = held.data(cell_hat);
  loop.tape.cell_scale = held.data(cell_scale);
  loop.tape.dproducts = normed ? loop.dproducts.mutable_data_ptr() : nullptr;
  loop.tape.dshown = normed ? loop.dshown.mutable_data_ptr() : nullptr;
  return loop;
}

}  // namespace fastlstm

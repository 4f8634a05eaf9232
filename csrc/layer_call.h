// What lstm_layer_forward and lstm_layer_backward on the CPU have in common: the checks, and the matrix products around the
// recurrence. The products are torch's own mm; they are made for a stretch of steps at a time, so that gates are still in a
// cache when the recurrence reads them, and no [T, N, 4H] array of them is ever made beside the tape.
#pragma once

#include <algorithm>

#include "ops.h"
#include "tensors.h"

namespace fastlstm {

// Gates of one stretch: rows enough for mm to run at its full rate, and to be worth the threads' start; few enough to be still in a
// near cache when they are used (measured: benchmarks/log.md). The same for every number of threads, so that the sums are too.
inline constexpr int64_t kForwardBytes = int64_t{1} << 20, kBackwardBytes = int64_t{4} << 20, kRowsForProduct = 256;

struct LayerShape {
  int64_t T, N, D, I, H, P;
  ScalarType dtype, wide, product;  // of the tensors, of accumulation, of the matrix products outside the recurrence
  ScalarType states;                // of c and of the gradients of both states: c0's, one of the first two

  int64_t stretch(int64_t bytes) const {
    const int64_t rows = std::max(kRowsForProduct, bytes / (4 * H * bytes_of(product)));
    return std::clamp<int64_t>(rows / std::max<int64_t>(N, 1), 1, std::max<int64_t>(T, 1));
  }
};

struct DirectionWeights {
  Tensor ih, hh;
  OptionalTensor hr;
};

inline LayerShape check_layer(const Tensor& x, const Tensor& h0, const Tensor& c0, const std::vector<DirectionWeights>& weights,
                  const OptionalTensor& lengths, const OptionalTensor& reset_mask, bool wide_products) {
  STD_TORCH_CHECK(x.dim() == 3, "fastlstm: x has ", x.dim(), " dimensions, expected 3: (T, N, I)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  LayerShape s{x.size(0), x.size(1), static_cast<int64_t>(weights.size()), x.size(2), c0.size(2), h0.size(2)};
  s.dtype = h0.scalar_type();
  s.wide = wide_type(s.dtype);
  s.product = wide_products ? s.wide : s.dtype;
  s.states = c0.scalar_type() == s.dtype ? s.dtype : s.wide;
  dtype_of(h0, "h0");
  check_units(s.H, s.P);
  check(x, "x", {s.T, s.N, s.I}, s.dtype);
  check(h0, "h0", {s.D, s.N, s.P}, s.dtype);
  check(c0, "c0", {s.D, s.N, s.H}, s.states);
  for (size_t d = 0; d < weights.size(); ++d) {
    const DirectionWeights& w = weights[d];
    check(w.ih, d == 0 ? "weight_ih" : "weight_ih_reverse", {4 * s.H, s.I}, s.dtype);
    check(w.hh, d == 0 ? "weight_hh" : "weight_hh_reverse", {4 * s.H, s.P}, s.dtype);
    check(w.hr, d == 0 ? "weight_hr" : "weight_hr_reverse", {s.P, s.H}, s.dtype);
    STD_TORCH_CHECK(w.hr || s.P == s.H, "fastlstm: h0 is ", s.P, " wide, expected H = ", s.H, " without weight_hr");
  }
  check_masks(lengths, reset_mask, s.T, s.N);
  return s;
}

inline std::vector<DirectionWeights> by_direction(const Tensor& ih, const Tensor& hh, const OptionalTensor& hr,
                                           const OptionalTensor& ih_reverse, const OptionalTensor& hh_reverse,
                                           const OptionalTensor& hr_reverse) {
  std::vector<DirectionWeights> weights{{ih, hh, hr}};
  STD_TORCH_CHECK(ih_reverse.has_value() == hh_reverse.has_value(),
                  "fastlstm: weight_ih_reverse and weight_hh_reverse come together or not at all");
  STD_TORCH_CHECK(hr_reverse.has_value() == (ih_reverse && hr),
                  "fastlstm: weight_hr_reverse comes with weight_hr where there is a reverse direction, and only there");
  if (ih_reverse) weights.push_back({*ih_reverse, *hh_reverse, hr_reverse});
  return weights;
}

// out = a @ b, in place: out is [rows, columns].
inline void mm_out(Tensor out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the reference that the call returned, and drops it
}

inline Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

inline Tensor converted(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  std::vector<int64_t> sizes;
  for (int64_t k = 0; k < t.dim(); ++k) sizes.push_back(t.size(k));
  Tensor out = empty(sizes, dtype);
  torch::stable::copy_(out, t);
  return out;
}

// Steps [t, t + steps) of a [T, N, width] tensor as contiguous [steps * N, width] rows of `dtype`: a view where that can be.
inline Tensor rows_of(const Tensor& sequence, int64_t t, int64_t steps, ScalarType dtype) {
  Tensor part = converted(torch::stable::narrow(const_cast<Tensor&>(sequence), 0, t, steps), dtype);
  if (!part.is_contiguous()) part = torch::stable::contiguous(part);
  return torch::stable::view(part, {steps * sequence.size(1), sequence.size(2)});
}

// The first `steps` of direction d of a stretch's [D, steps, N, width] array, as [steps * N, width] rows.
inline Tensor stretch_rows(const Tensor& buffer, int64_t d, int64_t steps) {
  Tensor part = torch::stable::select(buffer, 0, d);
  part = torch::stable::narrow(part, 0, 0, steps);
  return torch::stable::view(part, {steps * buffer.size(2), buffer.size(3)});
}

inline Strides stretch_strides(const Tensor& buffer) { return {buffer.stride(0), buffer.stride(1), buffer.stride(2)}; }

}  // namespace fastlstm

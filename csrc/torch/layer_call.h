// What lstm_layer_forward and lstm_layer_backward on the CPU have in common: the checks, and the matrix products around
// the recurrence. The products are the kernels' own, or torch's mm; they are made for a chunk of steps at a time, so
// that gates are still in a cache when the recurrence reads them, and no [T, N, 4H] array of them is ever made beside
// the tape.
#pragma once

#include <algorithm>

#include "cpu/caches.h"
#include "torch/tensors.h"

namespace fastlstm {

// Gates of one chunk: rows enough for a product to run at its full rate, and to be worth the threads' start; few
// enough to be still in a near cache when they are used (measured: benchmarks/log.md). Forward, where a sum is a row's
// own, for each thread, whose caches are its own; backward the same for every number of threads, so that sums over rows
// are too.
inline int64_t forward_bytes() { return second_level_bytes() / 2; }
inline int64_t backward_bytes() { return second_level_bytes() * 2; }
inline constexpr int64_t kRowsForProduct = 256;

struct LayerShape {
  int64_t T, N, D, I, H, P;
  ScalarType dtype, wide, product;  // of the tensors, of accumulation, of the matrix products outside the recurrence
  ScalarType states;                // of c and of the gradients of both states: c0's, one of the first two
  ScalarType weights;               // of the weight matrices: dtype, or bfloat16 beside float32 (`matrix_type`)

  int64_t chunk(int64_t bytes) const {
    const int64_t rows = std::max(kRowsForProduct, bytes / (4 * H * bytes_of(product)));
    return std::clamp<int64_t>(rows / std::max<int64_t>(N, 1), 1, std::max<int64_t>(T, 1));
  }
};

struct DirectionWeights {
  Tensor ih, hh;
  OptionalTensor hr, bias_ih = {}, bias_hh = {};
};

// One layer's forward on arguments that were checked: contiguous but for x, [T, N, I]. Who calls it fills the states,
// the masks and the results of ForwardArgs.
struct LayerForward : ForwardArgs {
  const LayerShape& shape;
  const Tensor& x;
  const std::vector<DirectionWeights>& weights;
};

void run(const LayerForward& call);

// Where the gradients of one direction's weights go, contiguous, of the weights' shapes and type; null where not
// wanted.
struct WeightGradients {
  void *ih, *hh, *bias_ih, *bias_hh, *hr;
};

// One layer's backward, likewise, with the gradients of the results and the tape in BackwardArgs.
struct LayerBackward : BackwardArgs {
  const LayerShape& shape;
  const Tensor& x;
  const std::vector<DirectionWeights>& weights;  // without biases
  void* dx;                                      // [T, N, I] or null
  WeightGradients dweights[2];
};

void run(const LayerBackward& call);

inline LayerShape check_layer(const Tensor& x, const Tensor& h0, const Tensor& c0,
                              const std::vector<DirectionWeights>& weights, const OptionalTensor& lengths,
                              const OptionalTensor& reset_mask, bool wide_products) {
  STD_TORCH_CHECK(x.dim() == 3, "fastlstm: x has ", x.dim(), " dimensions, expected 3: (T, N, I)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3,
                  "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  LayerShape s{x.size(0), x.size(1), static_cast<int64_t>(weights.size()), x.size(2), c0.size(2), h0.size(2)};
  s.dtype = h0.scalar_type();
  s.wide = wide_type(s.dtype);
  s.product = wide_products ? s.wide : s.dtype;
  s.states = c0.scalar_type() == s.dtype ? s.dtype : s.wide;
  s.weights = matrix_type(weights[0].ih, weights[0].hh, s.dtype);
  dtype_of(h0, "h0");
  check_units(s.H, s.P);
  check(x, "x", {s.T, s.N, s.I}, s.dtype);
  check(h0, "h0", {s.D, s.N, s.P}, s.dtype);
  check(c0, "c0", {s.D, s.N, s.H}, s.states);
  for (size_t d = 0; d < weights.size(); ++d) {
    const DirectionWeights& w = weights[d];
    check(w.ih, d == 0 ? "weight_ih" : "weight_ih_reverse", {4 * s.H, s.I}, s.weights);
    check(w.hh, d == 0 ? "weight_hh" : "weight_hh_reverse", {4 * s.H, s.P}, s.weights);
    check(w.hr, d == 0 ? "weight_hr" : "weight_hr_reverse", {s.P, s.H}, s.weights);
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
  STD_TORCH_CHECK(
      hr_reverse.has_value() == (ih_reverse && hr),
      "fastlstm: weight_hr_reverse comes with weight_hr where there is a reverse direction, and only there");
  if (ih_reverse) weights.push_back({*ih_reverse, *hh_reverse, hr_reverse});
  return weights;
}

// A matrix where it lies. Tensors of parts of others, by the dispatcher, take longer than a short sequence's work.
struct Matrix {
  void* data;
  int64_t rows, columns, row_stride, column_stride;
  ScalarType dtype;

  static Matrix contiguous(const void* data, int64_t rows, int64_t columns, ScalarType dtype) {
    return {const_cast<void*>(data), rows, columns, columns, 1, dtype};
  }
  static Matrix of(const Tensor& t) {
    return {const_cast<void*>(t.const_data_ptr()), t.size(0), t.size(1), t.stride(0), t.stride(1), t.scalar_type()};
  }
  Matrix transposed() const { return {data, columns, rows, column_stride, row_stride, dtype}; }

  Tensor tensor() const { return tensor_at(data, {rows, columns}, {row_stride, column_stride}, dtype); }
};

// out = a @ b, in place: out is [rows, columns].
inline void mm_out(const Matrix& out, const Matrix& a, const Matrix& b) {
  call_op<Tensor>("aten::mm", "out", a.tensor(), b.tensor(), out.tensor());
}

inline Tensor converted(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  Tensor out = empty(Extents(t), dtype);
  torch::stable::copy_(out, t);
  return out;
}

// Steps [t, t + steps) of a [T, N, width] tensor as contiguous [steps * N, width] rows of `dtype`: where they lie if
// that can be, else in `kept`.
inline Matrix rows_of(const Tensor& sequence, int64_t t, int64_t steps, ScalarType dtype, Tensor& kept) {
  const int64_t N = sequence.size(1), width = sequence.size(2);
  if (sequence.scalar_type() == dtype && sequence.is_contiguous()) {
    return Matrix::contiguous(static_cast<const char*>(sequence.const_data_ptr()) + t * N * width * bytes_of(dtype),
                              steps * N, width, dtype);
  }
  kept = converted(torch::stable::narrow(const_cast<Tensor&>(sequence), 0, t, steps), dtype);
  if (!kept.is_contiguous()) kept = torch::stable::contiguous(kept);
  return Matrix::contiguous(kept.const_data_ptr(), steps * N, width, dtype);
}

// Gates-like rows of one chunk, [D, steps, N, width]: those of a direction's first steps as [steps * N, width], and
// their strides.
struct ChunkRows {
  char* data = nullptr;
  int64_t steps = 0, N = 0, width = 0;
  ScalarType dtype{};

  Matrix rows(int64_t d, int64_t count) const {
    return Matrix::contiguous(data + d * steps * N * width * bytes_of(dtype), count * N, width, dtype);
  }
  Strides strides() const { return {steps * N * width, N * width, width}; }
};

}  // namespace fastlstm

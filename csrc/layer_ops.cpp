// lstm_layer_forward and lstm_layer_backward: a whole layer, the input product and the weights' gradients inside. The products are
// torch's own mm; they are made for a stretch of steps at a time, so that gates are still in a cache when the recurrence reads
// them, and no [T, N, 4H] array of them is ever made beside the tape.

#include <algorithm>

#include "ops.h"
#include "tensors.h"

namespace fastlstm {

namespace {

// Gates of one stretch: large enough for mm to run at its full rate, small enough for the third-level cache, and below the size
// from which malloc fetches fresh pages every time.
constexpr int64_t kForwardBytes = int64_t{4} << 20, kBackwardBytes = int64_t{16} << 20, kRowsForProduct = 256;

struct Shape {
  int64_t T, N, D, I, H, P;
  ScalarType dtype, wide, product;  // of the tensors, of accumulation, of the matrix products outside the recurrence

  int64_t stretch(int64_t bytes) const {
    const int64_t rows = std::max(kRowsForProduct, bytes / (4 * H * bytes_of(product)));
    return std::clamp<int64_t>(rows / std::max<int64_t>(N, 1), 1, std::max<int64_t>(T, 1));
  }
};

struct DirectionWeights {
  Tensor ih, hh;
  OptionalTensor hr;
};

Shape check_layer(const Tensor& x, const Tensor& h0, const Tensor& c0, const std::vector<DirectionWeights>& weights,
                  const OptionalTensor& lengths, const OptionalTensor& reset_mask, bool wide_products) {
  STD_TORCH_CHECK(x.dim() == 3, "fastlstm: x has ", x.dim(), " dimensions, expected 3: (T, N, I)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  Shape s{x.size(0), x.size(1), static_cast<int64_t>(weights.size()), x.size(2), c0.size(2), h0.size(2)};
  s.dtype = h0.scalar_type();
  s.wide = wide_type(s.dtype);
  s.product = wide_products ? s.wide : s.dtype;
  dtype_of(h0, "h0");
  check_units(s.H, s.P);
  check(x, "x", {s.T, s.N, s.I}, s.dtype);
  check(h0, "h0", {s.D, s.N, s.P}, s.dtype);
  check(c0, "c0", {s.D, s.N, s.H}, s.dtype);
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

std::vector<DirectionWeights> by_direction(const Tensor& ih, const Tensor& hh, const OptionalTensor& hr,
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
void mm_out(Tensor out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the reference that the call returned, and drops it
}

Tensor transposed(const Tensor& t) { return torch::stable::transpose(t, 0, 1); }

Tensor converted(const Tensor& t, ScalarType dtype) {
  if (t.scalar_type() == dtype) return t;
  std::vector<int64_t> sizes;
  for (int64_t k = 0; k < t.dim(); ++k) sizes.push_back(t.size(k));
  Tensor out = empty(sizes, dtype);
  torch::stable::copy_(out, t);
  return out;
}

// Steps [t, t + steps) of a [T, N, width] tensor as contiguous [steps * N, width] rows of `dtype`: a view where that can be.
Tensor rows_of(const Tensor& sequence, int64_t t, int64_t steps, ScalarType dtype) {
  Tensor part = converted(torch::stable::narrow(const_cast<Tensor&>(sequence), 0, t, steps), dtype);
  if (!part.is_contiguous()) part = torch::stable::contiguous(part);
  return torch::stable::view(part, {steps * sequence.size(1), sequence.size(2)});
}

// The first `steps` of direction d of a stretch's [D, steps, N, width] array, as [steps * N, width] rows.
Tensor stretch_rows(const Tensor& buffer, int64_t d, int64_t steps) {
  Tensor part = torch::stable::select(buffer, 0, d);
  part = torch::stable::narrow(part, 0, 0, steps);
  return torch::stable::view(part, {steps * buffer.size(2), buffer.size(3)});
}

Strides stretch_strides(const Tensor& buffer) { return {buffer.stride(0), buffer.stride(1), buffer.stride(2)}; }

template <class T>
void add_elements(void* into, const void* from, int64_t count) {
  torch::stable::parallel_for(0, count, 1 << 15, [&](int64_t begin, int64_t end) {
    T* a = static_cast<T*>(into);
    const T* b = static_cast<const T*>(from);
    for (int64_t k = begin; k < end; ++k) a[k] += b[k];
  });
}

// A sum of matrix products over stretches, kept in the accumulation type.
class Sum {
 public:
  Sum(std::vector<int64_t> sizes, ScalarType wide) : total_(empty(sizes, wide)) { torch::stable::zero_(total_); }

  // Adds a @ b to part d of the sum (part(d): [rows, columns]).
  void add(int64_t d, const Tensor& a, const Tensor& b) {
    Tensor part = torch::stable::select(total_, 0, d);
    if (part.dim() == 1) part = torch::stable::view(part, {1, part.size(0)});
    const bool same = a.scalar_type() == total_.scalar_type();
    if (same && first_[d]) {
      mm_out(part, a, b);
    } else {
      Tensor product = empty({part.size(0), part.size(1)}, a.scalar_type());
      mm_out(product, a, b);
      add_to(part, converted(product, total_.scalar_type()));
    }
    first_[d] = false;
  }

  static void add_to(const Tensor& into, const Tensor& addend) {
    (into.scalar_type() == ScalarType::Double ? add_elements<double> : add_elements<float>)(
        into.mutable_data_ptr(), addend.const_data_ptr(), into.numel());
  }

  Tensor result(ScalarType dtype) const { return converted(total_, dtype); }

 private:
  Tensor total_;
  bool first_[2] = {true, true};
};

Tensor ones(int64_t rows, ScalarType dtype) {
  Tensor t = empty({1, rows}, dtype);
  return torch::stable::fill_(t, 1.0);
}

}  // namespace

ForwardResults lstm_layer_forward(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
                                  OptionalTensor bias_hh, OptionalTensor weight_hr, OptionalTensor weight_ih_reverse,
                                  OptionalTensor weight_hh_reverse, OptionalTensor bias_ih_reverse,
                                  OptionalTensor bias_hh_reverse, OptionalTensor weight_hr_reverse, OptionalTensor lengths,
                                  OptionalTensor reset_mask, bool wide_products, bool save_tape, bool save_cells) {
  const auto weights =
      by_direction(weight_ih, weight_hh, weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse);
  const Shape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  const OptionalTensor biases[2][2] = {{bias_ih, bias_hh}, {bias_ih_reverse, bias_hh_reverse}};
  check(bias_ih, "bias_ih", {4 * s.H}, s.dtype);
  check(bias_hh, "bias_hh", {4 * s.H}, s.dtype);
  check(bias_ih_reverse, "bias_ih_reverse", {4 * s.H}, s.dtype);
  check(bias_hh_reverse, "bias_hh_reverse", {4 * s.H}, s.dtype);
  STD_TORCH_CHECK(s.D == 2 || !bias_ih_reverse, "fastlstm: bias_ih_reverse without a reverse direction");
  STD_TORCH_CHECK(s.D == 2 || !bias_hh_reverse, "fastlstm: bias_hh_reverse without a reverse direction");

  Tensor output = on_large_pages(empty({s.T, s.N, s.D * s.P}, s.dtype)), h_n = empty({s.D, s.N, s.P}, s.dtype),
         c_n = empty({s.D, s.N, s.H}, s.dtype);
  const bool keep_cells = save_tape || save_cells;
  Tensor cells = keep_cells ? on_large_pages(empty({s.T, s.N, s.D, s.H}, s.wide)) : empty({0}, s.wide);
  Tensor gates = save_tape ? on_large_pages(empty({s.T, s.N, s.D, 4 * s.H}, s.dtype)) : empty({0}, s.dtype);
  if (s.T == 0 || s.N == 0) {
    torch::stable::copy_(h_n, h0);
    torch::stable::copy_(c_n, c0);
    return {output, h_n, c_n, cells, gates};
  }

  struct Context {
    const Shape& s;
    const Tensor& x;
    Tensor gates_x;
    std::vector<Tensor> weights;  // of each direction, [I, 4H]
  } context{s, x, empty({s.D, s.stretch(kForwardBytes), s.N, 4 * s.H}, s.product), {}};
  for (const DirectionWeights& w : weights) context.weights.push_back(transposed(converted(w.ih, s.product)));
  const auto make_gates = [](void* p, int64_t k0, int64_t k1) {
    auto& c = *static_cast<Context*>(p);
    for (int64_t d = 0; d < c.s.D; ++d) {
      const int64_t t = d == 0 ? k0 : c.s.T - k1;
      mm_out(stretch_rows(c.gates_x, d, k1 - k0), rows_of(c.x, t, k1 - k0, c.s.product), c.weights[d]);
    }
  };

  Held held;
  ForwardArgs args{};
  args.sizes = {s.T, s.N, s.D, s.H, s.P};
  args.dtype = dtype_of(h0, "h0");
  args.wide_gates = s.product != s.dtype;
  args.gates_x = context.gates_x.const_data_ptr();
  args.gates_strides = stretch_strides(context.gates_x);
  args.stretches = {context.gates_x.size(1), make_gates, &context};
  args.h0 = held.data(h0);
  args.c0 = held.data(c0);
  for (int64_t d = 0; d < s.D; ++d) {
    args.weight_hh[d] = held.data(weights[d].hh);
    args.weight_hr[d] = held.data(weights[d].hr);
    args.bias_ih[d] = held.data(biases[d][0]);
    args.bias_hh[d] = held.data(biases[d][1]);
  }
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.cells = keep_cells ? cells.mutable_data_ptr() : nullptr;
  args.gates = save_tape ? gates.mutable_data_ptr() : nullptr;
  cpu_kernels().forward(args, threads());
  return {output, h_n, c_n, cells, gates};
}

namespace {

// What the stretches of a backward pass add up to.
struct Gradients {
  const Shape& s;
  const Tensor& x;
  bool need_dx, need_dweights, projected;
  std::vector<Tensor> weights_ih;                        // [4H, I]
  Tensor dgates, dhidden, h_entering, unprojected;       // of one stretch: [D, steps, N, width]
  Tensor dx;                                             // [T, N, I]
  Sum dweight_ih, dweight_hh, dbias, dweight_hr;

  void take(int64_t k0, int64_t k1) {
    const int64_t steps = k1 - k0;
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t t = d == 0 ? k0 : s.T - k1;
      const Tensor dgates_rows = stretch_rows(dgates, d, steps);
      if (need_dx) add_dx(d, t, steps, dgates_rows);
      if (!need_dweights) continue;
      dweight_ih.add(d, transposed(dgates_rows), rows_of(x, t, steps, s.product));
      dweight_hh.add(d, transposed(dgates_rows), stretch_rows(h_entering, d, steps));
      dbias.add(d, ones(steps * s.N, s.product), dgates_rows);
      if (projected) dweight_hr.add(d, transposed(stretch_rows(dhidden, d, steps)), stretch_rows(unprojected, d, steps));
    }
  }

  void add_dx(int64_t d, int64_t t, int64_t steps, const Tensor& dgates_rows) {
    Tensor rows = torch::stable::view(torch::stable::narrow(dx, 0, t, steps), {steps * s.N, s.I});
    if (s.D == 1 && dx.scalar_type() == s.product) {
      mm_out(rows, dgates_rows, weights_ih[d]);
      return;
    }
    Tensor product = empty({steps * s.N, s.I}, s.product);
    mm_out(product, dgates_rows, weights_ih[d]);
    if (s.D == 1) {
      torch::stable::copy_(rows, product);
    } else {
      Sum::add_to(rows, converted(product, dx.scalar_type()));
    }
  }
};

}  // namespace

LayerBackwardResults lstm_layer_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells,
                                         Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh,
                                         OptionalTensor weight_hr, OptionalTensor weight_ih_reverse,
                                         OptionalTensor weight_hh_reverse, OptionalTensor weight_hr_reverse, Tensor output,
                                         Tensor cells, Tensor gates, OptionalTensor lengths, OptionalTensor reset_mask,
                                         bool wide_products, bool need_dx, bool need_dweights) {
  const auto weights =
      by_direction(weight_ih, weight_hh, weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse);
  const Shape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  check(output, "output", {s.T, s.N, s.D * s.P}, s.dtype);
  check(cells, "cells", {s.T, s.N, s.D, s.H}, s.wide);
  check(gates, "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype);
  check(doutput, "doutput", {s.T, s.N, s.D * s.P}, s.dtype);
  check(dh_n, "dh_n", {s.D, s.N, s.P}, s.dtype);
  check(dc_n, "dc_n", {s.D, s.N, s.H}, s.dtype);
  check(dcells, "dcells", {s.T, s.N, s.D, s.H}, s.wide);

  const bool projected = weight_hr.has_value();
  const int64_t steps = s.stretch(kBackwardBytes);
  const auto buffer = [&](bool wanted, int64_t width, ScalarType dtype) {
    return wanted ? empty({s.D, steps, s.N, width}, dtype) : empty({0}, dtype);
  };
  const auto sum = [&](bool wanted, std::vector<int64_t> sizes) {
    return Sum(need_dweights && wanted ? sizes : std::vector<int64_t>{0}, s.wide);
  };
  // Two directions add to the same dx, in the accumulation type; one writes it.
  Gradients g{s, x, need_dx, need_dweights, projected, {},
              buffer(true, 4 * s.H, s.product), buffer(projected, s.P, s.wide), buffer(need_dweights, s.P, s.product),
              buffer(need_dweights && projected, s.H, s.wide),
              need_dx ? on_large_pages(empty({s.T, s.N, s.I}, s.D == 1 ? s.dtype : s.wide)) : empty({0}, s.dtype),
              sum(true, {s.D, 4 * s.H, s.I}), sum(true, {s.D, 4 * s.H, s.P}), sum(true, {s.D, 4 * s.H}),
              sum(projected, {s.D, s.P, s.H})};
  for (const DirectionWeights& w : weights) g.weights_ih.push_back(converted(w.ih, s.product));
  if (s.D == 2) torch::stable::zero_(g.dx);

  Tensor dh0 = empty({s.D, s.N, s.P}, s.dtype), dc0 = empty({s.D, s.N, s.H}, s.dtype);
  if (s.T == 0 || s.N == 0) {
    if (dh_n) torch::stable::copy_(dh0, *dh_n); else torch::stable::zero_(dh0);
    if (dc_n) torch::stable::copy_(dc0, *dc_n); else torch::stable::zero_(dc0);
  } else {
    Held held;
    BackwardArgs args{};
    args.sizes = {s.T, s.N, s.D, s.H, s.P};
    args.dtype = dtype_of(h0, "h0");
    args.wide_gates = s.product != s.dtype;
    if (doutput) args.doutput = held.rows(*doutput, &args.doutput_stride_t, &args.doutput_stride_n);
    args.dh_n = held.data(dh_n);
    args.dc_n = held.data(dc_n);
    args.dcells = held.data(dcells);
    args.h0 = held.data(h0);
    args.c0 = held.data(c0);
    for (int64_t d = 0; d < s.D; ++d) {
      args.weight_hh[d] = held.data(weights[d].hh);
      args.weight_hr[d] = held.data(weights[d].hr);
    }
    args.output = held.data(output);
    args.cells = held.data(cells);
    args.gates = held.data(gates);
    args.lengths = static_cast<const int64_t*>(held.data(lengths));
    args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
    args.dh0 = dh0.mutable_data_ptr();
    args.dc0 = dc0.mutable_data_ptr();
    const auto place = [](const Tensor& t, void** data, Strides* strides) {
      if (t.dim() != 4) return;
      *data = t.mutable_data_ptr();
      *strides = stretch_strides(t);
    };
    place(g.dgates, &args.dgates_x, &args.dgates_strides);
    place(g.dhidden, &args.dhidden, &args.dhidden_strides);
    place(g.h_entering, &args.h_entering, &args.h_entering_strides);
    place(g.unprojected, &args.unprojected, &args.unprojected_strides);
    args.stretches = {steps, [](void* p, int64_t k0, int64_t k1) { static_cast<Gradients*>(p)->take(k0, k1); }, &g};
    cpu_kernels().backward(args, threads());
  }
  return {converted(g.dx, s.dtype), dh0, dc0, g.dweight_ih.result(s.dtype), g.dweight_hh.result(s.dtype),
          g.dbias.result(s.dtype), g.dweight_hr.result(s.dtype)};
}

}  // namespace fastlstm

// lstm_layer_backward on the CPU: the recurrence backwards, and all of the layer's gradients.

#include "layer_products.h"

namespace fastlstm {

namespace {

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

  // The same sum as a target of the kernels' own product.
  Target own_target(int64_t d, const Factor& right) {
    const bool first = first_[d];
    first_[d] = false;
    return target(torch::stable::select(total_, 0, d), right, nullptr, !first);
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

// What the stretches of a backward pass add up to.
struct Gradients {
  const LayerShape& s;
  const Tensor& x;
  bool need_dx, need_dweights, projected;
  PartCounts parts;
  bool own_dweights;                                     // those of W_ih and W_hh are the kernels' own products
  std::vector<Tensor> weights_ih;                        // [4H, I]
  std::vector<OwnWeight> own_weights_ih;                 // instead of these, where dx is
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
      add_dweights(d, dgates_rows, rows_of(x, t, steps, s.product), stretch_rows(h_entering, d, steps));
      dbias.add(d, ones(steps * s.N, s.product), dgates_rows);
      if (projected) dweight_hr.add(d, transposed(stretch_rows(dhidden, d, steps)), stretch_rows(unprojected, d, steps));
    }
  }

  void add_dweights(int64_t d, const Tensor& dgates_rows, const Tensor& x_rows, const Tensor& h_rows) {
    const Tensor left = transposed(dgates_rows);
    if (own_dweights) {
      multiply_own(left, parts.gradients, {dweight_ih.own_target(d, right_factor(x_rows, parts.values)),
                                           dweight_hh.own_target(d, right_factor(h_rows, parts.values))});
    } else {
      dweight_ih.add(d, left, x_rows);
      dweight_hh.add(d, left, h_rows);
    }
  }

  void add_dx(int64_t d, int64_t t, int64_t steps, const Tensor& dgates_rows) {
    Tensor rows = torch::stable::view(torch::stable::narrow(dx, 0, t, steps), {steps * s.N, s.I});
    const bool own = !own_weights_ih.empty();
    if (dx.scalar_type() == s.product && (own || s.D == 1)) {
      own ? own_weights_ih[d].multiply(rows, dgates_rows, s.D == 2) : mm_out(rows, dgates_rows, weights_ih[d]);
      return;
    }
    Tensor product = empty({steps * s.N, s.I}, s.product);
    own ? own_weights_ih[d].multiply(product, dgates_rows, false) : mm_out(product, dgates_rows, weights_ih[d]);
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
  const LayerShape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  check(output, "output", {s.T, s.N, s.D * s.P}, s.dtype);
  check(cells, "cells", {s.T, s.N, s.D, s.H}, s.wide);
  check(gates, "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype);
  check(doutput, "doutput", {s.T, s.N, s.D * s.P}, s.dtype);
  check(dh_n, "dh_n", {s.D, s.N, s.P}, s.states);
  check(dc_n, "dc_n", {s.D, s.N, s.H}, s.states);
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
  const PartCounts parts = PartCounts::of(s.dtype);
  const bool own_dweights = own_product(s.product, 4 * s.H, s.I + s.P, steps * s.N, parts.gradients, parts.values);
  Gradients g{s, x, need_dx, need_dweights, projected, parts, own_dweights, {}, {},
              buffer(true, 4 * s.H, s.product), buffer(projected, s.P, s.wide), buffer(need_dweights, s.P, s.product),
              buffer(need_dweights && projected, s.H, s.wide),
              need_dx ? on_large_pages(empty({s.T, s.N, s.I}, s.D == 1 ? s.dtype : s.wide)) : empty({0}, s.dtype),
              sum(true, {s.D, 4 * s.H, s.I}), sum(true, {s.D, 4 * s.H, s.P}), sum(true, {s.D, 4 * s.H}),
              sum(projected, {s.D, s.P, s.H})};
  const bool own_dx = need_dx && own_product(s.product, steps * s.N, s.I, 4 * s.H, parts.gradients, parts.values);
  for (const DirectionWeights& w : weights) {
    if (own_dx) {
      g.own_weights_ih.emplace_back(w.ih, parts, true);
    } else {
      g.weights_ih.push_back(converted(w.ih, s.product));
    }
  }
  if (s.D == 2) torch::stable::zero_(g.dx);

  Tensor dh0 = empty({s.D, s.N, s.P}, s.states), dc0 = empty({s.D, s.N, s.H}, s.states);
  if (s.T == 0 || s.N == 0) {
    if (dh_n) torch::stable::copy_(dh0, *dh_n); else torch::stable::zero_(dh0);
    if (dc_n) torch::stable::copy_(dc0, *dc_n); else torch::stable::zero_(dc0);
  } else {
    Held held;
    BackwardArgs args{};
    args.sizes = {s.T, s.N, s.D, s.H, s.P};
    args.dtype = dtype_of(h0, "h0");
    args.float32_parts = parts.values;
    args.wide_gates = s.product != s.dtype;
    args.wide_states = s.states != s.dtype;
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

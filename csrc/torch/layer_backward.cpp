// lstm_layer_backward on the CPU: the recurrence backwards, and all of the layer's gradients.

#include "torch/existing_rows.h"
#include "torch/weight_sums.h"

namespace fastlstm {

namespace {

// What the chunks of a backward pass add up to.
struct Gradients {
  const LayerShape& s;
  const Tensor& x;
  const int64_t* lengths;
  PartCounts parts;
  bool own_dweights;                      // those of W_ih and W_hh are the kernels' own products
  std::vector<Tensor> weights_ih;         // [4H, I]
  std::vector<OwnWeight> own_weights_ih;  // instead of these, where dx is
  ChunkRows dgates, dhidden, h_entering, unprojected;
  Matrix ones;  // [1, rows of a chunk], where dgates are not in the accumulation type
  Matrix dx;    // [T * N, I]; without data where not wanted
  std::vector<DirectionSums> dweights;

  // `shares` workers of the recurrence share a row's units.
  void take(int64_t k0, int64_t k1, int shares) {
    const int64_t steps = k1 - k0;
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t t = d == 0 ? k0 : s.T - k1;
      const Matrix dgates_rows = dgates.rows(d, steps);
      if (dx.data != nullptr) add_dx(d, t, steps, dgates_rows);
      DirectionSums& sums = dweights[d];
      Tensor kept;
      const auto x_rows = [&] {
        const ScalarType type = own_dweights ? value_type(s.product, s.dtype, parts.values) : s.product;
        return existing_rows_of(x, t, steps, lengths, type, kept);
      };
      sums.add_gates(dgates_rows, parts, own_dweights, shares, x_rows, [&] { return h_entering.rows(d, steps); });
      if (sums.bias.wanted()) {
        if (s.product == s.wide) {
          sums.bias.add_rows(dgates_rows);
        } else {
          Matrix row = ones;
          row.columns = steps * s.N;
          sums.bias.add(row, dgates_rows);
        }
      }
      if (sums.hr.wanted()) sums.add_projected(dhidden.rows(d, steps), unprojected.rows(d, steps));
    }
  }

  void add_dx(int64_t d, int64_t t, int64_t steps, const Matrix& dgates_rows) {
    Matrix rows = dx;
    rows.data = static_cast<char*>(dx.data) + t * s.N * s.I * bytes_of(dx.dtype);
    rows.rows = steps * s.N;
    const bool own = !own_weights_ih.empty();
    if (dx.dtype == s.product && (own || s.D == 1)) {
      own ? own_weights_ih[d].multiply(rows, dgates_rows, s.D == 2)
          : mm_out(rows, dgates_rows, Matrix::of(weights_ih[d]));
      return;
    }
    Tensor product = empty({steps * s.N, s.I}, s.product);
    const Matrix made = Matrix::of(product);
    own ? own_weights_ih[d].multiply(made, dgates_rows, false) : mm_out(made, dgates_rows, Matrix::of(weights_ih[d]));
    if (s.D == 1) {
      Tensor into = rows.tensor();
      torch::stable::copy_(into, product);
    } else {
      Sum::add_to(rows, converted(product, dx.dtype));
    }
  }
};

// Parts of one block of memory.
class Parts {
 public:
  // Room for this many bytes, to be had by `take` once all were asked for.
  int64_t room(int64_t bytes) {
    const int64_t first = bytes_;
    bytes_ += (bytes + 63) / 64 * 64;
    return first;
  }
  char* take(int64_t first) {
    if (!block_) block_ = empty({bytes_}, ScalarType::Byte);
    return static_cast<char*>(block_->mutable_data_ptr()) + first;
  }

 private:
  int64_t bytes_ = 0;
  OptionalTensor block_;
};

void fill_ones(void* into, int64_t count, ScalarType dtype) {
  const auto fill = [&](auto one) {
    for (int64_t k = 0; k < count; ++k) static_cast<decltype(one)*>(into)[k] = one;
  };
  switch (dtype) {
    case ScalarType::Double:
      return fill(1.0);
    case ScalarType::Float:
      return fill(1.0f);
    case ScalarType::BFloat16:
      return fill(uint16_t{0x3f80});
    default:
      return fill(uint16_t{0x3c00});
  }
}

void copy_or_clear(void* into, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (from != nullptr) {
    __builtin_memcpy(into, from, bytes);
  } else {
    __builtin_memset(into, 0, bytes);
  }
}

}  // namespace

void run(const LayerBackward& call) {
  const LayerShape& s = call.shape;
  std::vector<DirectionSums> sums;
  for (int64_t d = 0; d < s.D; ++d) sums.emplace_back(s, call.dweights[d]);
  if (s.T == 0 || s.N == 0) {
    copy_or_clear(call.dh0, call.dh_n, s.D * s.N * s.P * bytes_of(s.states));
    copy_or_clear(call.dc0, call.dc_n, s.D * s.N * s.H * bytes_of(s.states));
    for (int64_t d = 0; d < s.D; ++d) sums[d].finish(s, call.dweights[d]);
    return;
  }

  const auto any = [&](auto member) {
    return call.dweights[0].*member != nullptr || call.dweights[1].*member != nullptr;
  };
  const bool projected = call.weights[0].hr.has_value(), need_dhr = projected && any(&WeightGradients::hr),
             need_ones = s.product != s.wide && (any(&WeightGradients::bias_ih) || any(&WeightGradients::bias_hh));
  const int64_t steps = s.chunk(backward_bytes()), chunk = s.D * steps * s.N;
  Parts memory;
  const int64_t at_dgates = memory.room(chunk * 4 * s.H * bytes_of(s.product)),
                at_dhidden = memory.room(projected ? chunk * s.P * bytes_of(s.wide) : 0),
                at_entering = memory.room(any(&WeightGradients::hh) ? chunk * s.P * bytes_of(s.product) : 0),
                at_unprojected = memory.room(need_dhr ? chunk * s.H * bytes_of(s.wide) : 0),
                at_ones = memory.room(need_ones ? steps * s.N * bytes_of(s.product) : 0);
  const auto buffer = [&](bool wanted, int64_t place, int64_t width, ScalarType dtype) {
    return wanted ? ChunkRows{memory.take(place), steps, s.N, width, dtype} : ChunkRows{};
  };
  const PartCounts parts = PartCounts::of(s.dtype);
  // Two directions add to the same dx, in the accumulation type; one writes it.
  const ScalarType dx_type = s.D == 1 ? s.dtype : s.wide;
  OptionalTensor wide_dx;
  void* dx = call.dx;
  if (dx != nullptr && dx_type != s.dtype) {
    wide_dx = on_large_pages(empty({s.T * s.N, s.I}, dx_type));
    dx = wide_dx->mutable_data_ptr();
  }
  if (dx != nullptr && s.D == 2) copy_or_clear(dx, nullptr, s.T * s.N * s.I * bytes_of(dx_type));
  Gradients g{s,
              call.x,
              call.lengths,
              parts,
              own_product(s.product, 4 * s.H, s.I + s.P, steps * s.N, parts.gradients, parts.values),
              {},
              {},
              buffer(true, at_dgates, 4 * s.H, s.product),
              buffer(projected, at_dhidden, s.P, s.wide),
              buffer(any(&WeightGradients::hh), at_entering, s.P, s.product),
              buffer(need_dhr, at_unprojected, s.H, s.wide),
              Matrix::contiguous(need_ones ? memory.take(at_ones) : nullptr, 1, steps * s.N, s.product),
              Matrix::contiguous(dx, s.T * s.N, s.I, dx_type),
              std::move(sums)};
  if (need_ones) fill_ones(g.ones.data, steps * s.N, s.product);
  const bool own_dx = dx != nullptr && own_product(s.product, steps * s.N, s.I, 4 * s.H, parts.gradients, parts.values);
  for (const DirectionWeights& w : call.weights) {
    if (own_dx) {
      g.own_weights_ih.emplace_back(w.ih, s.product, parts, true, steps >= s.T);
    } else if (dx != nullptr) {
      g.weights_ih.push_back(converted(w.ih, s.product));
    }
  }

  Held held;
  BackwardArgs args = call;
  args.sizes = {s.T, s.N, s.D, s.H, s.P};
  args.dtype = dtype_of(call.x, "x");
  args.float32_parts = parts.values;
  args.wide_gates = s.product != s.dtype;
  args.wide_states = s.states != s.dtype;
  for (int64_t d = 0; d < s.D; ++d) {
    args.weight_hh[d] = held.data(call.weights[d].hh);
    args.weight_hr[d] = held.data(call.weights[d].hr);
  }
  const auto place = [](const ChunkRows& rows, void** data, Strides* strides) {
    *data = rows.data;
    *strides = rows.strides();
  };
  place(g.dgates, &args.dgates_x, &args.dgates_strides);
  place(g.dhidden, &args.dhidden, &args.dhidden_strides);
  place(g.h_entering, &args.h_entering, &args.h_entering_strides);
  place(g.unprojected, &args.unprojected, &args.unprojected_strides);
  args.chunks = {
      steps, [](void* p, int64_t k0, int64_t k1, int shares) { static_cast<Gradients*>(p)->take(k0, k1, shares); }, &g};
  cpu_kernels().backward(args, threads());
  for (int64_t d = 0; d < s.D; ++d) g.dweights[d].finish(s, call.dweights[d]);
  if (wide_dx) {
    Tensor into = Matrix::contiguous(call.dx, s.T * s.N, s.I, s.dtype).tensor();
    torch::stable::copy_(into, *wide_dx);
  }
}

// dx, dh0, dc0, dweight_ih, dweight_hh, dbias, dweight_hr.
using LayerBackwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

static LayerBackwardResults lstm_layer_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                                OptionalTensor dcells, Tensor x, Tensor h0, Tensor c0, Tensor weight_ih,
                                                Tensor weight_hh, OptionalTensor weight_hr,
                                                OptionalTensor weight_ih_reverse, OptionalTensor weight_hh_reverse,
                                                OptionalTensor weight_hr_reverse, Tensor output, Tensor cells,
                                                Tensor gates, OptionalTensor lengths, OptionalTensor reset_mask,
                                                bool wide_products, bool need_dx, bool need_dweights) {
  const auto weights =
      by_direction(weight_ih, weight_hh, weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse);
  const LayerShape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  STD_TORCH_CHECK(s.weights == s.dtype, "fastlstm: weight_hh has a dtype that does not fit h0's");
  check(output, "output", {s.T, s.N, s.D * s.P}, s.dtype);
  check(cells, "cells", {s.T, s.N, s.D, s.H}, s.wide);
  check(gates, "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype);
  check(doutput, "doutput", {s.T, s.N, s.D * s.P}, s.dtype);
  check(dh_n, "dh_n", {s.D, s.N, s.P}, s.states);
  check(dc_n, "dc_n", {s.D, s.N, s.H}, s.states);
  check(dcells, "dcells", {s.T, s.N, s.D, s.H}, s.wide);

  const bool projected = weight_hr.has_value();
  const auto gradient = [&](bool wanted, const Extents& sizes, ScalarType dtype) {
    return wanted ? on_large_pages(empty(sizes, dtype)) : empty({0}, dtype);
  };
  Tensor dx = gradient(need_dx, {s.T, s.N, s.I}, s.dtype), dh0 = empty({s.D, s.N, s.P}, s.states),
         dc0 = empty({s.D, s.N, s.H}, s.states), dweight_ih = gradient(need_dweights, {s.D, 4 * s.H, s.I}, s.dtype),
         dweight_hh = gradient(need_dweights, {s.D, 4 * s.H, s.P}, s.dtype),
         dbias = gradient(need_dweights, {s.D, 4 * s.H}, s.dtype),
         dweight_hr = gradient(need_dweights && projected, {s.D, s.P, s.H}, s.dtype);
  Held held;
  LayerBackward call{{}, s, x, weights};
  call.dh_n = held.data(dh_n);
  call.dc_n = held.data(dc_n);
  call.dcells = held.data(dcells);
  call.h0 = held.data(h0);
  call.c0 = held.data(c0);
  call.output = held.data(output);
  call.cells = held.data(cells);
  call.gates = held.data(gates);
  call.lengths = static_cast<const int64_t*>(held.data(lengths));
  call.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  call.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
  call.dh0 = dh0.mutable_data_ptr();
  call.dc0 = dc0.mutable_data_ptr();
  if (doutput) call.doutput = held.rows(*doutput, &call.doutput_stride_t, &call.doutput_stride_n);
  for (int64_t d = 0; need_dweights && d < s.D; ++d) {
    const auto part = [&](const Tensor& t, int64_t elements) {
      return static_cast<void*>(static_cast<char*>(t.mutable_data_ptr()) + d * elements * bytes_of(s.dtype));
    };
    call.dweights[d] = {part(dweight_ih, 4 * s.H * s.I), part(dweight_hh, 4 * s.H * s.P), part(dbias, 4 * s.H), nullptr,
                        projected ? part(dweight_hr, s.P * s.H) : nullptr};
  }
  run(call);
  return {dx, dh0, dc0, dweight_ih, dweight_hh, dbias, dweight_hr};
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_layer_backward", TORCH_BOX(&fastlstm::lstm_layer_backward));
}

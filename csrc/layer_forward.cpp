// lstm_layer_forward on the CPU: a whole layer, the input product inside.

#include "layer_products.h"

namespace fastlstm {

namespace {

// gates = rows @ weight^T in the product's type. A 16-bit weight that serves one stretch alone is widened a part at a time, so
// that it goes from cache to cache: a whole copy is fresh memory, whose pages cost more than the product of a few rows.
void multiply_once(const Tensor& gates, const Tensor& rows, const Tensor& weight, ScalarType product) {
  constexpr int64_t kPartBytes = int64_t{1} << 20;
  const int64_t columns = weight.size(0), I = weight.size(1);
  const int64_t most = std::clamp<int64_t>(kPartBytes / std::max<int64_t>(I * bytes_of(product), 1), 64, columns);
  Tensor wide = empty({most, I}, product);
  for (int64_t first = 0; first < columns; first += most) {
    const int64_t count = std::min(most, columns - first);
    Tensor part = torch::stable::narrow(wide, 0, 0, count), out = gates;
    torch::stable::copy_(part, torch::stable::narrow(const_cast<Tensor&>(weight), 0, first, count));
    mm_out(torch::stable::narrow(out, 1, first, count), rows, transposed(part));
  }
}

// Whether the gate inputs of all steps are made at once, by the kernels' own product: up to about 0.2 ms of it, where mm's call and
// the views for it would cost a good part of that, and as long as the gates stay in the second-level cache.
bool is_short(const LayerShape& s) {
  constexpr int64_t kMostProducts = int64_t{1} << 24;
  const int64_t gates = s.T * s.N * 4 * s.H;
  return s.D * gates * bytes_of(s.wide) <= kForwardBytes && gates * s.I <= kMostProducts;
}

void make_gates_at_once(const LayerShape& s, const Tensor& x, const std::vector<DirectionWeights>& weights, Held& held,
                        ForwardArgs& args) {
  const int64_t gates = s.T * s.N * 4 * s.H, bytes = gates * bytes_of(s.wide);
  char* made = Workspace::take(s.D * bytes, Workspace::kGates);
  for (int64_t d = 0; d < s.D; ++d) {
    cpu_kernels().gates({s.T * s.N, s.I, s.H, args.dtype, held.data(x), held.data(weights[d].ih), made + d * bytes}, threads());
  }
  args.wide_gates = s.wide != s.dtype;
  args.gates_x = made;
  args.gates_strides = {gates, s.N * 4 * s.H, 4 * s.H};
}

}  // namespace

ForwardResults lstm_layer_forward(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
                                  OptionalTensor bias_hh, OptionalTensor weight_hr, OptionalTensor weight_ih_reverse,
                                  OptionalTensor weight_hh_reverse, OptionalTensor bias_ih_reverse,
                                  OptionalTensor bias_hh_reverse, OptionalTensor weight_hr_reverse, OptionalTensor lengths,
                                  OptionalTensor reset_mask, bool wide_products, bool save_tape, bool save_cells) {
  const auto weights =
      by_direction(weight_ih, weight_hh, weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse);
  const LayerShape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  const OptionalTensor biases[2][2] = {{bias_ih, bias_hh}, {bias_ih_reverse, bias_hh_reverse}};
  check(bias_ih, "bias_ih", {4 * s.H}, s.dtype);
  check(bias_hh, "bias_hh", {4 * s.H}, s.dtype);
  check(bias_ih_reverse, "bias_ih_reverse", {4 * s.H}, s.dtype);
  check(bias_hh_reverse, "bias_hh_reverse", {4 * s.H}, s.dtype);
  STD_TORCH_CHECK(s.D == 2 || !bias_ih_reverse, "fastlstm: bias_ih_reverse without a reverse direction");
  STD_TORCH_CHECK(s.D == 2 || !bias_hh_reverse, "fastlstm: bias_hh_reverse without a reverse direction");

  Tensor output = on_large_pages(empty({s.T, s.N, s.D * s.P}, s.dtype)), h_n = empty({s.D, s.N, s.P}, s.dtype),
         c_n = empty({s.D, s.N, s.H}, s.states);
  const bool keep_cells = save_tape || save_cells;
  Tensor cells = keep_cells ? on_large_pages(empty({s.T, s.N, s.D, s.H}, s.wide)) : empty({0}, s.wide);
  Tensor gates = save_tape ? on_large_pages(empty({s.T, s.N, s.D, 4 * s.H}, s.dtype)) : empty({0}, s.dtype);
  if (s.T == 0 || s.N == 0) {
    torch::stable::copy_(h_n, h0);
    torch::stable::copy_(c_n, c0);
    return {output, h_n, c_n, cells, gates};
  }

  Held held;
  ForwardArgs args{};
  args.sizes = {s.T, s.N, s.D, s.H, s.P};
  args.dtype = dtype_of(h0, "h0");
  args.wide_states = s.states != s.dtype;
  const PartCounts parts = PartCounts::of(s.dtype);
  args.float32_parts = parts.values;
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
  const int64_t rows = s.N * std::min(s.T, s.stretch(kForwardBytes));
  const bool own = own_product(s.product, rows, 4 * s.H, s.I, parts.values, parts.values);
  if (!own && is_short(s)) {
    make_gates_at_once(s, x, weights, held, args);
    cpu_kernels().forward(args, threads());
    return {output, h_n, c_n, cells, gates};
  }

  struct Context {
    const LayerShape& s;
    const Tensor& x;
    Tensor gates_x;
    bool once;                    // one stretch, of products in a wider type than the weights'
    std::vector<Tensor> weights;  // of each direction, [I, 4H]; with `once` [4H, I] as they came
    std::vector<OwnWeight> own;   // instead of these, where the products are the kernels' own
  } context{s, x, empty({s.D, s.stretch(kForwardBytes), s.N, 4 * s.H}, s.product), s.product != s.dtype, {}, {}};
  context.once = context.once && context.gates_x.size(1) >= s.T;
  for (const DirectionWeights& w : weights) {
    if (own) {
      context.own.emplace_back(w.ih, parts, false);
      continue;
    }
    context.weights.push_back(context.once ? w.ih : transposed(converted(w.ih, s.product)));
  }
  const auto make_gates = [](void* p, int64_t k0, int64_t k1) {
    auto& c = *static_cast<Context*>(p);
    for (int64_t d = 0; d < c.s.D; ++d) {
      const int64_t t = d == 0 ? k0 : c.s.T - k1;
      const Tensor gates = stretch_rows(c.gates_x, d, k1 - k0), rows = rows_of(c.x, t, k1 - k0, c.s.product);
      if (!c.own.empty()) {
        c.own[d].multiply(gates, rows, false);
      } else if (c.once) {
        multiply_once(gates, rows, c.weights[d], c.s.product);
      } else {
        mm_out(gates, rows, c.weights[d]);
      }
    }
  };
  args.wide_gates = s.product != s.dtype;
  args.gates_x = context.gates_x.const_data_ptr();
  args.gates_strides = stretch_strides(context.gates_x);
  args.stretches = {context.gates_x.size(1), make_gates, &context};
  cpu_kernels().forward(args, threads());
  return {output, h_n, c_n, cells, gates};
}

}  // namespace fastlstm

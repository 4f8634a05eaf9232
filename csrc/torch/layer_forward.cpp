// lstm_layer_forward on the CPU: a whole layer, the input product inside.

#include "torch/layer_products.h"

namespace fastlstm {

namespace {

// gates = rows @ weight^T in the product's type. A narrower weight that serves one chunk alone is widened a part at a
// time, so that it goes from cache to cache: a whole copy is fresh memory, whose pages cost more than the product of a
// few rows.
void multiply_once(const Matrix& gates, const Matrix& rows, const Tensor& weight, ScalarType product) {
  constexpr int64_t kPartBytes = int64_t{1} << 20;
  const int64_t columns = weight.size(0), I = weight.size(1);
  const int64_t most = std::clamp<int64_t>(kPartBytes / std::max<int64_t>(I * bytes_of(product), 1), 64, columns);
  Tensor wide = empty({most, I}, product);
  for (int64_t first = 0; first < columns; first += most) {
    const int64_t count = std::min(most, columns - first);
    Tensor part = torch::stable::narrow(wide, 0, 0, count);
    torch::stable::copy_(part, torch::stable::narrow(const_cast<Tensor&>(weight), 0, first, count));
    Matrix out = gates;
    out.data = static_cast<char*>(gates.data) + first * gates.column_stride * bytes_of(product);
    out.columns = count;
    mm_out(out, rows, Matrix::of(part).transposed());
  }
}

// Whether the gate inputs of all steps are made at once, by the step's product: up to about 0.2 ms of it, where the
// tensors and calls of a large product would cost a good part of that, and as long as the gates stay in the
// second-level cache.
bool is_short(const LayerShape& s) {
  constexpr int64_t kMostProducts = int64_t{1} << 24;
  const int64_t gates = s.T * s.N * 4 * s.H;
  return s.D * gates * bytes_of(s.wide) <= forward_bytes() && gates * s.I <= kMostProducts;
}

void make_gates_at_once(const LayerShape& s, const Tensor& x, const std::vector<DirectionWeights>& weights, Held& held,
                        ForwardArgs& args) {
  const int64_t gates = s.T * s.N * 4 * s.H, bytes = gates * bytes_of(s.wide);
  char* made = Workspace::take(s.D * bytes, Workspace::kGates);
  for (int64_t d = 0; d < s.D; ++d) {
    cpu_kernels().gates({s.T * s.N, s.I, s.H, args.dtype, args.narrow_weights, held.data(x), held.data(weights[d].ih),
                         made + d * bytes},
                        threads());
  }
  args.wide_gates = s.wide != s.dtype;
  args.gates_x = made;
  args.gates_strides = {gates, s.N * 4 * s.H, 4 * s.H};
}

}  // namespace

void run(const LayerForward& call) {
  const LayerShape& s = call.shape;
  const int64_t h_bytes = s.D * s.N * s.P * bytes_of(s.dtype), c_bytes = s.D * s.N * s.H * bytes_of(s.states);
  if (s.T == 0 || s.N == 0) {
    if (h_bytes > 0) __builtin_memcpy(call.h_n, call.h0, h_bytes);
    if (c_bytes > 0) __builtin_memcpy(call.c_n, call.c0, c_bytes);
    return;
  }

  Held held;
  ForwardArgs args = call;
  args.sizes = {s.T, s.N, s.D, s.H, s.P};
  args.dtype = dtype_of(call.x, "x");
  args.wide_states = s.states != s.dtype;
  args.narrow_weights = s.weights != s.dtype;
  const PartCounts parts = PartCounts::of(s.dtype);
  args.float32_parts = parts.values;
  for (int64_t d = 0; d < s.D; ++d) {
    const DirectionWeights& w = call.weights[d];
    args.weight_hh[d] = held.data(w.hh);
    args.weight_hr[d] = held.data(w.hr);
    args.bias_ih[d] = held.data(w.bias_ih);
    args.bias_hh[d] = held.data(w.bias_hh);
  }
  const int64_t steps = s.chunk(forward_bytes() * threads().count), rows = s.N * std::min(s.T, steps);
  const bool own = own_product(s.product, rows, 4 * s.H, s.I, parts.values, parts.values);
  // By multiply-adds, both ways give the same bits where a sum is one slab; by pairs, a short sequence's rounding is
  // another.
  if (is_short(s) && (!own || (!cpu_kernels().takes_parts && s.I <= kProductSlab))) {
    make_gates_at_once(s, call.x, call.weights, held, args);
    cpu_kernels().forward(args, threads());
    return;
  }

  Tensor gates_x = empty({s.D, steps, s.N, 4 * s.H}, s.product);
  struct Context {
    const LayerShape& s;
    const Tensor& x;
    ChunkRows gates_x;
    int parts;                    // of a value
    bool once;                    // one chunk, of products in a wider type than the weights'
    std::vector<Tensor> weights;  // of each direction, [4H, I]; with `once` as they came
    std::vector<OwnWeight> own;   // instead of these, where the products are the kernels' own
  } context{s,
            call.x,
            {static_cast<char*>(gates_x.mutable_data_ptr()), steps, s.N, 4 * s.H, s.product},
            parts.values,
            s.product != s.weights,
            {},
            {}};
  context.once = context.once && steps >= s.T;
  for (const DirectionWeights& w : call.weights) {
    if (own) {
      context.own.emplace_back(w.ih, s.product, parts, false, steps >= s.T);
    } else {
      context.weights.push_back(context.once ? w.ih : converted(w.ih, s.product));
    }
  }
  const auto make_gates = [](void* p, int64_t k0, int64_t k1, int shares) {
    auto& c = *static_cast<Context*>(p);
    for (int64_t d = 0; d < c.s.D; ++d) {
      const int64_t t = d == 0 ? k0 : c.s.T - k1;
      const bool own = !c.own.empty();
      Tensor kept;
      const Matrix gates = c.gates_x.rows(d, k1 - k0),
                   rows =
                       rows_of(c.x, t, k1 - k0, own ? value_type(c.s.product, c.s.dtype, c.parts) : c.s.product, kept);
      if (own) {
        c.own[d].multiply(gates, rows, false, shares);
      } else if (c.once) {
        multiply_once(gates, rows, c.weights[d], c.s.product);
      } else {
        mm_out(gates, rows, Matrix::of(c.weights[d]).transposed());
      }
    }
  };
  args.wide_gates = s.product != s.dtype;
  args.gates_x = context.gates_x.data;
  args.gates_strides = context.gates_x.strides();
  args.chunks = {steps, make_gates, &context};
  cpu_kernels().forward(args, threads());
}

static ForwardResults lstm_layer_forward(Tensor x, Tensor h0, Tensor c0, Tensor weight_ih, Tensor weight_hh,
                                         OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor weight_hr,
                                         OptionalTensor weight_ih_reverse, OptionalTensor weight_hh_reverse,
                                         OptionalTensor bias_ih_reverse, OptionalTensor bias_hh_reverse,
                                         OptionalTensor weight_hr_reverse, OptionalTensor lengths,
                                         OptionalTensor reset_mask, bool wide_products, bool save_tape,
                                         bool save_cells) {
  auto weights = by_direction(weight_ih, weight_hh, weight_hr, weight_ih_reverse, weight_hh_reverse, weight_hr_reverse);
  const LayerShape s = check_layer(x, h0, c0, weights, lengths, reset_mask, wide_products);
  STD_TORCH_CHECK(!save_tape || s.weights == s.dtype,
                  "fastlstm: weights in bfloat16 beside float32 tensors have no backward; widen them for it");
  check(bias_ih, "bias_ih", {4 * s.H}, s.dtype);
  check(bias_hh, "bias_hh", {4 * s.H}, s.dtype);
  check(bias_ih_reverse, "bias_ih_reverse", {4 * s.H}, s.dtype);
  check(bias_hh_reverse, "bias_hh_reverse", {4 * s.H}, s.dtype);
  STD_TORCH_CHECK(s.D == 2 || !bias_ih_reverse, "fastlstm: bias_ih_reverse without a reverse direction");
  STD_TORCH_CHECK(s.D == 2 || !bias_hh_reverse, "fastlstm: bias_hh_reverse without a reverse direction");
  weights[0].bias_ih = bias_ih;
  weights[0].bias_hh = bias_hh;
  if (s.D == 2) {
    weights[1].bias_ih = bias_ih_reverse;
    weights[1].bias_hh = bias_hh_reverse;
  }

  Tensor output = on_large_pages(empty({s.T, s.N, s.D * s.P}, s.dtype)), h_n = empty({s.D, s.N, s.P}, s.dtype),
         c_n = empty({s.D, s.N, s.H}, s.states);
  const bool keep_cells = save_tape || save_cells;
  Tensor cells = keep_cells ? on_large_pages(empty({s.T, s.N, s.D, s.H}, s.wide)) : empty({0}, s.wide);
  Tensor gates = save_tape ? on_large_pages(empty({s.T, s.N, s.D, 4 * s.H}, s.dtype)) : empty({0}, s.dtype);
  Held held;
  LayerForward call{{}, s, x, weights};
  call.h0 = held.data(h0);
  call.c0 = held.data(c0);
  call.lengths = static_cast<const int64_t*>(held.data(lengths));
  call.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  call.output = output.mutable_data_ptr();
  call.h_n = h_n.mutable_data_ptr();
  call.c_n = c_n.mutable_data_ptr();
  call.cells = keep_cells ? cells.mutable_data_ptr() : nullptr;
  call.gates = save_tape ? gates.mutable_data_ptr() : nullptr;
  run(call);
  return {output, h_n, c_n, cells, gates};
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) { m.impl("lstm_layer_forward", TORCH_BOX(&fastlstm::lstm_layer_forward)); }

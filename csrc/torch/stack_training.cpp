// lstm_training_forward and lstm_training_backward: a whole stack and its gradients, each in one call. Beside a short
// sequence's work, an op and a node of autograd for each layer, and the views and copies between them, are most of the
// time.

#include "torch/layer_call.h"

namespace fastlstm {

namespace {

// The stack as the tensors' shapes give it. Sequences come and go as the caller has them: (T, N, width), (N, T, width)
// with `turned`, or (T, width) without rows; states as (L * D, N, width) or (L * D, width).
struct Stack {
  int64_t L, D, each, T, N, H, P;  // each: weights of a layer's direction
  bool batched, turned;
  ScalarType dtype, product;

  Stack(const Tensor& sequence, const Tensor& weight_hh, int64_t count, int64_t layers, bool bidirectional,
        bool batch_first, bool wide_products)
      : L(layers),
        D(bidirectional ? 2 : 1),
        each(layers > 0 ? count / (layers * D) : 0),
        batched(sequence.dim() == 3),
        turned(batched && batch_first),
        dtype(sequence.scalar_type()),
        product(wide_products ? wide_type(dtype) : dtype) {
    STD_TORCH_CHECK(batched || sequence.dim() == 2, "fastlstm: x has ", sequence.dim(),
                    " dimensions, expected 3, or 2 without rows");
    STD_TORCH_CHECK(each >= 2 && each <= 5 && count == each * L * D, "fastlstm: got ", count, " weights for ", L,
                    " layers of ", D, " directions, expected 2 to 5 for each");
    T = sequence.size(turned ? 1 : 0);
    N = batched ? sequence.size(turned ? 0 : 1) : 1;
    dtype_of(sequence, "x");
    STD_TORCH_CHECK(weight_hh.dim() == 2 && weight_hh.size(0) % 4 == 0,
                    "fastlstm: weight_hh has another shape than (4H, P)");
    H = weight_hh.size(0) / 4;
    P = weight_hh.size(1);
    check_units(H, P);
    STD_TORCH_CHECK(projected() || P == H, "fastlstm: weight_hh has ", P, " columns, expected H = ", H,
                    " without weight_hr");
  }

  bool biased() const { return each >= 4; }
  bool projected() const { return each % 2 == 1; }
  int64_t bytes() const { return bytes_of(dtype); }

  LayerShape layer(int64_t k, int64_t I) const {
    return {T, N, D, k == 0 ? I : D * P, H, P, dtype, wide_type(dtype), product, dtype, dtype};
  }

  std::vector<int64_t> sequence_sizes(int64_t width) const {
    if (!batched) return {T, width};
    return turned ? std::vector<int64_t>{N, T, width} : std::vector<int64_t>{T, N, width};
  }
  std::vector<int64_t> state_sizes(int64_t width) const {
    return batched ? std::vector<int64_t>{L * D, N, width} : std::vector<int64_t>{L * D, width};
  }

  // A new sequence as the caller has them, its steps one after the other in memory.
  Tensor new_sequence(int64_t width) const {
    if (turned) return empty(sequence_sizes(width), {width, N * width, 1}, dtype);
    return empty(sequence_sizes(width), dtype);
  }
  Tensor time_major(const Tensor& sequence) const {
    if (!batched) return torch::stable::unsqueeze(sequence, 1);
    return turned ? torch::stable::transpose(sequence, 0, 1) : sequence;
  }
  // The numbers of a sequence of the caller's, step after step.
  const void* steps_of(const Tensor& sequence, Held& held) const {
    const bool lies_so = turned && sequence.stride(2) == 1 && sequence.stride(0) == sequence.size(2) &&
                         sequence.stride(1) == N * sequence.size(2);
    return lies_so || (!turned && sequence.is_contiguous()) ? sequence.const_data_ptr()
                                                            : held.data(time_major(sequence));
  }

  // The first layer that has a gradient to give, L where none has; `needs` says of x, h0, c0 and every weight whether
  // its is wanted.
  int64_t lowest(const std::vector<bool>& needs) const {
    STD_TORCH_CHECK(static_cast<int64_t>(needs.size()) == 3 + each * L * D, "fastlstm: needs has ", needs.size(),
                    " entries, expected ", 3 + each * L * D);
    if (needs[0] || needs[1] || needs[2]) return 0;
    return (std::find(needs.begin() + 3, needs.end(), true) - needs.begin() - 3) / (each * D);
  }
};

const char* part_of(const void* data, int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + bytes;
}

// `to`, of the same layout, with the numbers of `from`. The output goes to the caller, who may write into it (`out +=
// x`), and the tape's is another. Made again from the gates and cells it would take no memory, but be rounded otherwise
// in 16 bits, and with a projection cost a product.
Tensor copy_of(const Tensor& from, Tensor to) {
  on_large_pages(to);
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  torch::stable::parallel_for(
      0, from.numel() * bytes_of(from.scalar_type()), int64_t{1} << 18,
      [&](int64_t begin, int64_t end) { __builtin_memcpy(target + begin, source + begin, end - begin); });
  return to;
}

// States as they lie in memory, zeros where there are none.
class States {
 public:
  States(const Stack& s, const OptionalTensor& given, const char* name, int64_t width) {
    if (given) {
      check(*given, name, s.state_sizes(width), s.dtype);
      data_ = held_.data(*given);
      return;
    }
    zeros_.resize(s.D * s.N * width * s.bytes());
    data_ = zeros_.data();
  }
  // Of the layer whose first number is `bytes` from the first layer's.
  const void* of(int64_t bytes) const { return zeros_.empty() ? part_of(data_, bytes) : data_; }

 private:
  Held held_;
  std::vector<char> zeros_;
  const void* data_;
};

}  // namespace

std::vector<Tensor> lstm_training_forward(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                          int64_t layers, bool bidirectional, bool batch_first, bool wide_products,
                                          std::vector<bool> needs) {
  STD_TORCH_CHECK(weights.size() >= 2, "fastlstm: got ", weights.size(), " weights");
  const Stack s(x, weights[1], static_cast<int64_t>(weights.size()), layers, bidirectional, batch_first, wide_products);
  const int64_t lowest = s.lowest(needs), I = x.size(x.dim() - 1);
  check(x, "x", s.sequence_sizes(I), s.dtype);
  const States h(s, h0, "h0", s.P), c(s, c0, "c0", s.H);
  Tensor h_n = empty(s.state_sizes(s.P), s.dtype), c_n = empty(s.state_sizes(s.H), s.dtype);
  std::vector<Tensor> results{s.new_sequence(s.D * s.P), h_n, c_n};
  results[0] = on_large_pages(results[0]);
  const int64_t h_bytes = s.D * s.N * s.P * s.bytes(), c_bytes = s.D * s.N * s.H * s.bytes();
  Tensor input = s.time_major(x);
  for (int64_t k = 0; k < s.L; ++k) {
    const LayerShape shape = s.layer(k, I);
    std::vector<DirectionWeights> of_layer;
    for (int64_t d = 0; d < s.D; ++d) {
      const Tensor* w = weights.data() + (k * s.D + d) * s.each;
      check(w[0], "weight_ih", {4 * s.H, shape.I}, s.dtype);
      check(w[1], "weight_hh", {4 * s.H, s.P}, s.dtype);
      DirectionWeights found{w[0], w[1]};
      if (s.biased()) {
        check(w[2], "bias_ih", {4 * s.H}, s.dtype);
        check(w[3], "bias_hh", {4 * s.H}, s.dtype);
        found.bias_ih = w[2];
        found.bias_hh = w[3];
      }
      if (s.projected()) {
        check(w[s.each - 1], "weight_hr", {s.P, s.H}, s.dtype);
        found.hr = w[s.each - 1];
      }
      of_layer.push_back(std::move(found));
    }
    const bool last = k == s.L - 1, kept = k >= lowest;
    Tensor output = last ? results[0] : on_large_pages(empty({s.T, s.N, s.D * s.P}, s.dtype));
    LayerForward call{shape,
                      input,
                      of_layer,
                      h.of(k * h_bytes),
                      c.of(k * c_bytes),
                      nullptr,
                      nullptr,
                      output.mutable_data_ptr(),
                      static_cast<char*>(h_n.mutable_data_ptr()) + k * h_bytes,
                      static_cast<char*>(c_n.mutable_data_ptr()) + k * c_bytes,
                      nullptr,
                      nullptr};
    if (kept) {
      Tensor cells = on_large_pages(empty({s.T, s.N, s.D, s.H}, shape.wide)),
             gates = on_large_pages(empty({s.T, s.N, s.D, 4 * s.H}, s.dtype));
      call.cells = cells.mutable_data_ptr();
      call.gates = gates.mutable_data_ptr();
      if (k > 0) results.push_back(input);
      results.push_back(cells);
      results.push_back(gates);
    }
    run(call);
    input = output;
  }
  results.push_back(copy_of(results[0], s.new_sequence(s.D * s.P)));
  return results;
}

std::vector<Tensor> lstm_training_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                           OptionalTensor x, OptionalTensor h0, OptionalTensor c0,
                                           std::vector<Tensor> matrices, Tensor output, std::vector<Tensor> tape,
                                           int64_t layers, bool bidirectional, bool batch_first, bool wide_products,
                                           std::vector<bool> needs) {
  const int64_t count = static_cast<int64_t>(matrices.size());
  STD_TORCH_CHECK(count >= 2, "fastlstm: got ", count, " matrices");
  const int64_t entries = std::max<int64_t>(layers * (bidirectional ? 2 : 1), 1),
                weights = static_cast<int64_t>(needs.size()) - 3, kinds = weights / entries % 2 == 1 ? 3 : 2;
  const Stack s(output, matrices[count / kinds], weights, layers, bidirectional, batch_first, wide_products);
  // Not every gradient that the forward kept a tape for may be wanted.
  const int64_t kept = (static_cast<int64_t>(tape.size()) + 1) / 3, taped = s.L - kept, lowest = s.lowest(needs);
  STD_TORCH_CHECK(kept <= s.L && static_cast<int64_t>(tape.size()) == 3 * kept - (taped == 0 ? 1 : 0) &&
                      count == kinds * kept * s.D,
                  "fastlstm: got ", count, " matrices and a tape of ", tape.size(), " tensors for ", layers, " layers");
  STD_TORCH_CHECK(lowest >= taped, "fastlstm: gradients of layer ", lowest,
                  " are wanted, and there is a tape from layer ", taped, " on");
  const bool need_dx = needs[0];
  check(output, "output", s.sequence_sizes(s.D * s.P), s.dtype);
  check(doutput, "doutput", s.sequence_sizes(s.D * s.P), s.dtype);
  check(dh_n, "dh_n", s.state_sizes(s.P), s.dtype);
  check(dc_n, "dc_n", s.state_sizes(s.H), s.dtype);
  STD_TORCH_CHECK(lowest > 0 || x, "fastlstm: the first layer's gradients are wanted, and there is no x");
  const int64_t I = lowest == 0 ? x->size(x->dim() - 1) : 0;
  if (lowest == 0) check(*x, "x", s.sequence_sizes(I), s.dtype);
  const States h(s, h0, "h0", s.P), c(s, c0, "c0", s.H);

  std::vector<Tensor> results;
  const auto wanted = [&](bool need, const auto& make) -> void* {
    if (!need) return nullptr;
    results.push_back(make());
    return results.back().mutable_data_ptr();
  };
  void* dx = wanted(need_dx, [&] { return on_large_pages(s.new_sequence(I)); });
  void* dh0 = wanted(needs[1], [&] { return empty(s.state_sizes(s.P), s.dtype); });
  void* dc0 = wanted(needs[2], [&] { return empty(s.state_sizes(s.H), s.dtype); });
  const int64_t h_bytes = s.D * s.N * s.P * s.bytes(), c_bytes = s.D * s.N * s.H * s.bytes();
  std::vector<char> unwanted(h_bytes + c_bytes);  // the kernels write these gradients in any case
  // Of all layers before the first is begun, so that they come out in the weights' order.
  std::vector<WeightGradients> dweights(s.L * s.D);
  for (int64_t j = lowest * s.D; j < s.L * s.D; ++j) {
    const int64_t first = 3 + j * s.each, bias = s.biased() ? first + 2 : -1;
    const auto gradient = [&](int64_t place, std::vector<int64_t> sizes) {
      return wanted(place >= 0 && needs[place], [&] { return on_large_pages(empty(sizes, s.dtype)); });
    };
    WeightGradients& into = dweights[j];
    into.ih = gradient(first, {4 * s.H, s.layer(j / s.D, I).I});
    into.hh = gradient(first + 1, {4 * s.H, s.P});
    into.bias_ih = gradient(bias, {4 * s.H});
    into.bias_hh = gradient(bias < 0 ? bias : bias + 1, {4 * s.H});
    into.hr = gradient(s.projected() ? first + s.each - 1 : -1, {s.P, s.H});
  }

  Held held;
  const void *dh_n_data = held.data(dh_n), *dc_n_data = held.data(dc_n);
  Tensor from_above;  // the gradient of a layer's output, from the layer over it
  const Tensor* next = tape.data() + tape.size();
  for (int64_t k = s.L - 1; k >= lowest; --k) {
    const LayerShape shape = s.layer(k, I);
    next -= k > 0 ? 3 : 2;
    const Tensor input = k > 0 ? next[0] : s.time_major(*x), &cells = next[k > 0 ? 1 : 0], &gates = next[k > 0 ? 2 : 1];
    if (k > 0) check(input, "a layer's input", {s.T, s.N, shape.I}, s.dtype);
    check(cells, "cells", {s.T, s.N, s.D, s.H}, shape.wide);
    check(gates, "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype);
    std::vector<DirectionWeights> of_layer;
    for (int64_t d = 0; d < s.D; ++d) {
      const int64_t j = (k - taped) * s.D + d;
      check(matrices[j], "weight_ih", {4 * s.H, shape.I}, s.dtype);
      check(matrices[kept * s.D + j], "weight_hh", {4 * s.H, s.P}, s.dtype);
      DirectionWeights found{matrices[j], matrices[kept * s.D + j]};
      if (s.projected()) {
        check(matrices[2 * kept * s.D + j], "weight_hr", {s.P, s.H}, s.dtype);
        found.hr = matrices[2 * kept * s.D + j];
      }
      of_layer.push_back(std::move(found));
    }
    Tensor below;
    const bool pass_down = k > lowest;
    if (pass_down) below = on_large_pages(empty({s.T, s.N, shape.I}, s.dtype));
    Held of_call;
    LayerBackward call{shape,
                       input,
                       of_layer,
                       nullptr,
                       0,
                       0,
                       part_of(dh_n_data, k * h_bytes),
                       part_of(dc_n_data, k * c_bytes),
                       nullptr,
                       h.of(k * h_bytes),
                       c.of(k * c_bytes),
                       nullptr,
                       of_call.data(cells),
                       of_call.data(gates),
                       nullptr,
                       nullptr,
                       pass_down ? below.mutable_data_ptr()
                       : k == 0  ? dx
                                 : nullptr,
                       dh0 ? static_cast<char*>(dh0) + k * h_bytes : unwanted.data(),
                       dc0 ? static_cast<char*>(dc0) + k * c_bytes : unwanted.data() + h_bytes,
                       {}};
    // The output that this layer gave is what the one over it took.
    call.output = k == s.L - 1 ? s.steps_of(output, of_call) : of_call.data(next[k > 0 ? 3 : 2]);
    if (k < s.L - 1) {
      call.doutput = of_call.rows(from_above, &call.doutput_stride_t, &call.doutput_stride_n);
    } else if (doutput) {
      call.doutput = of_call.rows(s.time_major(*doutput), &call.doutput_stride_t, &call.doutput_stride_n);
    }
    for (int64_t d = 0; d < s.D; ++d) call.dweights[d] = dweights[k * s.D + d];
    run(call);
    from_above = below;
  }
  return results;
}

}  // namespace fastlstm

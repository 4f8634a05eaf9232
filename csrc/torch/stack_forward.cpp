// lstm_stack_forward: a whole stack in one call, with the tape of its gradients where these are wanted. Beside a short
// sequence's work, a call of an op for each layer, and what surrounds it in Python, is most of the time.

#include "torch/direct_steps.h"

namespace fastlstm {

namespace {

// The weights of layer k, by direction, from the flat list: of each direction weight_ih, weight_hh, both biases or
// neither, weight_hr or not.
std::vector<DirectionWeights> weights_of(const Stack& s, const std::vector<Tensor>& weights, int64_t k) {
  std::vector<DirectionWeights> of_layer;
  for (int64_t d = 0; d < s.D; ++d) {
    const Tensor* w = weights.data() + (k * s.D + d) * s.each;
    DirectionWeights found{w[0], w[1]};
    if (s.biased()) {
      found.bias_ih = w[2];
      found.bias_hh = w[3];
    }
    if (s.projected()) found.hr = w[s.each - 1];
    of_layer.push_back(std::move(found));
  }
  return of_layer;
}

// `to`, of the same layout, with the numbers of `from`. The output goes to the caller, who may write into it (`out +=
// x`), and the tape's is another. Made again from the gates and cells it would take no memory, but be rounded otherwise
// in 16 bits, and with a projection cost a product.
Tensor copy_of(const Tensor& from, Tensor to) {
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  torch::stable::parallel_for(
      0, from.numel() * bytes_of(from.scalar_type()), int64_t{1} << 18,
      [&](int64_t begin, int64_t end) { __builtin_memcpy(target + begin, source + begin, end - begin); });
  return to;
}

// The last layer's cells for the caller: in the tensors' type and laid out as the output.
class CellSequence {
 public:
  CellSequence(const Stack& s, bool wanted) : s_(s) {
    if (wanted) made_ = s.make_sequence(s.D * s.H);
  }
  // Where kernels that write cells in the accumulation type may put them, if that is here.
  void* place(bool taped) const { return made_ && !taped && is_wide() ? made_->mutable_data_ptr() : nullptr; }
  // Where they are written in the tensors' type.
  char* direct() const { return made_ ? static_cast<char*>(made_->mutable_data_ptr()) : nullptr; }

  void take(const void* cells) {
    if (!made_ || cells == made_->const_data_ptr()) return;
    const int64_t rows = s_.T * s_.N, width = s_.D * s_.H;
    Tensor into = Matrix::contiguous(made_->const_data_ptr(), rows, width, s_.dtype).tensor();
    if (rows > 0) torch::stable::copy_(into, Matrix::contiguous(cells, rows, width, wide_type(s_.dtype)).tensor());
  }
  void give(std::vector<Tensor>& results) const {
    if (made_) results.push_back(*made_);
  }

 private:
  bool is_wide() const { return wide_type(s_.dtype) == s_.dtype; }

  const Stack& s_;
  OptionalTensor made_;
};

}  // namespace

static std::vector<Tensor> lstm_stack_forward(Tensor x, OptionalTensor h0, OptionalTensor c0,
                                              std::vector<Tensor> weights, OptionalTensor lengths,
                                              OptionalTensor reset_mask, std::optional<std::vector<Tensor>> noise,
                                              int64_t layers, bool bidirectional, bool batch_first, bool wide_products,
                                              bool save_cells, bool own_output,
                                              std::optional<std::vector<bool>> needs) {
  return if_fit([&]() -> std::vector<Tensor> {
    fit(weights.size() >= 2);
    const Stack s(x, weights[1], static_cast<int64_t>(weights.size()), layers, bidirectional, batch_first,
                  wide_products);
    const ScalarType matrices = matrix_type(weights[0], weights[1], s.dtype);
    const bool taped = needs && !needs->empty();
    const int64_t lowest = taped ? s.lowest(*needs) : s.L, I = x.size(x.dim() - 1);
    fit(!taped || matrices == s.dtype);
    fit(x, s.sequence_sizes(I), s.dtype);
    const bool direct = !taped && DirectSteps::serve(s);
    if (!direct) fit_weights(s, weights, I, matrices);  // direct steps check theirs themselves
    const std::vector<Tensor> factors = noise_of(s, noise);
    const FilledStates h(s, h0, s.P), c(s, c0, s.H);
    const Masks masks(s, lengths, reset_mask);
    masks.fit_lengths(s);

    Tensor output = s.make_sequence(s.D * s.P), h_n = empty(s.state_sizes(s.P), s.dtype),
           c_n = empty(s.state_sizes(s.H), s.dtype);
    CellSequence sequence(s, save_cells);
    std::vector<Tensor> tape;
    std::optional<DirectSteps> steps;
    if (direct) steps.emplace(s, masks, dtype_of(x, "x"));
    Tensor input = direct ? x : s.time_major(x);
    OptionalTensor below;  // the output of the layer below, before dropout
    for (int64_t k = 0; k < s.L; ++k) {
      const bool last = k == s.L - 1;
      Tensor made = last ? output : s.make({s.T, s.N, s.D * s.P});
      const LayerShape shape = s.layer(k, I, matrices);
      const char *h_k = static_cast<const char*>(h.of(k)), *c_k = static_cast<const char*>(c.of(k));
      char *h_n_k = part_of(h_n.mutable_data_ptr(), k * s.h_bytes()),
           *c_n_k = part_of(c_n.mutable_data_ptr(), k * s.c_bytes());
      if (steps) {
        Held held;
        const void* rows = k == 0 ? s.steps_of(x, held) : held.data(input);
        for (int64_t d = 0; d < s.D; ++d) {
          const int64_t h_row = d * s.h_bytes() / s.D, c_row = d * s.c_bytes() / s.D;
          steps->run(d, step_weights(weights.data() + (k * s.D + d) * s.each, s.each), shape.I, rows, h_k + h_row,
                     c_k + c_row, static_cast<char*>(made.mutable_data_ptr()), h_n_k + h_row, c_n_k + c_row,
                     last ? sequence.direct() : nullptr);
        }
      } else {
        OptionalTensor cells, gates;
        if (k >= lowest || (last && save_cells && sequence.place(taped) == nullptr))
          cells = s.make({s.T, s.N, s.D, s.H}, shape.wide);
        if (k >= lowest) {
          gates = s.make({s.T, s.N, s.D, 4 * s.H});
          // What dropout made of a layer's output, the backward makes again.
          if (k > 0) tape.push_back(*below);
          tape.push_back(*cells);
          tape.push_back(*gates);
        }
        const std::vector<DirectionWeights> of_layer = weights_of(s, weights, k);
        LayerForward call{{}, shape, input, of_layer};
        call.h0 = h_k;
        call.c0 = c_k;
        call.lengths = masks.lengths;
        call.reset_mask = masks.reset_mask;
        call.output = made.mutable_data_ptr();
        call.h_n = h_n_k;
        call.c_n = c_n_k;
        call.cells = cells ? cells->mutable_data_ptr() : last ? sequence.place(taped) : nullptr;
        call.gates = gates ? gates->mutable_data_ptr() : nullptr;
        run(call);
        if (last && cells) sequence.take(call.cells);
      }
      if (taped) below = made;
      input = last || factors.empty() ? made : times(made, factors[k]);
    }

    std::vector<Tensor> results;
    results.reserve(5 + tape.size());
    for (Tensor* made : {&output, &h_n, &c_n}) results.push_back(std::move(*made));
    sequence.give(results);
    results.insert(results.end(), tape.begin(), tape.end());
    if (taped && own_output) results.push_back(copy_of(results[0], s.make_sequence(s.D * s.P)));
    return results;
  });
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) { m.impl("lstm_stack_forward", TORCH_BOX(&fastlstm::lstm_stack_forward)); }

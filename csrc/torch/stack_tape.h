// What a forward of a stack leaves for its backward, on every device.
#pragma once

#include "torch/stack.h"

namespace fastlstm {

// The tape of a forward that kept one from layer `first` on: of each layer its input, except the first layer's, cells
// and gates; and the matrices of these layers, all weight_ih, then all weight_hh, then all weight_hr.
class Tape {
 public:
  Tape(const Stack& s, const std::vector<Tensor>& tensors, const std::vector<Tensor>& matrices)
      : s_(s), tensors_(tensors), matrices_(matrices) {
    const int64_t count = static_cast<int64_t>(tensors.size()), kinds = s.projected() ? 3 : 2;
    kept_ = (count + 1) / 3;
    first = s.L - kept_;
    STD_TORCH_CHECK(kept_ <= s.L && count == 3 * kept_ - (first == 0 ? 1 : 0) &&
                        static_cast<int64_t>(matrices.size()) == kinds * kept_ * s.D,
                    "fastlstm: got ", matrices.size(), " matrices and a tape of ", count, " tensors for ", s.L,
                    " layers");
  }

  // The output of the layer below, before dropout; not of layer 0.
  const Tensor& below(int64_t k) const { return tensors_[place(k)]; }
  const Tensor& cells(int64_t k) const { return tensors_[place(k) + (k > 0 ? 1 : 0)]; }
  const Tensor& gates(int64_t k) const { return tensors_[place(k) + (k > 0 ? 2 : 1)]; }

  std::vector<DirectionWeights> weights(int64_t k, int64_t I, const Where& where = Where::cpu()) const {
    std::vector<DirectionWeights> of_layer;
    for (int64_t d = 0; d < s_.D; ++d) {
      const int64_t j = (k - first) * s_.D + d, kind = kept_ * s_.D;
      check(matrices_[j], "weight_ih", {4 * s_.H, I}, s_.dtype, where);
      check(matrices_[kind + j], "weight_hh", {4 * s_.H, s_.P}, s_.dtype, where);
      DirectionWeights found{matrices_[j], matrices_[kind + j]};
      if (s_.projected()) {
        check(matrices_[2 * kind + j], "weight_hr", {s_.P, s_.H}, s_.dtype, where);
        found.hr = matrices_[2 * kind + j];
      }
      of_layer.push_back(std::move(found));
    }
    return of_layer;
  }

  int64_t first;

 private:
  int64_t place(int64_t k) const { return 3 * (k - first) - (first == 0 && k > 0 ? 1 : 0); }

  const Stack& s_;
  const std::vector<Tensor>&tensors_, &matrices_;
  int64_t kept_;
};

// The results: tensors for the gradients that are wanted, in the order of `needs`.
class Gradients {
 public:
  Gradients(const Stack& s, const std::vector<bool>& needs, int64_t lowest, int64_t I)
      : s_(s), needs_(needs), places_(needs.size()) {
    take(0, [&] { return s.make_sequence(I); });
    take(1, [&] { return s.make(s.state_sizes(s.P)); });
    take(2, [&] { return s.make(s.state_sizes(s.H)); });
    for (int64_t j = lowest * s.D; j < s.L * s.D; ++j) {
      const int64_t place = 3 + j * s.each;
      take(place, [&] { return s.make({4 * s.H, s.inputs(j / s.D, I)}); });
      take(place + 1, [&] { return s.make({4 * s.H, s.P}); });
      for (int64_t b = 2; s.biased() && b < 4; ++b) take(place + b, [&] { return s.make({4 * s.H}); });
      if (s.projected()) take(place + s.each - 1, [&] { return s.make({s.P, s.H}); });
    }
  }

  // The gradient at that place among `needs`, or null.
  Tensor* at(int64_t place) { return needs_[place] ? &tensors[places_[place]] : nullptr; }
  void* data(int64_t place) { return needs_[place] ? at(place)->mutable_data_ptr() : nullptr; }
  // Those of the weights of the stack's j-th direction.
  WeightGradients of(int64_t j) {
    const int64_t place = 3 + j * s_.each;
    return {data(place), data(place + 1), s_.biased() ? data(place + 2) : nullptr,
            s_.biased() ? data(place + 3) : nullptr, s_.projected() ? data(place + s_.each - 1) : nullptr};
  }

  std::vector<Tensor> tensors;

 private:
  template <class Make>
  void take(int64_t place, const Make& made) {
    if (!needs_[place]) return;
    places_[place] = tensors.size();
    tensors.push_back(made());
  }

  const Stack& s_;
  const std::vector<bool>& needs_;
  std::vector<size_t> places_;
};

// A backward's arguments, checked. AnyStack: Stack, or CudaStack.
template <class AnyStack>
struct BackwardCall {
  AnyStack s;
  Tape tape;
  int64_t lowest, I = 0;  // the first layer that has a gradient to give; the inputs of layer 0, if that is it

  BackwardCall(const OptionalTensor& doutput, const OptionalTensor& dcells, const OptionalTensor& x,
               const std::vector<Tensor>& matrices, const Tensor& output, const std::vector<Tensor>& tape_tensors,
               int64_t layers, bool bidirectional, bool batch_first, bool wide_products, const std::vector<bool>& needs)
      : s(output, first_weight_hh(matrices, needs, layers, bidirectional), weights_of(needs), layers, bidirectional,
          batch_first, wide_products),
        tape(s, tape_tensors, matrices),
        lowest(s.lowest(needs)) {
    // Not every gradient that the forward kept a tape for may be wanted.
    STD_TORCH_CHECK(lowest >= tape.first, "fastlstm: gradients of layer ", lowest,
                    " are wanted, and there is a tape from layer ", tape.first, " on");
    check(output, "output", s.sequence_sizes(s.D * s.P), s.dtype, s.where);
    check(doutput, "doutput", s.sequence_sizes(s.D * s.P), s.dtype, s.where);
    check(dcells, "dcells", s.sequence_sizes(s.D * s.H), s.dtype, s.where);
    if (lowest > 0) return;
    STD_TORCH_CHECK(x, "fastlstm: the first layer's gradients are wanted, and there is no x");
    I = x->size(x->dim() - 1);
    check(*x, "x", s.sequence_sizes(I), s.dtype, s.where);
  }

 private:
  static int64_t weights_of(const std::vector<bool>& needs) { return static_cast<int64_t>(needs.size()) - 3; }
  static const Tensor& first_weight_hh(const std::vector<Tensor>& matrices, const std::vector<bool>& needs,
                                       int64_t layers, bool bidirectional) {
    const size_t directions = std::max<int64_t>(layers * (bidirectional ? 2 : 1), 1);
    const size_t kinds = weights_of(needs) / directions % 2 == 1 ? 3 : 2;  // of matrices: with a projection three
    fit(weights_of(needs) > 0 && matrices.size() >= kinds);
    return matrices[matrices.size() / kinds];
  }
};

}  // namespace fastlstm

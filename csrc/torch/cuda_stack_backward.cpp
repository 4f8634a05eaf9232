// lstm_stack_backward on CUDA tensors: what stack_backward.cpp does on the CPU.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "torch/cuda_stack.h"
#include "torch/stack_tape.h"

namespace fastlstm {

namespace {

// Both directions' weight_ih, one under the other: a product with them adds the directions up by itself.
Tensor cat_rows(const Tensor& a, const Tensor& b) {
  return call_op<Tensor>("aten::cat", "", std::vector<Tensor>{a, b}, int64_t{0});
}

// A layer's gradients after its recurrence.
class LayerGradients {
 public:
  LayerGradients(const CudaStack& s, const cuda::Around& around, Gradients& into, int64_t k, const Tensor& dgates)
      : s_(s), around_(around), into_(into), k_(k), dgates_(dgates.const_data_ptr()) {}

  // dx [rows, width] = sum over directions of dgates weight_ih.
  void input(const std::vector<DirectionWeights>& weights, int64_t width, void* dx) const {
    const int64_t depth = s_.D * 4 * s_.H;
    const Tensor both = s_.D == 2 ? cat_rows(weights[0].ih, weights[1].ih) : weights[0].ih;
    mm_out(s_.matrix(dgates_, s_.rows(), depth), both, s_.matrix(dx, s_.rows(), width));
  }

  void weights_ih(const Tensor& rows) const {
    for (int64_t d = 0; d < s_.D; ++d) {
      if (Tensor* out = wanted(d, 0)) mm_out(turned_dgates(d, 0, s_.rows()), rows, *out);
    }
  }

  // output: the layer's, [rows, D * P].
  void weights_hh(const void* output, const void* h0) const {
    if (!any(1)) return;
    const bool shifted = h0 == nullptr && around_.lengths == nullptr && around_.reset_mask == nullptr;
    if (shifted && s_.T == 1) {
      for (int64_t d = 0; d < s_.D; ++d) {
        if (Tensor* out = wanted(d, 1)) torch::stable::zero_(*out);
      }
      return;
    }
    OptionalTensor entering;
    if (!shifted) {
      entering = s_.make({s_.D, s_.rows(), s_.P});
      raise_if_failed(cuda::entering_states(around_, output, h0, entering->mutable_data_ptr()));
    }
    for (int64_t d = 0; d < s_.D; ++d) {
      Tensor* out = wanted(d, 1);
      if (out == nullptr) continue;
      if (!shifted) {
        const void* of_direction = part_of(entering->const_data_ptr(), d * s_.rows() * s_.P * s_.bytes());
        mm_out(turned_dgates(d, 0, s_.rows()), s_.matrix(of_direction, s_.rows(), s_.P), *out);
        continue;
      }
      // The states that entered are the output of the step before; zeros entered the first.
      const int64_t rows = s_.rows() - s_.N, width = s_.D * s_.P, from = d == 0 ? 0 : s_.N;
      const void* before = part_of(output, (from * width + d * s_.P) * s_.bytes());
      mm_out(turned_dgates(d, d == 0 ? s_.N : 0, rows), s_.matrix(before, rows, s_.P, width, 1, s_.dtype), *out);
    }
  }

  void biases() const {
    for (int64_t d = 0; s_.biased() && d < s_.D; ++d) {
      Tensor *ih = wanted(d, 2), *hh = wanted(d, 3), *first = ih != nullptr ? ih : hh;
      if (first == nullptr) continue;
      const int64_t over_rows[] = {0};
      torch::stable::sum_out(*first, dgates(d, 0, s_.rows()), torch::headeronly::IntHeaderOnlyArrayRef(over_rows, 1));
      if (ih != nullptr && hh != nullptr) torch::stable::copy_(*hh, *ih);
    }
  }

  // dhidden [T, N, D, P] wide.
  void weights_hr(const Tensor& dhidden, const Tensor& cells, const Tensor& gates) const {
    if (!any(s_.each - 1)) return;
    const ScalarType wide = wide_type(s_.dtype);
    const int64_t bytes = bytes_of(wide);
    const Tensor factor = s_.make({s_.D, s_.rows(), s_.H}, wide);
    raise_if_failed(
        cuda::unprojected(around_, cells.const_data_ptr(), gates.const_data_ptr(), factor.mutable_data_ptr()));
    for (int64_t d = 0; d < s_.D; ++d) {
      Tensor* out = wanted(d, s_.each - 1);
      if (out == nullptr) continue;
      const Tensor sums = wide == s_.dtype ? *out : s_.make({s_.P, s_.H}, wide);
      const void *arrived = part_of(dhidden.const_data_ptr(), d * s_.P * bytes),
                 *of_direction = part_of(factor.const_data_ptr(), d * s_.rows() * s_.H * bytes);
      mm_out(s_.matrix(arrived, s_.P, s_.rows(), 1, s_.D * s_.P, wide),
             s_.matrix(of_direction, s_.rows(), s_.H, s_.H, 1, wide), sums);
      if (wide != s_.dtype) torch::stable::copy_(*out, sums);
    }
  }

 private:
  Tensor* wanted(int64_t d, int64_t kind) const { return into_.at(3 + (k_ * s_.D + d) * s_.each + kind); }
  bool any(int64_t kind) const { return wanted(0, kind) != nullptr || (s_.D == 2 && wanted(1, kind) != nullptr); }

  // Rows of a direction's dgates, as they lie among the other's, and turned.
  Tensor dgates(int64_t d, int64_t row, int64_t rows) const {
    return s_.matrix(rows_of_direction(d, row), rows, 4 * s_.H, s_.D * 4 * s_.H, 1, s_.dtype);
  }
  Tensor turned_dgates(int64_t d, int64_t row, int64_t rows) const {
    return s_.matrix(rows_of_direction(d, row), 4 * s_.H, rows, 1, s_.D * 4 * s_.H, s_.dtype);
  }
  const void* rows_of_direction(int64_t d, int64_t row) const {
    return part_of(dgates_, (row * s_.D + d) * 4 * s_.H * s_.bytes());
  }

  const CudaStack& s_;
  const cuda::Around& around_;
  Gradients& into_;
  int64_t k_;
  const void* dgates_;
};

std::vector<Tensor> cuda_stack_backward(OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n,
                                        OptionalTensor dcells, OptionalTensor x, OptionalTensor h0, OptionalTensor c0,
                                        std::vector<Tensor> matrices, Tensor output, std::vector<Tensor> tape_tensors,
                                        OptionalTensor lengths, OptionalTensor reset_mask,
                                        std::optional<std::vector<Tensor>> noise, int64_t layers, bool bidirectional,
                                        bool batch_first, bool wide_products, std::vector<bool> needs) {
  return must_fit("lstm_stack_backward", [&] {
    const BackwardCall<CudaStack> checked(doutput, dcells, x, matrices, output, tape_tensors, layers, bidirectional,
                                          batch_first, wide_products, needs);
    const CudaStack& s = checked.s;
    const Tape& tape = checked.tape;
    const int64_t lowest = checked.lowest, I = checked.I;
    const Dropout dropout(s, noise);
    const OnDevice device(output);
    const States h(s, h0, s.P), c(s, c0, s.H), dh(s, dh_n, s.P), dc(s, dc_n, s.H);
    const Masks masks(s, lengths, reset_mask);  // lengths are clamped by the kernels
    const ScalarType wide = wide_type(s.dtype);
    Gradients into(s, needs, lowest, I);

    cuda::BackwardArgs args{};
    args.device = device.index();
    args.sizes = {s.T, s.N, s.D, s.H, s.P};
    args.dtype = dtype_of(output, "output");
    args.tf32 = tf32_for(s.dtype);
    args.lengths = masks.lengths;
    args.reset_mask = masks.reset_mask;
    const cuda::Around around{args.device, args.sizes, args.dtype, args.lengths, args.reset_mask, device.stream()};
    OptionalTensor from_above;  // the gradient of a layer's output, from the layer over it
    if (doutput) from_above = s.time_major(*doutput);
    for (int64_t k = s.L - 1; k >= lowest; --k) {
      const bool last = k == s.L - 1, pass_down = k > lowest;
      const int64_t width = s.inputs(k, I);
      const bool drops = k > 0 && dropout.drops();
      if (k > 0) check(tape.below(k), "a layer's input", {s.T, s.N, width}, s.dtype, s.where);
      check(tape.cells(k), "cells", {s.T, s.N, s.D, s.H}, wide, s.where);
      check(tape.gates(k), "gates", {s.T, s.N, s.D, 4 * s.H}, s.dtype, s.where);
      const std::vector<DirectionWeights> of_layer = tape.weights(k, width, s.where);
      Held held;
      args.doutput = from_above ? held.rows(*from_above, &args.doutput_stride_t, &args.doutput_stride_n) : nullptr;
      args.dh_n = dh.of(k);
      args.dc_n = dc.of(k);
      OptionalTensor wide_dcells;
      args.dcells = nullptr;
      if (last && dcells) {
        wide_dcells = s.make({s.T, s.N, s.D * s.H}, wide);
        torch::stable::copy_(*wide_dcells, s.time_major(*dcells));
        args.dcells = wide_dcells->const_data_ptr();
      }
      args.c0 = c.of(k);
      args.cells = held.data(tape.cells(k));
      args.gates = held.data(tape.gates(k));
      for (int64_t d = 0; d < s.D; ++d) {
        args.weight_hh[d] = held.data(of_layer[d].hh);
        args.weight_hr[d] = held.data(of_layer[d].hr);
      }
      Tensor dgates = s.make({s.T, s.N, s.D, 4 * s.H});
      OptionalTensor dhidden, below;
      if (s.projected()) dhidden = s.make({s.T, s.N, s.D, s.P}, wide);
      args.dgates_x = dgates.mutable_data_ptr();
      args.dhidden = dhidden ? dhidden->mutable_data_ptr() : nullptr;
      args.dh0 = part_of(into.data(1), k * s.h_bytes());
      args.dc0 = part_of(into.data(2), k * s.c_bytes());
      launch<cuda::BackwardArgs>(s, device, args, cuda::backward);

      const LayerGradients gradients(s, around, into, k, dgates);
      if (pass_down) {
        below = s.make({s.T, s.N, width});
        gradients.input(of_layer, width, below->mutable_data_ptr());
      } else if (k == 0 && needs[0]) {
        gradients.input(of_layer, width, into.data(0));
      }
      const Tensor input = k == 0 ? *x : drops ? dropout(tape.below(k), k - 1) : tape.below(k);
      const void* rows = k == 0 ? s.steps_of(input, held) : held.data(input);
      OptionalTensor existing;
      if (k == 0 && masks.lengths != nullptr) {
        existing = s.make({s.rows(), width});
        raise_if_failed(cuda::keep_existing(around, rows, width, existing->mutable_data_ptr()));
        rows = existing->const_data_ptr();
      }
      gradients.weights_ih(s.matrix(rows, s.rows(), width));
      // The output that this layer gave is what the one over it took.
      gradients.weights_hh(last ? s.steps_of(output, held) : held.data(tape.below(k + 1)), h.of(k));
      gradients.biases();
      if (s.projected()) gradients.weights_hr(*dhidden, tape.cells(k), tape.gates(k));
      from_above = pass_down && drops ? dropout(*below, k - 1) : below;
    }
    return into.tensors;
  });
}

}  // namespace

}  // namespace fastlstm

#if defined(FASTLSTM_SIMT)
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("simt_stack_pair_backward", TORCH_BOX(&fastlstm::cuda_stack_backward));
#else
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm_stack_backward", TORCH_BOX(&fastlstm::cuda_stack_backward));
#endif
}

#endif

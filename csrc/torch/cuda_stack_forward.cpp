// lstm_stack_forward on CUDA tensors: what stack_forward.cpp does on the CPU, by a large product for each layer and
// direction and the recurrence's launches.

#if defined(FASTLSTM_WITH_CUDA) || defined(FASTLSTM_SIMT)

#include "torch/cuda_stack.h"

namespace fastlstm {

namespace {

// What both biases of each layer and direction add up to. In the tensors' own type, so that the product takes it along:
// a gate's input is then rounded once.
class BiasSums {
 public:
  BiasSums(const CudaStack& s, const OnDevice& device, const std::vector<Tensor>& weights) : s_(s) {
    if (!s.biased()) return;
    const int64_t all = s.L * s.D;
    sums_ = s.make({all, 4 * s.H});
    Held held;
    for (int64_t j0 = 0; j0 < all; j0 += cuda::kBiasesAtOnce) {
      const int64_t count = std::min(cuda::kBiasesAtOnce, all - j0);
      cuda::Biases biases{};
      for (int64_t j = 0; j < count; ++j) {
        const Tensor* w = weights.data() + (j0 + j) * s.each;
        biases.ih[j] = held.data(w[2]);
        biases.hh[j] = held.data(w[3]);
      }
      const cuda::Around around{
          device.index(), {s.T, s.N, s.D, s.H, s.P}, dtype_of(*sums_, "the biases"), nullptr, nullptr, device.stream()};
      raise_if_failed(cuda::add_biases(around, biases, count, 4 * s.H, data(j0)));
    }
  }

  OptionalTensor of(int64_t k, int64_t d) const {
    if (!sums_) return {};
    // One dimension, which linear wants.
    return tensor_at(data(k * s_.D + d), {4 * s_.H}, {1}, s_.dtype, s_.where);
  }

 private:
  void* data(int64_t j) const { return part_of(sums_->mutable_data_ptr(), j * 4 * s_.H * s_.bytes()); }

  const CudaStack& s_;
  OptionalTensor sums_;
};

// A layer's gate inputs, [D, rows, 4H], and how their rows lie.
struct GateInputs {
  Tensor gates;
  int64_t stride_d, stride_t, stride_n;

  // `input` (T, N, width), or what the caller has, whose rows stay in the order in which they lie.
  GateInputs(const CudaStack& s, const Tensor& input, bool of_caller, const Tensor* weights, int64_t k,
             const BiasSums& biases)
      : gates(s.make({s.D * s.rows(), 4 * s.H})),
        stride_d(s.rows() * 4 * s.H),
        stride_t(s.N * 4 * s.H),
        stride_n(4 * s.H) {
    Held held;
    const int64_t width = input.size(input.dim() - 1);
    const bool steps_first = !(of_caller && s.turned && input.is_contiguous());
    const void* rows = of_caller && steps_first ? s.steps_of(input, held) : input.const_data_ptr();
    if (!steps_first) {
      stride_t = 4 * s.H;
      stride_n = s.T * 4 * s.H;
    }
    const Tensor matrix = s.matrix(rows, s.rows(), width);
    for (int64_t d = 0; d < s.D; ++d) {
      const OptionalTensor bias = biases.of(k, d);
      const Tensor& weight = weights[(k * s.D + d) * s.each];
      if (s.D == 1) {
        linear_out(matrix, weight, bias, gates);
      } else {
        const void* place = part_of(gates.const_data_ptr(), d * stride_d * s.bytes());
        linear_out(matrix, weight, bias, s.matrix(place, s.rows(), 4 * s.H));
      }
    }
  }
};

// The last layer's cells for the caller: in the tensors' type and laid out as the output.
void take_cells(const CudaStack& s, const Tensor& sequence, const Tensor& cells) {
  Tensor into = s.matrix(sequence.const_data_ptr(), s.rows(), s.D * s.H);
  torch::stable::copy_(into, s.matrix(cells.const_data_ptr(), s.rows(), s.D * s.H, s.D * s.H, 1, wide_type(s.dtype)));
}

std::vector<Tensor> cuda_stack_forward(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                       OptionalTensor lengths, OptionalTensor reset_mask,
                                       std::optional<std::vector<Tensor>> noise, int64_t layers, bool bidirectional,
                                       bool batch_first, bool wide_products, bool save_cells, bool own_output,
                                       std::optional<std::vector<bool>> needs) {
  return if_fit([&]() -> std::vector<Tensor> {
    fit(weights.size() >= 2);
    const CudaStack s(x, weights[1], static_cast<int64_t>(weights.size()), layers, bidirectional, batch_first,
                      wide_products);
    const bool taped = needs && !needs->empty();
    const int64_t lowest = taped ? s.lowest(*needs) : s.L, I = x.size(x.dim() - 1);
    fit(I > 0);
    fit(x, s.sequence_sizes(I), s.dtype, s.where);
    fit_weights(s, weights, I, s.dtype);
    const Dropout dropout(s, noise);
    const States h(s, h0, s.P), c(s, c0, s.H);
    const Masks masks(s, lengths, reset_mask);  // lengths are clamped by the kernels
    const OnDevice device(x);                   // x, as all else now, is on CUDA
    const BiasSums biases(s, device, weights);
    const ScalarType wide = wide_type(s.dtype);
    Tensor output = s.make_sequence(s.D * s.P), h_n = s.make(s.state_sizes(s.P)), c_n = s.make(s.state_sizes(s.H));
    OptionalTensor sequence;
    if (save_cells) sequence = s.make_sequence(s.D * s.H);

    cuda::ForwardArgs args{};
    args.device = device.index();
    args.sizes = {s.T, s.N, s.D, s.H, s.P};
    args.dtype = dtype_of(x, "x");
    args.tf32 = tf32_for(s.dtype);
    args.lengths = masks.lengths;
    args.reset_mask = masks.reset_mask;
    std::vector<Tensor> tape;
    Tensor input = x;
    OptionalTensor below;  // the output of the layer below, before dropout
    for (int64_t k = 0; k < s.L; ++k) {
      const bool last = k == s.L - 1, kept = k >= lowest;
      Tensor made = last ? output : s.make({s.T, s.N, s.D * s.P});
      const GateInputs gates_x(s, input, k == 0, weights.data(), k, biases);
      args.gates_x = gates_x.gates.const_data_ptr();
      args.gates_strides.d = gates_x.stride_d;
      args.gates_strides.t = gates_x.stride_t;
      args.gates_strides.n = gates_x.stride_n;
      OptionalTensor cells, gates;
      if (kept || (last && save_cells && wide != s.dtype)) cells = s.make({s.T, s.N, s.D, s.H}, wide);
      if (kept) {
        gates = s.make({s.T, s.N, s.D, 4 * s.H});
        // What dropout made of a layer's output, the backward makes again.
        if (k > 0) tape.push_back(*below);
        tape.push_back(*cells);
        tape.push_back(*gates);
      }
      Held held;
      for (int64_t d = 0; d < s.D; ++d) {
        const Tensor* w = weights.data() + (k * s.D + d) * s.each;
        args.weight_hh[d] = held.data(w[1]);
        args.weight_hr[d] = s.projected() ? held.data(w[s.each - 1]) : nullptr;
      }
      args.h0 = h.of(k);
      args.c0 = c.of(k);
      args.output = made.mutable_data_ptr();
      args.h_n = part_of(h_n.mutable_data_ptr(), k * s.h_bytes());
      args.c_n = part_of(c_n.mutable_data_ptr(), k * s.c_bytes());
      args.cells = cells ? cells->mutable_data_ptr() : last && sequence ? sequence->mutable_data_ptr() : nullptr;
      args.gates = gates ? gates->mutable_data_ptr() : nullptr;
      launch<cuda::ForwardArgs>(s, device, args, cuda::forward);
      if (last && sequence && cells) take_cells(s, *sequence, *cells);
      below = made;
      input = last || !dropout.drops() ? made : dropout(made, k);
    }

    std::vector<Tensor> results{output, h_n, c_n};
    if (sequence) results.push_back(*sequence);
    results.insert(results.end(), tape.begin(), tape.end());
    if (taped && own_output) {
      // The caller may write into the output, and the tape's is another.
      results.push_back(s.make_sequence(s.D * s.P));
      torch::stable::copy_(results.back(), output);
    }
    return results;
  });
}

}  // namespace

}  // namespace fastlstm

#if defined(FASTLSTM_SIMT)
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("simt_stack_pair_forward", TORCH_BOX(&fastlstm::cuda_stack_forward));
#else
STABLE_TORCH_LIBRARY_IMPL(fastlstm, CUDA, m) {
  m.impl("lstm_stack_forward", TORCH_BOX(&fastlstm::cuda_stack_forward));
#endif
}

#endif

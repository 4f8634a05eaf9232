// lstm_inference: a whole stack without a gradient, in one call. Beside a short sequence's work, a call of an op for
// each layer, and what surrounds it in Python, is most of the time.

#include "torch/ops.h"
#include "torch/step_call.h"

namespace fastlstm {

namespace {

// Up to so many steps, products with the weights as they lie are faster than packing these first.
constexpr int64_t kDirectSteps = 4;

// The weights of one layer's directions, from the flat list: of each direction weight_ih, weight_hh, both biases or
// neither, weight_hr or not.
struct LayerWeights {
  StepWeights directions[2];

  LayerWeights(const Tensor* first, int64_t each, int64_t D) {
    for (int64_t d = 0; d < D; ++d) {
      const Tensor* w = first + d * each;
      directions[d] = {w, w + 1, each >= 4 ? w + 2 : nullptr, each >= 4 ? w + 3 : nullptr,
                       each % 2 == 1 ? w + each - 1 : nullptr};
    }
  }
};

OptionalTensor optional(const Tensor* t) { return t == nullptr ? OptionalTensor() : OptionalTensor(*t); }

class InferenceCall {
 public:
  InferenceCall(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weights,
                int64_t layers, int64_t D, bool batch_first, bool wide_products)
      : weights_(weights),
        layers_(layers),
        D_(D),
        batched_(x.dim() == 3),
        wide_products_(wide_products),
        dtype_(x.scalar_type()) {
    STD_TORCH_CHECK(x.dim() == 2 || batched_, "fastlstm: x has ", x.dim(),
                    " dimensions, expected 3, or 2 without rows");
    const int64_t count = static_cast<int64_t>(weights.size());
    each_ = layers > 0 ? count / (layers * D) : 0;
    STD_TORCH_CHECK(each_ >= 2 && each_ <= 5 && count == each_ * layers * D, "fastlstm: got ", count, " weights for ",
                    layers, " layers of ", D, " directions, expected 2 to 5 for each");
    turned_ = batched_ && batch_first;
    x_ = turned_ ? torch::stable::transpose(x, 0, 1) : batched_ ? x : torch::stable::unsqueeze(x, 1);
    T_ = x_.size(0);
    N_ = x_.size(1);
    const Tensor& hh = weights[1];
    STD_TORCH_CHECK(hh.dim() == 2 && hh.size(0) % 4 == 0, "fastlstm: weight_hh has another shape than (4H, P)");
    H_ = hh.size(0) / 4;
    P_ = hh.size(1);
    STD_TORCH_CHECK(Where::of(x) == Where::cpu(), "fastlstm: x is not on the CPU");
    check_units(H_, P_);
    h_n_ = empty(state_sizes(P_), dtype_);
    c_n_ = empty(state_sizes(H_), dtype_);
    h0_ = states(h0, "h0", P_);
    c0_ = states(c0, "c0", H_);
  }

  InferenceResults run() {
    for (int64_t k = 0; k < layers_; ++k) {
      const LayerWeights w(weights_.data() + k * D_ * each_, each_, D_);
      if (T_ > 0 && N_ > 0 && T_ <= kDirectSteps && N_ <= kMaxStepRows) {
        run_direct(k, w);
      } else {
        run_layer(k, w);
      }
    }
    Tensor output = turned_ ? torch::stable::transpose(x_, 0, 1) : batched_ ? x_ : torch::stable::squeeze(x_, 1);
    return {output, h_n_, c_n_};
  }

 private:
  std::vector<int64_t> state_sizes(int64_t width) const {
    const int64_t rows = layers_ * D_;
    return batched_ ? std::vector<int64_t>{rows, N_, width} : std::vector<int64_t>{rows, width};
  }

  // The states of all layers as (layers * D, N, width), contiguous.
  Tensor states(const OptionalTensor& given, const char* name, int64_t width) {
    if (given) {
      check(*given, name, state_sizes(width), dtype_);
      const Tensor whole = given->is_contiguous() ? *given : torch::stable::contiguous(*given);
      return batched_ ? whole : torch::stable::unsqueeze(whole, 1);
    }
    Tensor zeros = empty({layers_ * D_, N_, width}, dtype_);
    if (zeros.numel() > 0) __builtin_memset(zeros.mutable_data_ptr(), 0, zeros.numel() * bytes_of(dtype_));
    return zeros;
  }

  void run_layer(int64_t k, const LayerWeights& w) {
    const auto of_layer = [&](const Tensor& t) {
      return layers_ == 1 ? t : torch::stable::narrow(const_cast<Tensor&>(t), 0, k * D_, D_);
    };
    const auto& f = w.directions[0];
    const StepWeights none{};
    const auto& r = D_ == 2 ? w.directions[1] : none;
    auto results =
        lstm_layer_forward(x_, of_layer(h0_), of_layer(c0_), *f.ih, *f.hh, optional(f.bias_ih), optional(f.bias_hh),
                           optional(f.hr), optional(r.ih), optional(r.hh), optional(r.bias_ih), optional(r.bias_hh),
                           optional(r.hr), OptionalTensor(), OptionalTensor(), wide_products_, false, false);
    x_ = std::get<0>(results);
    copy_states(k, std::get<1>(results), h_n_, P_);
    copy_states(k, std::get<2>(results), c_n_, H_);
  }

  void copy_states(int64_t k, const Tensor& from, Tensor& to, int64_t width) {
    const int64_t bytes = D_ * N_ * width * bytes_of(dtype_);
    if (bytes > 0)
      __builtin_memcpy(static_cast<char*>(to.mutable_data_ptr()) + k * bytes, from.const_data_ptr(), bytes);
  }

  // A few steps from the weights as they lie.
  void run_direct(int64_t k, const LayerWeights& w) {
    Held held;
    const int64_t bytes = bytes_of(dtype_), I = x_.size(2), h_bytes = N_ * P_ * bytes, c_bytes = N_ * H_ * bytes;
    check(x_, "x", {T_, N_, I}, dtype_);
    Tensor output = empty({T_, N_, D_ * P_}, dtype_);
    const char* x = static_cast<const char*>(held.data(x_));
    char* y = static_cast<char*>(output.mutable_data_ptr());
    std::vector<char> turns(2 * (h_bytes + c_bytes));  // states of the last step and of the one being made
    for (int64_t d = 0; d < D_; ++d) {
      StepArgs args{};
      args.N = N_;
      args.I = I;
      args.P = P_;
      args.H = H_;
      args.dtype = dtype_of(x_, "x");
      set_weights(w.directions[d], dtype_, held, args);
      const int64_t row = k * D_ + d;
      args.h = static_cast<const char*>(h0_.const_data_ptr()) + row * h_bytes;
      args.c = static_cast<const char*>(c0_.const_data_ptr()) + row * c_bytes;
      for (int64_t s = 0; s < T_; ++s) {
        const int64_t t = d == 0 ? s : T_ - 1 - s;
        char* turn = turns.data() + s % 2 * (h_bytes + c_bytes);
        args.x = x + t * N_ * I * bytes;
        args.h_out = s + 1 < T_ ? turn : static_cast<char*>(h_n_.mutable_data_ptr()) + row * h_bytes;
        args.c_out = s + 1 < T_ ? turn + h_bytes : static_cast<char*>(c_n_.mutable_data_ptr()) + row * c_bytes;
        cpu_kernels().step(args, threads_);
        for (int64_t n = 0; n < N_; ++n) {
          __builtin_memcpy(y + ((t * N_ + n) * D_ + d) * P_ * bytes, static_cast<char*>(args.h_out) + n * P_ * bytes,
                           P_ * bytes);
        }
        args.h = args.h_out;
        args.c = args.c_out;
      }
    }
    x_ = output;
  }

  const std::vector<Tensor>& weights_;
  const int64_t layers_, D_;
  const bool batched_, wide_products_;
  const ScalarType dtype_;
  const Threads threads_ = threads();
  bool turned_;
  int64_t each_, T_, N_, H_, P_;
  Tensor x_;  // what the next layer takes, (T, N, its inputs)
  Tensor h0_, c0_, h_n_, c_n_;
};

}  // namespace

InferenceResults lstm_inference(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                int64_t layers, bool bidirectional, bool batch_first, bool wide_products) {
  return InferenceCall(x, h0, c0, weights, layers, bidirectional ? 2 : 1, batch_first, wide_products).run();
}

}  // namespace fastlstm

// lstm_step and lstm_cell: one step, of a stack of one-directional layers or of a cell, on the CPU, from the weights as
// they are at the call. Nothing is packed and nothing is kept, so a weight may change between calls in any way.

#include "torch/step_call.h"

namespace fastlstm {

namespace {

// Where one step starts: x (N, I) or (I), states [layers, N, ...] (of a cell without the layers), and what of them is
// checked.
class StepCall {
 public:
  StepCall(const Tensor& x, const Tensor& h, const Tensor& c, int64_t layers, bool stacked)
      : dtype_(h.scalar_type()),
        batched_(x.dim() == 2),
        stacked_(stacked),
        layers_(layers),
        N_(batched_ ? x.size(0) : 1) {
    const int64_t dims = x.dim() + (stacked ? 1 : 0);
    fit((x.dim() == 1 || batched_) && h.dim() == dims && c.dim() == dims && N_ <= kMaxStepRows && is_floating(dtype_));
    args_.N = N_;
    args_.I = x.size(x.dim() - 1);
    args_.P = h.size(dims - 1);
    args_.H = c.size(dims - 1);
    args_.dtype = dtype_of(h, "h");
    fit(args_.H > 0 && args_.P > 0);
    if (batched_) {
      fit(x, {N_, args_.I}, dtype_);
    } else {
      fit(x, {args_.I}, dtype_);
    }
    fit(h, sizes(args_.P), dtype_);
    fit(c, sizes(args_.H), dtype_);
    args_.x = held_.data(x);
    h_ = static_cast<const char*>(held_.data(h));
    c_ = static_cast<const char*>(held_.data(c));
    h_n = empty(sizes(args_.P), dtype_);
    c_n = empty(sizes(args_.H), dtype_);
    args_.h_out = h_n.mutable_data_ptr();
    args_.c_out = c_n.mutable_data_ptr();
  }

  void layer(int64_t k, const StepWeights& weights) {
    set_weights(weights, dtype_, held_, args_);
    const int64_t bytes = bytes_of(dtype_), h_bytes = N_ * args_.P * bytes, c_bytes = N_ * args_.H * bytes;
    args_.h = h_ + k * h_bytes;
    args_.c = c_ + k * c_bytes;
    args_.h_out = static_cast<char*>(h_n.mutable_data_ptr()) + k * h_bytes;
    args_.c_out = static_cast<char*>(c_n.mutable_data_ptr()) + k * c_bytes;
    if (N_ > 0) cpu_kernels().step(args_, threads_.of(args_));
    args_.x = args_.h_out;
    args_.I = args_.P;
  }

  // The last layer's h, as a tensor of its own.
  Tensor output() const {
    Tensor y = batched_ ? empty({N_, args_.P}, dtype_) : empty({args_.P}, dtype_);
    if (N_ > 0) __builtin_memcpy(y.mutable_data_ptr(), args_.h_out, N_ * args_.P * bytes_of(dtype_));
    return y;
  }

  Tensor h_n, c_n;

 private:
  Extents sizes(int64_t width) const {
    if (!stacked_) return batched_ ? Extents{N_, width} : Extents{width};
    return batched_ ? Extents{layers_, N_, width} : Extents{layers_, width};
  }

  const ScalarType dtype_;
  const bool batched_, stacked_;
  const int64_t layers_, N_;
  StepThreads threads_;
  Held held_;
  StepArgs args_{};
  const char *h_, *c_;
};

}  // namespace

// y, h_n, c_n; nothing where the arguments do not fit each other.
static std::vector<Tensor> lstm_step(Tensor x, Tensor h, Tensor c, std::vector<Tensor> weights) {
  return if_fit([&]() -> std::vector<Tensor> {
    const int64_t layers = h.dim() > 0 ? h.size(0) : 0, count = static_cast<int64_t>(weights.size());
    const int64_t each = layers > 0 ? count / layers : 0;
    fit(each >= 2 && each <= 5 && count == each * layers);
    StepCall call(x, h, c, layers, true);
    for (int64_t k = 0; k < layers; ++k) call.layer(k, step_weights(weights.data() + k * each, each));
    return {call.output(), call.h_n, call.c_n};
  });
}

// h_n, c_n; nothing where the arguments do not fit each other.
static std::vector<Tensor> lstm_cell(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh,
                                     OptionalTensor bias_ih, OptionalTensor bias_hh) {
  return if_fit([&]() -> std::vector<Tensor> {
    StepCall call(x, h, c, 1, false);
    call.layer(0, {&weight_ih, &weight_hh, bias_ih ? &*bias_ih : nullptr, bias_hh ? &*bias_hh : nullptr, nullptr});
    return {call.h_n, call.c_n};
  });
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_step", TORCH_BOX(&fastlstm::lstm_step));
  m.impl("lstm_cell", TORCH_BOX(&fastlstm::lstm_cell));
}

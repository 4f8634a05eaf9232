// What lstm_stack_forward (cuda_stack_forward.cpp) and lstm_stack_backward (cuda_stack_backward.cpp) on CUDA tensors have
// in common. Nothing of a call is asked of the device or read back from it.
//
// With FASTLSTM_SIMT the same code serves CPU tensors, with the kernels run by tests/simt.
#pragma once

#include "cuda/around/around.h"
#include "torch/cuda_device.h"
#include "torch/stack.h"

namespace fastlstm {

struct CudaStack : Stack {
  CudaStack(const Tensor& sequence, const Tensor& weight_hh, int64_t weights, int64_t layers, bool bidirectional,
            bool batch_first, bool wide_products)
      : Stack(sequence, weight_hh, weights, layers, bidirectional, batch_first, wide_products) {
    where = Where::of(sequence);
    fit(T > 0 && N > 0 && !wide_products);  // the general way's, as is what follows from it
  }

  int64_t rows() const { return T * N; }

  // A matrix where it lies, as torch's products take it.
  Tensor matrix(const void* data, int64_t matrix_rows, int64_t columns, int64_t row_stride, int64_t column_stride,
                ScalarType type) const {
    return tensor_at(data, {matrix_rows, columns}, {row_stride, column_stride}, type, where);
  }
  Tensor matrix(const void* data, int64_t matrix_rows, int64_t columns) const {
    return matrix(data, matrix_rows, columns, columns, 1, dtype);
  }
};

// What dropout multiplies each layer's output with but the last's, and its gradient: (T, N, D * P) for each; or bool
// masks, and a number after them that scales what they keep, in the accumulation dtype as torch's dropout does on CUDA.
// The tensors' own dtype would round that number.
class Dropout {
 public:
  Dropout(const CudaStack& s, const std::optional<std::vector<Tensor>>& noise) {
    if (!noise || noise->empty()) return;
    masks_ = (*noise)[0].scalar_type() == ScalarType::Bool;
    if (!masks_) {
      noise_ = noise_of(s, noise);
      return;
    }
    noise_ = *noise;
    fit(static_cast<int64_t>(noise_.size()) == s.L);
    for (int64_t k = 0; k < s.L - 1; ++k) fit(noise_[k], {s.T, s.N, s.D * s.P}, ScalarType::Bool, s.where);
    fit(noise_.back(), Extents{}, ScalarType::Double);
    scale_ = *static_cast<const double*>(noise_.back().const_data_ptr());
  }

  bool drops() const { return !noise_.empty(); }

  // Of layer k's output or its gradient.
  Tensor operator()(const Tensor& y, int64_t k) const {
    return masks_ ? call_op<Tensor>("aten::native_dropout_backward", "", y, noise_[k], scale_) : times(y, noise_[k]);
  }

 private:
  std::vector<Tensor> noise_;
  bool masks_ = false;
  double scale_ = 1;
};

// Whether float32 may be rounded to tf32 in products: the answer is Python's (fastlstm/backends/gpu.py).
inline bool tf32_for(ScalarType dtype) {
  return dtype == ScalarType::Float && call_op<bool>("fastlstm::cuda_tf32", "");
}

// out = x weight^T (+ bias), in place: out [rows, columns].
inline void linear_out(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  call_op<Tensor>("aten::linear", "out", x, weight, bias, out);
}

// out = a b, in place.
inline void mm_out(const Tensor& a, const Tensor& b, const Tensor& out) {
  call_op<Tensor>("aten::mm", "out", a, b, out);
}

// Launches a call's recurrence: with the memory that it needs beside its arrays, where it needs any.
template <class Args>
void launch(const CudaStack& s, const OnDevice& device, const Args& args,
            cuda::Status (*run)(const Args&, const cuda::Choice&, void*, void*)) {
  const cuda::Choice choice = cuda::choose(args);
  OptionalTensor workspace;
  if (choice.workspace > 0) workspace = s.make({static_cast<int64_t>(choice.workspace)}, ScalarType::Byte);
  raise_if_failed(run(args, choice, workspace ? workspace->mutable_data_ptr() : nullptr, device.stream()));
}

}  // namespace fastlstm

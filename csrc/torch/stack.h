// What lstm_stack_forward (stack_forward.cpp) and lstm_stack_backward (stack_backward.cpp) have in common: the sizes of
// a stack, its sequences and states as the caller has them, its masks.
#pragma once

#include "torch/fit.h"
#include "torch/layer_call.h"

namespace fastlstm {

// Sequences come and go as (T, N, width), (N, T, width) with `turned`, or (T, width) without rows; states as
// (L * D, N, width) or (L * D, width).
struct Stack {
  int64_t L, D, each, T, N, H, P;  // each: weights of a layer's direction
  bool batched, turned;
  ScalarType dtype, product;
  Where where = Where::cpu();

  // `weights` is how many there are in all. Throws Unfit where these are not a stack's.
  Stack(const Tensor& sequence, const Tensor& weight_hh, int64_t weights, int64_t layers, bool bidirectional,
        bool batch_first, bool wide_products)
      : L(layers),
        D(bidirectional ? 2 : 1),
        each(layers > 0 ? weights / (layers * D) : 0),
        batched(sequence.dim() == 3),
        turned(batched && batch_first),
        dtype(sequence.scalar_type()),
        product(wide_products ? wide_type(dtype) : dtype) {
    fit((batched || sequence.dim() == 2) && is_floating(dtype) && each >= 2 && each <= 5 && weights == each * L * D);
    T = sequence.size(turned ? 1 : 0);
    N = batched ? sequence.size(turned ? 0 : 1) : 1;
    fit(weight_hh.dim() == 2 && weight_hh.size(0) % 4 == 0);
    H = weight_hh.size(0) / 4;
    P = weight_hh.size(1);
    fit(H > 0 && P > 0 && (projected() || P == H));
  }

  bool biased() const { return each >= 4; }
  bool projected() const { return each % 2 == 1; }
  int64_t inputs(int64_t k, int64_t I) const { return k == 0 ? I : D * P; }
  int64_t bytes() const { return bytes_of(dtype); }
  int64_t h_bytes() const { return D * N * P * bytes(); }  // of a layer
  int64_t c_bytes() const { return D * N * H * bytes(); }

  LayerShape layer(int64_t k, int64_t I, ScalarType matrices) const {
    return {T, N, D, inputs(k, I), H, P, dtype, wide_type(dtype), product, dtype, matrices};
  }

  Extents sequence_sizes(int64_t width) const {
    if (!batched) return {T, width};
    return turned ? Extents{N, T, width} : Extents{T, N, width};
  }
  Extents state_sizes(int64_t width) const { return batched ? Extents{L * D, N, width} : Extents{L * D, width}; }

  // A new tensor where the call's are.
  Tensor make(const Extents& sizes, ScalarType type) const { return ready(empty(sizes, type, where)); }
  Tensor make(const Extents& sizes) const { return make(sizes, dtype); }
  // A new sequence as the caller has them, its steps one after the other in memory.
  Tensor make_sequence(int64_t width) const {
    const Extents sizes = sequence_sizes(width);
    return turned ? ready(empty(sizes, {width, N * width, 1}, dtype, where)) : make(sizes);
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
    fit(static_cast<int64_t>(needs.size()) == 3 + each * L * D);
    if (needs[0] || needs[1] || needs[2]) return 0;
    return (std::find(needs.begin() + 3, needs.end(), true) - needs.begin() - 3) / (each * D);
  }

 private:
  Tensor ready(Tensor made) const {
    return where.type == aoti_torch_device_type_cpu() ? on_large_pages(std::move(made)) : made;
  }
};

// lengths (N), of a sequence without rows also (); reset_mask laid out as the sequence.
class Masks {
 public:
  Masks(const Stack& s, const OptionalTensor& lengths, const OptionalTensor& reset_mask) {
    if (lengths) {
      fit(lengths->numel() == s.N && (lengths->dim() == 1 || (!s.batched && lengths->dim() == 0)) &&
          lengths->scalar_type() == ScalarType::Long && s.where.has(*lengths));
      this->lengths = static_cast<const int64_t*>(held_.data(*lengths));
    }
    if (reset_mask) {
      const Extents sizes = s.batched ? Extents{s.turned ? s.N : s.T, s.turned ? s.T : s.N} : Extents{s.T};
      fit(*reset_mask, sizes, ScalarType::Bool, s.where);
      const bool turn = s.turned && s.N > 1 && s.T > 1;
      this->reset_mask =
          static_cast<const bool*>(held_.data(turn ? torch::stable::transpose(*reset_mask, 0, 1) : *reset_mask));
    }
  }

  // Throws Unfit unless all lengths are in 0..T. On the CPU only: it reads them.
  void fit_lengths(const Stack& s) const {
    for (int64_t n = 0; lengths != nullptr && n < s.N; ++n) fit(lengths[n] >= 0 && lengths[n] <= s.T);
  }

  const int64_t* lengths = nullptr;  // (N)
  const bool* reset_mask = nullptr;  // (T, N)

 private:
  Held held_;
};

inline const char* part_of(const void* data, int64_t bytes) {
  return data == nullptr ? nullptr : static_cast<const char*>(data) + bytes;
}
inline char* part_of(void* data, int64_t bytes) { return data == nullptr ? nullptr : static_cast<char*>(data) + bytes; }

// The initial states of a call, or their gradients, contiguous; null for zeros.
class States {
 public:
  States(const Stack& s, const OptionalTensor& given, int64_t width) : bytes_(s.D * s.N * width * s.bytes()) {
    if (!given) return;
    fit(*given, s.state_sizes(width), s.dtype, s.where);
    data_ = held_.data(*given);
  }
  const void* of(int64_t layer) const { return part_of(data_, layer * bytes_); }

 protected:
  int64_t bytes_;  // of a layer

 private:
  Held held_;
  const void* data_ = nullptr;
};

// The same with zeros in memory, for the CPU's kernels.
class FilledStates : States {
 public:
  FilledStates(const Stack& s, const OptionalTensor& given, int64_t width) : States(s, given, width) {
    if (given) return;
    static const char few[1 << 12] = {};  // spares a short call the allocation
    if (bytes_ > static_cast<int64_t>(sizeof(few))) held_zeros_.resize(bytes_);
    zeros_ = held_zeros_.empty() ? few : held_zeros_.data();
  }
  const void* of(int64_t layer) const { return zeros_ == nullptr ? States::of(layer) : zeros_; }

 private:
  std::vector<char> held_zeros_;
  const char* zeros_ = nullptr;
};

// What dropout multiplies each layer's output with but the last's, (T, N, D * P) for each; or nothing.
inline std::vector<Tensor> noise_of(const Stack& s, const std::optional<std::vector<Tensor>>& noise) {
  if (!noise) return {};
  fit(noise->empty() || static_cast<int64_t>(noise->size()) == s.L - 1);
  for (const Tensor& t : *noise) fit(t, {s.T, s.N, s.D * s.P}, s.dtype, s.where);
  return *noise;
}

// The flat list of weights: of each direction weight_ih, weight_hh, both biases or neither, weight_hr or not.
inline void fit_weights(const Stack& s, const std::vector<Tensor>& weights, int64_t I, ScalarType matrices) {
  for (int64_t j = 0; j < s.L * s.D; ++j) {
    const Tensor* w = weights.data() + j * s.each;
    fit(w[0], {4 * s.H, s.inputs(j / s.D, I)}, matrices, s.where);
    fit(w[1], {4 * s.H, s.P}, matrices, s.where);
    for (int64_t b = 2; s.biased() && b < 4; ++b) fit(w[b], {4 * s.H}, s.dtype, s.where);
    if (s.projected()) fit(w[s.each - 1], {s.P, s.H}, matrices, s.where);
  }
}

// By torch, for its rounding in 16 bits.
inline Tensor times(const Tensor& a, const Tensor& b) { return call_op<Tensor>("aten::mul", "Tensor", a, b); }

}  // namespace fastlstm

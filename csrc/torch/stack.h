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
  int64_t bytes() const { return bytes_of(dtype); }
  int64_t h_bytes() const { return D * N * P * bytes(); }  // of a layer
  int64_t c_bytes() const { return D * N * H * bytes(); }

  LayerShape layer(int64_t k, int64_t I, ScalarType matrices) const {
    return {T, N, D, k == 0 ? I : D * P, H, P, dtype, wide_type(dtype), product, dtype, matrices};
  }

  Extents sequence_sizes(int64_t width) const {
    if (!batched) return {T, width};
    return turned ? Extents{N, T, width} : Extents{T, N, width};
  }
  Extents state_sizes(int64_t width) const { return batched ? Extents{L * D, N, width} : Extents{L * D, width}; }

  // A new sequence as the caller has them, its steps one after the other in memory.
  Tensor new_sequence(int64_t width) const {
    Tensor made =
        turned ? empty(sequence_sizes(width), {width, N * width, 1}, dtype) : empty(sequence_sizes(width), dtype);
    return on_large_pages(made);
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
};

// lengths (N), of a sequence without rows also (); reset_mask laid out as the sequence.
class Masks {
 public:
  Masks(const Stack& s, const OptionalTensor& lengths, const OptionalTensor& reset_mask) {
    if (lengths) {
      fit(lengths->scalar_type() == ScalarType::Long && Where::of(*lengths) == Where::cpu() &&
          lengths->numel() == s.N && (lengths->dim() == 1 || (!s.batched && lengths->dim() == 0)));
      this->lengths = static_cast<const int64_t*>(held_.data(*lengths));
      for (int64_t n = 0; n < s.N; ++n) fit(this->lengths[n] >= 0 && this->lengths[n] <= s.T);
    }
    if (reset_mask) {
      if (!s.batched) {
        fit(*reset_mask, {s.T}, ScalarType::Bool);
      } else {
        fit(*reset_mask, {s.turned ? s.N : s.T, s.turned ? s.T : s.N}, ScalarType::Bool);
      }
      const bool turn = s.turned && s.N > 1 && s.T > 1;
      this->reset_mask =
          static_cast<const bool*>(held_.data(turn ? torch::stable::transpose(*reset_mask, 0, 1) : *reset_mask));
    }
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

// States as they lie in memory, zeros where there are none.
class States {
 public:
  States(const Stack& s, const OptionalTensor& given, int64_t width) {
    if (given) {
      fit(*given, s.state_sizes(width), s.dtype);
      data_ = held_.data(*given);
      return;
    }
    static const char few[1 << 12] = {};
    const size_t bytes = s.D * s.N * width * s.bytes();
    if (bytes > sizeof(few)) zeros_.resize(bytes);
    data_ = bytes > sizeof(few) ? zeros_.data() : few;
    given_ = false;
  }
  // Of the layer whose first number is `bytes` from the first layer's.
  const void* of(int64_t bytes) const { return given_ ? part_of(data_, bytes) : data_; }

 private:
  Held held_;
  std::vector<char> zeros_;
  const void* data_;
  bool given_ = true;
};

// What dropout multiplies each layer's output with but the last's, (T, N, D * P) for each; or nothing.
inline void fit_noise(const Stack& s, const std::vector<Tensor>& noise) {
  fit(noise.empty() || static_cast<int64_t>(noise.size()) == s.L - 1);
  for (const Tensor& t : noise) fit(t, {s.T, s.N, s.D * s.P}, s.dtype);
}

// By torch, for its rounding in 16 bits.
inline Tensor times(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(a), from(b)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mul", "Tensor", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace fastlstm

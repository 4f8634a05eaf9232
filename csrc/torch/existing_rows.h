// The rows of a sequence as a factor of a product over all steps, without what padding holds.
#pragma once

#include <atomic>
#include <cmath>

#include "torch/layer_call.h"

namespace fastlstm {

// Whether a number is neither infinite nor NaN. For the 16-bit types the exponent bits tell.
inline bool is_finite(double x) { return std::isfinite(x); }
inline bool is_finite(float x) { return std::isfinite(x); }
inline bool is_finite(BFloat16 x) { return (x.bits & 0x7f80) != 0x7f80; }
inline bool is_finite(Float16 x) { return (x.bits & 0x7c00) != 0x7c00; }

template <class T>
bool all_finite(const void* row, int64_t count) {
  bool finite = true;
  for (int64_t k = 0; k < count; ++k) finite &= is_finite(static_cast<const T*>(row)[k]);
  return finite;
}

inline bool all_finite(const void* row, int64_t count, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return all_finite<double>(row, count);
    case ScalarType::Float:
      return all_finite<float>(row, count);
    case ScalarType::BFloat16:
      return all_finite<BFloat16>(row, count);
    default:
      return all_finite<Float16>(row, count);
  }
}

// `rows_of`, with zeros in place of padding that is not finite. The other factor has zeros in the rows of padding:
// finite numbers there add nothing, but 0 * NaN would. Only padding is read for this, just before the product reads it;
// nothing is written or copied unless it holds such a number.
inline Matrix existing_rows_of(const Tensor& sequence, int64_t t, int64_t steps, const int64_t* lengths,
                               ScalarType dtype, Tensor& kept) {
  const Matrix rows = rows_of(sequence, t, steps, dtype, kept);
  if (lengths == nullptr || rows.columns == 0) return rows;
  const int64_t N = sequence.size(1), bytes = rows.columns * bytes_of(dtype);
  const auto for_padding = [&](const auto& body) {
    torch::stable::parallel_for(0, rows.rows, std::max<int64_t>(1, (1 << 16) / bytes), [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        if (t + k / N >= lengths[k % N]) body(k);
      }
    });
  };
  std::atomic<bool> finite{true};
  for_padding([&](int64_t k) {
    if (!all_finite(static_cast<const char*>(rows.data) + k * bytes, rows.columns, dtype))
      finite.store(false, std::memory_order_relaxed);
  });
  if (finite) return rows;
  Tensor cleared = empty({rows.rows, rows.columns}, dtype);
  __builtin_memcpy(cleared.mutable_data_ptr(), rows.data, rows.rows * bytes);
  kept = cleared;
  for_padding([&](int64_t k) { __builtin_memset(static_cast<char*>(kept.mutable_data_ptr()) + k * bytes, 0, bytes); });
  return Matrix::of(kept);
}

}  // namespace fastlstm

// Sizes and dtypes of a recurrence, for every compiled backend.
//
// T steps, N rows, D directions, H hidden units, P outputs (H without a projection). "wide" is the accumulation type:
// float for the 16-bit types, else the type itself.
#pragma once

#include <cstdint>

namespace fastlstm {

// Storage only; arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

struct Sizes {
  int64_t T, N, D, H, P;
};

}  // namespace fastlstm

// The row, unit and step that a thread works on, and how many steps a row has.
#pragma once

#include "cuda/device/numbers.h"

namespace fastlstm::cuda {

struct Place {
  int d;
  int64_t k, t, n, unit;  // launch, step, row, unit (or output)
};

__device__ __forceinline__ int64_t clamped_length(const int64_t* lengths, int64_t n, int64_t T) {
  if (lengths == nullptr) return T;
  const int64_t length = lengths[n];
  return length < 0 ? 0 : length > T ? T : length;
}

}  // namespace fastlstm::cuda

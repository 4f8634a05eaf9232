// The kernels chosen for this processor, and why, for `python -m fastlstm`.
#pragma once

#include <string>

#include "cpu/recurrence.h"

namespace fastlstm {

// How products are made, by the tensors' dtype. Those of float64 are multiply-adds everywhere.
struct ProductKinds {
  const char *float32, *bfloat16, *float16;
};

struct Choice {
  const Kernels* kernels;
  ProductKinds products;
  std::string why;
};

// The choice behind `cpu_kernels`. Throws as that does.
const Choice& cpu_choice();

}  // namespace fastlstm

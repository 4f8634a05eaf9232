// What was chosen for this processor, and why: for `python -m fastlstm`.
#pragma once

#include <string>

#include "cpu/recurrence.h"

namespace fastlstm {

// How the products of tensors of a dtype are made; those of float64 are multiply-adds everywhere.
struct ProductKinds {
  const char *float32, *bfloat16, *float16;
};

struct Choice {
  const Kernels* kernels;
  ProductKinds products;
  std::string why;
};

// The choice of `cpu_kernels`. Throws as that does.
const Choice& cpu_choice();

}  // namespace fastlstm

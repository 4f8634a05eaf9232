// Whether arguments fit each other, for the ops that stand for a whole call: an op whose arguments do not fit gives an
// empty list, and its caller, who has the words for it, says what is wrong. What fails afterwards is an error.
#pragma once

#include "torch/tensors.h"

namespace fastlstm {

struct Unfit {};

inline void fit(bool fits) {
  if (!fits) throw Unfit{};
}

inline void fit(const Tensor& t, const Extents& sizes, ScalarType dtype, const Where& where = Where::cpu()) {
  fit(is_of(t, sizes) && t.scalar_type() == dtype && where.has(t));
}

inline bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

// What `call` gives, an empty list where its arguments do not fit.
template <class Call>
std::vector<Tensor> if_fit(const Call& call) {
  try {
    return call();
  } catch (const Unfit&) {
    return {};
  }
}

// What `call` gives, an error where its arguments do not fit: for the backward of what did.
template <class Call>
auto must_fit(const char* op, const Call& call) {
  try {
    return call();
  } catch (const Unfit&) {
    STD_TORCH_CHECK(false, "fastlstm: the arguments of ", op, " do not fit each other");
  }
}

}  // namespace fastlstm

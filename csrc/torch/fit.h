// Whether arguments fit each other, for the ops that stand for a whole call: an op whose arguments do not fit gives an
// empty list, and its caller, who has the words for it, says what is wrong. What fails afterwards is an error.
#pragma once

#include <initializer_list>

#include "torch/tensors.h"

namespace fastlstm {

struct Unfit {};

inline void fit(bool fits) {
  if (!fits) throw Unfit{};
}

template <class Sizes>
void fit_sizes(const Tensor& t, const Sizes& sizes, ScalarType dtype, const Where& where = Where::cpu()) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size()) && t.scalar_type() == dtype;
  int64_t k = 0;
  for (const int64_t size : sizes) fits = fits && t.size(k++) == size;
  fit(fits && Where::of(t) == where);
}

inline void fit_sizes(const Tensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype, const Where& where) {
  fit_sizes<std::initializer_list<int64_t>>(t, sizes, dtype, where);
}
inline void fit(const Tensor& t, std::initializer_list<int64_t> sizes, ScalarType dtype) { fit_sizes(t, sizes, dtype); }
inline void fit(const Tensor& t, const std::vector<int64_t>& sizes, ScalarType dtype) { fit_sizes(t, sizes, dtype); }

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

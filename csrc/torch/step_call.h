// The checked weights of one direction, for the ops of single steps (step.cpp, stack_inference.cpp).
#pragma once

#include "torch/tensors.h"

namespace fastlstm {

// bias_ih, bias_hh and hr may be null.
struct StepWeights {
  const Tensor *ih, *hh, *bias_ih, *bias_hh, *hr;
};

// Puts the weights into `args`, whose sizes are already set, for tensors of `dtype`; `held` keeps copies.
inline void set_weights(const StepWeights& of, ScalarType dtype, Held& held, StepArgs& args) {
  const ScalarType matrices = matrix_type(*of.ih, *of.hh, dtype);
  const auto data = [&](const Tensor* t, const char* name, const std::vector<int64_t>& shape,
                        ScalarType type) -> const void* {
    if (t == nullptr) return nullptr;
    check(*t, name, shape, type);
    return held.data(*t);
  };
  STD_TORCH_CHECK(of.hr != nullptr || args.P == args.H, "fastlstm: h is ", args.P, " wide, expected H = ", args.H,
                  " without weight_hr");
  args.narrow_weights = matrices != dtype;
  args.weight_ih = data(of.ih, "weight_ih", {4 * args.H, args.I}, matrices);
  args.weight_hh = data(of.hh, "weight_hh", {4 * args.H, args.P}, matrices);
  args.bias_ih = data(of.bias_ih, "bias_ih", {4 * args.H}, dtype);
  args.bias_hh = data(of.bias_hh, "bias_hh", {4 * args.H}, dtype);
  args.weight_hr = data(of.hr, "weight_hr", {args.P, args.H}, matrices);
}

}  // namespace fastlstm

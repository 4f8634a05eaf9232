// The weights of one direction, checked, for the ops of single steps (step.cpp, step_training.cpp) and for a stack of a
// few steps (direct_steps.h).
#pragma once

#include "torch/fit.h"

namespace fastlstm {

// bias_ih, bias_hh and hr may be null.
struct StepWeights {
  const Tensor *ih, *hh, *bias_ih, *bias_hh, *hr;
};

// Those at the front of a flat list with `each` weights for every direction, as in stack.h.
inline StepWeights step_weights(const Tensor* w, int64_t each) {
  const bool biased = each >= 4;
  return {w, w + 1, biased ? w + 2 : nullptr, biased ? w + 3 : nullptr, each % 2 == 1 ? w + each - 1 : nullptr};
}

// Puts the weights into `args`, whose sizes are already set, for tensors of `dtype`; `held` keeps copies. Throws Unfit.
inline void set_weights(const StepWeights& of, ScalarType dtype, Held& held, StepArgs& args) {
  const ScalarType matrices = matrix_type(*of.ih, *of.hh, dtype);
  const auto data = [&](const Tensor* t, std::initializer_list<int64_t> shape, ScalarType type) -> const void* {
    if (t == nullptr) return nullptr;
    fit(*t, shape, type);
    return held.data(*t);
  };
  fit(of.hr != nullptr || args.P == args.H);
  args.narrow_weights = matrices != dtype;
  args.weight_ih = data(of.ih, {4 * args.H, args.I}, matrices);
  args.weight_hh = data(of.hh, {4 * args.H, args.P}, matrices);
  args.bias_ih = data(of.bias_ih, {4 * args.H}, dtype);
  args.bias_hh = data(of.bias_hh, {4 * args.H}, dtype);
  args.weight_hr = data(of.hr, {args.P, args.H}, matrices);
}

// The threads of steps, asked for once a layer is worth more than one: asking the system for the cores of this process
// takes as long as a tenth of a short step.
class StepThreads {
 public:
  const Threads& of(const StepArgs& args) {
    if (threads_.count == 1 && 4 * args.H * (args.I + args.P) >= 2 * kElementsPerThread) threads_ = threads();
    return threads_;
  }

 private:
  Threads threads_{1, nullptr};
};

}  // namespace fastlstm

// lstm_forward and lstm_backward on the CPU.

#include "torch/recurrence_ops.h"

namespace fastlstm {

namespace {

struct Cpu {
  using ForwardArgs = fastlstm::ForwardArgs;
  using BackwardArgs = fastlstm::BackwardArgs;

  explicit Cpu(const Tensor& h0) : parts_(float32_parts(h0.scalar_type())) {}

  void forward(ForwardArgs& args) const {
    args.float32_parts = parts_;
    cpu_kernels().forward(args, threads());
  }
  void backward(BackwardArgs& args) const {
    args.float32_parts = parts_;
    cpu_kernels().backward(args, threads());
  }

 private:
  int parts_;
};

using CpuOps = RecurrenceOps<Cpu>;

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&fastlstm::CpuOps::forward));
  m.impl("lstm_backward", TORCH_BOX(&fastlstm::CpuOps::backward));
}

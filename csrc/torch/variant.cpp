// lstm_variant_forward and the loop of lstm_variant_backward on the CPU.

#include "torch/variant_ops.h"

namespace fastlstm {

namespace {

struct CpuVariants {
  using ForwardArgs = fastlstm::ForwardArgs;
  using BackwardArgs = fastlstm::BackwardArgs;

  explicit CpuVariants(const Tensor&) {}

  void forward(const ForwardArgs& args, const Variant& variant) const {
    cpu_kernels().variants->forward(args, variant, threads());
  }
  void backward(const BackwardArgs& args, const Variant& variant, const VariantTape& tape) const {
    cpu_kernels().variants->backward(args, variant, tape, threads());
  }
};

using CpuVariantOps = VariantOps<CpuVariants>;

}  // namespace

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_variant_forward", TORCH_BOX(&fastlstm::CpuVariantOps::forward));
  m.impl("lstm_variant_loop", TORCH_BOX(&fastlstm::CpuVariantOps::loop));
}

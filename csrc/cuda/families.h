// The interface of the families of kernels for recurrence.cu. Each family is compiled for each policy in a file of its
// own.
#pragma once

#include "cuda/launch.h"
#include "cuda/recurrence.h"

namespace fastlstm::cuda {

// Policies: how a dtype is multiplied (operands.h, float32.h).
struct BFloat16Product;
struct Float16Product;
struct TF32Product;
struct Float32Product;
template <class T>
struct PlainProduct;
using Float64Product = PlainProduct<double>;

template <class Policy_>
struct Chosen {
  using Policy = Policy_;
};

// use(Chosen of the policy for a call's dtype).
template <class Args, class Use>
auto with_policy(const Args& args, const Use& use) {
  switch (args.dtype) {
    case DType::kBFloat16:
      return use(Chosen<BFloat16Product>());
    case DType::kFloat16:
      return use(Chosen<Float16Product>());
    case DType::kFloat64:
      return use(Chosen<Float64Product>());
    case DType::kFloat32:
      break;
  }
  return args.tf32 ? use(Chosen<TF32Product>()) : use(Chosen<Float32Product>());
}

// A family of kernels for a policy and for ForwardArgs or BackwardArgs. `offer` predicts a call on the current device,
// with the best shape or with shape number `only`; `workspace` is the bytes that the call then needs; `run` launches
// it.
constexpr int kAnyShape = -1;
#define FASTLSTM_FAMILY(Name)                                                        \
  template <class Policy, class Args>                                                \
  struct Name {                                                                      \
    static Offer offer(const Args& args, const DeviceFacts& device, int only);       \
    static size_t workspace(const Args& args, int shape);                            \
    static void run(const Args& args, int shape, void* workspace, Launcher& launch); \
  }

// These keep the weights on the chip.
FASTLSTM_FAMILY(ClusterKernels);
FASTLSTM_FAMILY(GridKernels);
// The same with a projection, which those above do not serve.
FASTLSTM_FAMILY(ProjectedClusterKernels);
FASTLSTM_FAMILY(ProjectedGridKernels);
// A launch for each step: any size and device.
FASTLSTM_FAMILY(StepKernels);

#undef FASTLSTM_FAMILY

// Whether a policy has the first four families: those on the tensor cores, and float32.
template <class Policy>
constexpr bool kOnChip = false;
template <>
constexpr bool kOnChip<BFloat16Product> = true;
template <>
constexpr bool kOnChip<Float16Product> = true;
template <>
constexpr bool kOnChip<TF32Product> = true;
template <>
constexpr bool kOnChip<Float32Product> = true;

}  // namespace fastlstm::cuda

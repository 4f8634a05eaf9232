// CUDA's kernels as the backend of RecurrenceOps and VariantOps. Their ops have one more argument, `tf32`: whether
// products may round float32 to tf32. fastlstm/backends/gpu.py reads torch's settings and calls these ops.
//
// With FASTLSTM_SIMT the same code serves CPU tensors, and tests/simt runs the kernels.
#pragma once

#include "cuda/recurrence.h"
#include "torch/cuda_device.h"

#if defined(FASTLSTM_SIMT)
#define FASTLSTM_CUDA_OP(name) "simt_kernels_" name
#define FASTLSTM_CUDA_KEY CPU
#else
#define FASTLSTM_CUDA_OP(name) "cuda_kernels_" name
#define FASTLSTM_CUDA_KEY CUDA
#endif

namespace fastlstm {

class CudaCall {
 public:
  using ForwardArgs = cuda::ForwardArgs;
  using BackwardArgs = cuda::BackwardArgs;

  CudaCall(const Tensor& h0, bool tf32) : h0_(h0), tf32_(tf32), device_(h0) {}

 protected:
  void complete(cuda::DeviceArgs& args) const {
    args.device = device_.index();
    args.tf32 = tf32_;
  }

  // Calls run(workspace, stream), which launches and returns a status.
  template <class Run>
  void launch(size_t workspace_bytes, const Run& run) const {
    Tensor workspace = scratch(h0_, workspace_bytes);
    raise_if_failed(run(workspace.mutable_data_ptr(), device_.stream()));
  }

 private:
  const Tensor& h0_;
  bool tf32_;
  OnDevice device_;
};

}  // namespace fastlstm

// What ops on CUDA tensors need of torch besides tensors: the device, its stream, scratch memory, errors.
//
// With FASTLSTM_SIMT the same code serves CPU tensors, and tests/simt runs the kernels.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/recurrence.h"
#include "torch/tensors.h"

#if !defined(FASTLSTM_SIMT)
// Only a torch with CUDA has it; any torch may load this library.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace fastlstm {

#if defined(FASTLSTM_SIMT)
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  explicit OnDevice(int32_t) {}
  int index() const { return 0; }
  void* stream() const { return nullptr; }
};
#else
// Makes a device, as a tensor's, current while it lives: for torch, and for what csrc/cuda makes current then.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : OnDevice(t.get_device_index()) {}
  explicit OnDevice(int32_t index) : index_(index), guard_(index) {}

  int index() const { return index_; }

  // torch's current stream of that device.
  void* stream() const {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "fastlstm: CUDA tensors in a torch without CUDA");
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream) == 0,
                    "fastlstm: torch has no CUDA stream to run on");
    return stream;
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};
#endif

inline void raise_if_failed(const cuda::Status& status) {
  STD_TORCH_CHECK(status.code == 0, "fastlstm: launching ", static_cast<const char*>(status.text));
}

// Scratch memory from torch's allocator, which keeps it for the stream's next call and supports CUDA graphs.
inline Tensor scratch(const Tensor& like, size_t bytes) {
  return empty_beside(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace fastlstm

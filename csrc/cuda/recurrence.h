// What the CUDA kernels are asked to do (core/recurrence_args.h, in device memory, and what is CUDA's own; T and N are at
// least 1), and where on failure the reason is found. No torch header here or below.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/recurrence_args.h"

namespace fastlstm::cuda {

// Code 0, or CUDA's error code with a sentence that names the kernel and the sizes.
struct Status {
  int code = 0;
  char text[320] = {};
};

// What both passes are told beside that.
struct DeviceArgs {
  int device;                         // where all the memory is
  bool tf32;                          // float32: round the factors of products to tf32
  const void *weight_hh, *weight_hr;  // [D, 4H, P], [D, P, H] or null
};

// Directions of gates_x and dgates_x lie beside each other: strides.d is 4H.
struct ForwardArgs : RecurrenceForwardArgs, DeviceArgs {};
struct BackwardArgs : RecurrenceBackwardArgs, DeviceArgs {};

// The families of kernels, in the order in which they are asked; of equals the first is taken.
enum class Family { kCluster, kGrid, kStep };

// What a family predicts for a call with its best shape, in clocks: of each step, and of the call beside its steps.
struct Offer {
  int64_t step = -1, once = 0;  // no step: the family cannot take the call
  int shape = 0;                // which of the family's shapes for these sizes, in the order in which it lists them

  bool possible() const { return step >= 0; }
  double clocks(int64_t T) const {
    return static_cast<double>(once) + static_cast<double>(step) * static_cast<double>(T);
  }
  bool beats(const Offer& other, int64_t T) const {
    return possible() && (!other.possible() || clocks(T) < other.clocks(T));
  }
};

// How a call will run, decided once.
struct Choice {
  Family family = Family::kStep;
  Offer offer;
  size_t workspace = 0;  // bytes of scratch memory that it needs, aligned to 256
};

// The least of what the families predict on the call's device, which looks at no array. The environment variable
// FASTLSTM_CUDA_KERNELS names the families that may be chosen; the step kernels take what those cannot.
Choice choose(const ForwardArgs& args);
Choice choose(const BackwardArgs& args);

// Launch the whole recurrence on `stream` (a cudaStream_t of the device), and return without waiting. Nothing is
// allocated and nothing is read back, so a stream that is being captured into a graph will do.
Status forward(const ForwardArgs& args, const Choice& choice, void* workspace, void* stream);
Status backward(const BackwardArgs& args, const Choice& choice, void* workspace, void* stream);

}  // namespace fastlstm::cuda

// Arguments of the CUDA kernels, those of core/recurrence_args.h (in device memory; T and N at least 1) and those that
// only CUDA takes; the choice between families of kernels; and the status of a call. No torch header here or below.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/recurrence_args.h"

namespace fastlstm::cuda {

// Code 0, or CUDA's error code and a sentence that names the kernel and the sizes.
struct Status {
  int code = 0;
  char text[448] = {};
};

// What both passes take besides. h0 and c0 may be null for zeros, dh0 and dc0 where they are not wanted.
struct DeviceArgs {
  int device;                               // where all the memory is
  bool tf32;                                // float32: round the factors of products to tf32
  const void *weight_hh[2], *weight_hr[2];  // of each direction: [4H, P], [P, H] or null
};

// Directions of gates_x and dgates_x are adjacent: strides.d is 4H.
struct ForwardArgs : RecurrenceForwardArgs, DeviceArgs {};
struct BackwardArgs : RecurrenceBackwardArgs, DeviceArgs {};

// The families of kernels, in the order in which they are asked; among equal offers the first is taken.
enum class Family { kCluster, kGrid, kStep };

// What a family predicts for a call with its best shape, in clocks: for each step, and once for the call.
struct Offer {
  int64_t step = -1, once = 0;  // step < 0: the family cannot take the call
  int shape = 0;                // number of the shape among those that the family lists for these sizes

  bool possible() const { return step >= 0; }
  double clocks(int64_t T) const {
    return static_cast<double>(once) + static_cast<double>(step) * static_cast<double>(T);
  }
  bool beats(const Offer& other, int64_t T) const {
    return possible() && (!other.possible() || clocks(T) < other.clocks(T));
  }
};

// How a call runs, decided once.
struct Choice {
  Family family = Family::kStep;
  Offer offer;
  size_t workspace = 0;  // bytes of scratch memory, aligned to 256, for arguments with the weights at these places
};

// The family that predicts the least time on the call's device; looks at no array. The environment variable
// FASTLSTM_CUDA_KERNELS names the families that may be chosen; the step kernels take what those cannot.
Choice choose(const ForwardArgs& args);
Choice choose(const BackwardArgs& args);

// Launches the whole recurrence on `stream` (a cudaStream_t of the device) and returns without waiting. Nothing is
// allocated or read back, so the stream may be captured into a graph. `workspace` has choice.workspace bytes; a call that
// needs more, as one with weights elsewhere than the choice's may, is refused.
Status forward(const ForwardArgs& args, const Choice& choice, void* workspace, void* stream);
Status backward(const BackwardArgs& args, const Choice& choice, void* workspace, void* stream);

}  // namespace fastlstm::cuda

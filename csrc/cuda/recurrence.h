// What the CUDA recurrence is asked to do: plain device pointers, sizes and strides, and where on failure the reason is
// found. No torch header here or below.
//
// T, N, D, H, P and "wide" as in core/types.h. Every array is contiguous in the order of its shape unless strides are
// given. The meaning of every argument is that of fastlstm/reference/lstm.py; T and N are at least 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/types.h"

namespace fastlstm::cuda {

// Code 0, or CUDA's error code with a sentence that names the kernel and the sizes.
struct Status {
  int code = 0;
  char text[320] = {};
};

struct ForwardArgs {
  int device;  // where all the memory is
  Sizes sizes;
  DType dtype;
  bool tf32;            // float32: round the factors of products to tf32
  bool wide_gates;      // gates_x is in the wide type
  bool wide_states;     // c0 and c_n are in the wide type
  const void* gates_x;  // [4H] of each direction, step and row, with these strides, in elements
  int64_t gates_stride_d, gates_stride_t, gates_stride_n;
  const void *h0, *c0;                      // [D, N, P], [D, N, H], each or null for zeros
  const void *weight_hh[2], *weight_hr[2];  // of each direction: [4H, P], [P, H] or null
  const int64_t* lengths;                   // [N] or null
  const bool* reset_mask;                   // [T, N] or null
  void *output, *h_n, *c_n;                 // [T, N, D, P], [D, N, P], [D, N, H]
  void* cells;                              // [T, N, D, H] wide, or null
  void* gates;                              // [T, N, D, 4H] activated, or null
};

struct BackwardArgs {
  int device;
  Sizes sizes;
  DType dtype;
  bool tf32;
  bool wide_gates;      // dgates_x is in the wide type
  bool wide_states;     // c0, dh_n, dc_n, dh0 and dc0 are in the wide type
  const void* doutput;  // [T, N, D, P] with these strides, or null
  int64_t doutput_stride_t, doutput_stride_n;
  const void *dh_n, *dc_n;  // [D, N, P], [D, N, H], each or null
  const void* dcells;       // [T, N, D, H] wide, or null
  const void* c0;
  const void *weight_hh[2], *weight_hr[2];
  const void *cells, *gates;  // as the forward left them
  const int64_t* lengths;
  const bool* reset_mask;
  void* dgates_x;   // [T, N, D, 4H]
  void *dh0, *dc0;  // [D, N, P], [D, N, H], each or null
  void* dhidden;    // [T, N, D, P] wide, with a projection, else null
};

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

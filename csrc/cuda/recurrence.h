// What the CUDA recurrence is asked to do: plain device pointers, sizes and strides, and where on failure the reason is found.
// No torch header here or below.
//
// T, N, D, H, P and "wide" as in core/types.h. Every array is contiguous in the order of its shape unless strides are given. The
// meaning of every argument is that of fastlstm/reference.py; T and N are at least 1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../core/types.h"

namespace fastlstm::cuda {

// Code 0, or CUDA's error code with a sentence that names the kernel and the sizes.
struct Status {
  int code = 0;
  char text[320] = {};
};

struct ForwardArgs {
  int device;                       // where all the memory is
  Sizes sizes;
  DType dtype;
  bool tf32;                        // float32: round the factors of products to tf32
  bool wide_gates;                  // gates_x is in the wide type
  const void* gates_x;              // [T, N, D, 4H], steps and rows with these strides, in elements
  int64_t gates_stride_t, gates_stride_n;
  const void *h0, *c0;              // [D, N, P], [D, N, H]
  const void *weight_hh, *weight_hr;  // [D, 4H, P], [D, P, H] or null
  const int64_t* lengths;           // [N] or null
  const bool* reset_mask;           // [T, N] or null
  void *output, *h_n, *c_n;         // [T, N, D, P], [D, N, P], [D, N, H]
  void* cells;                      // [T, N, D, H] wide, or null
  void* gates;                      // [T, N, D, 4H] activated, or null
};

struct BackwardArgs {
  int device;
  Sizes sizes;
  DType dtype;
  bool tf32;
  bool wide_gates;                  // dgates_x is in the wide type
  const void* doutput;              // [T, N, D, P] with these strides, or null
  int64_t doutput_stride_t, doutput_stride_n;
  const void *dh_n, *dc_n;          // [D, N, P], [D, N, H], each or null
  const void* dcells;               // [T, N, D, H] wide, or null
  const void* c0;
  const void *weight_hh, *weight_hr;
  const void *cells, *gates;        // as the forward left them
  const int64_t* lengths;
  const bool* reset_mask;
  void* dgates_x;                   // [T, N, D, 4H]
  void *dh0, *dc0;                  // [D, N, P], [D, N, H]
  void* dhidden;                    // [T, N, D, P] wide, with a projection, else null
};

// Bytes of scratch memory that the call needs, aligned to 256.
size_t forward_workspace(const ForwardArgs& args);
size_t backward_workspace(const BackwardArgs& args);

// Launch the whole recurrence on `stream` (a cudaStream_t of the device), and return without waiting. Nothing is
// allocated and nothing is read back, so a stream that is being captured into a graph will do.
Status forward(const ForwardArgs& args, void* workspace, void* stream);
Status backward(const BackwardArgs& args, void* workspace, void* stream);

}  // namespace fastlstm::cuda

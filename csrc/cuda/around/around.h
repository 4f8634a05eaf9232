// What a layer takes beside its recurrence and its large products, each as one launch on a stream (a cudaStream_t of the
// device): plain device pointers, contiguous arrays in the order of their shapes. No torch header here or below.
#pragma once

#include "cuda/recurrence.h"

namespace fastlstm::cuda {

// A layer whose arrays these are: sizes and masks as in BackwardArgs.
struct Around {
  int device;
  Sizes sizes;
  DType dtype;
  const int64_t* lengths;  // or null
  const bool* reset_mask;  // or null
  void* stream;
};

// Both biases of so many layers' directions, each [width]; sums [count, width] gets what they add up to.
constexpr int64_t kBiasesAtOnce = 64;
struct Biases {
  const void *ih[kBiasesAtOnce], *hh[kBiasesAtOnce];
};
Status add_biases(const Around& around, const Biases& biases, int64_t count, int64_t width, void* sums);

// into [T, N, width]: x [T, N, width] where a row has the step, else zeros, whatever stands in x there.
Status keep_existing(const Around& around, const void* x, int64_t width, void* into);

// into [D, T, N, P]: h as each direction entered each step, which W_hh multiplied; zeros where a row does not have the
// step or a reset cuts it. output [T, N, D, P]; h0 [D, N, P] or null for zeros.
Status entering_states(const Around& around, const void* output, const void* h0, void* into);

// into [D, T, N, H] wide: o * tanh(c), which W_hr multiplied, of the tape's cells and gates.
Status unprojected(const Around& around, const void* cells, const void* gates, void* into);

}  // namespace fastlstm::cuda

// The arguments of a recurrence, for every compiled backend: plain pointers, sizes and strides. cpu/recurrence.h and
// cuda/recurrence.h add what only one backend takes.
//
// T, N, D, H, P and "wide" as in types.h. Every array is contiguous in the order of its shape unless strides are given.
// The meaning of every argument is that of fastlstm/reference/lstm.py.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace fastlstm {

// Strides of an array of rows, in elements: row n of step t of direction d is at data + d * strides.d + t * strides.t +
// n * strides.n.
struct Strides {
  int64_t d, t, n;
};

// What both passes take.
struct RecurrenceArgs {
  Sizes sizes;
  DType dtype;
  bool wide_gates;         // gates_x, or dgates_x and h_entering, are in the wide type
  bool wide_states;        // c0, c_n and the gradients of all states are in the wide type
  const void* c0;          // [D, N, H]
  const int64_t* lengths;  // [N] or null
  const bool* reset_mask;  // [T, N] or null
};

struct RecurrenceForwardArgs : RecurrenceArgs {
  const void* gates_x;  // [4H] rows
  Strides gates_strides;
  const void* h0;            // [D, N, P]
  void *output, *h_n, *c_n;  // [T, N, D, P], [D, N, P], [D, N, H]
  void* cells;               // [T, N, D, H] wide, or null
  void* gates;               // [T, N, D, 4H] activated, or null
};

struct RecurrenceBackwardArgs : RecurrenceArgs {
  const void* doutput;  // [T, N, D, P] with these strides, or null
  int64_t doutput_stride_t, doutput_stride_n;
  const void *dh_n, *dc_n;    // [D, N, P], [D, N, H], each or null
  const void* dcells;         // [T, N, D, H] wide, or null
  const void *cells, *gates;  // as the forward left them
  void* dgates_x;             // [T, N, D, 4H]
  void* dhidden;              // [T, N, D, P] wide: the whole gradient of h_t, with a projection; else null
  void *dh0, *dc0;            // [D, N, P], [D, N, H]
};

}  // namespace fastlstm

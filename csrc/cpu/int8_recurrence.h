// What the CPU kernels of 8-bit weights are asked to do: one layer, all directions and steps, without a gradient.
//
// A gate matrix (4H, K) of 8-bit numbers lies as [ceil(H / 16)][ceil(K / 4)][4 gates][16 units][4 k], the matrix of a
// projection (P, H) as [ceil(P / 16)][ceil(H / 4)][16 outputs][4 k], padded with zeros: one layout for every
// instruction set. A block of 16 units is one stream, and each [16][4] is a vector of AVX-512, two of AVX2, or a row of
// a tile. All weights are within [-127, 127]; -128 would be summed wrongly.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cpu/threads.h"

namespace fastlstm {

constexpr int64_t kInt8Units = 16, kInt8Depth = 4;  // of a block

struct Int8Weights {
  const int8_t *ih, *hh, *hr;                   // packed; hr null without a projection
  const float *scale_ih, *scale_hh, *scale_hr;  // [4H], [4H], [P]: what a unit's numbers are multiples of
  const float* bias;                            // [4H], bias_ih + bias_hh, or null
};

struct Int8Args {
  Sizes sizes;
  int64_t I;
  bool weight_only;  // x and h stay float32: the error is that of the weights alone
  const float* x;    // [T, N, I], rows of I contiguous numbers
  int64_t x_stride_t, x_stride_n;
  const float *h0, *c0;  // [D, N, P], [D, N, H], or null for zeros
  Int8Weights weights[2];
  const int64_t* lengths;     // [N] or null
  const bool* reset_mask;     // [T, N] or null
  float *output, *h_n, *c_n;  // [T, N, D, P], [D, N, P], [D, N, H]
  float* cells;               // [T, N, D, H] or null
};

}  // namespace fastlstm

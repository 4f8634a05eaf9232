// What the CPU recurrence is asked to do: plain pointers, sizes and strides. No torch header here or below.
//
// T steps, N rows, D directions, H hidden units, P outputs (H without a projection). "wide" is the accumulation type: float
// for the 16-bit types, else the type itself. Every array is contiguous in the order of its shape unless strides are given.
// The meaning of every argument is that of fastlstm/reference.py.
#pragma once

#include <cstdint>

namespace fastlstm {

// Storage only; arithmetic is done in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

enum class DType { kFloat64, kFloat32, kBFloat16, kFloat16 };

struct Sizes {
  int64_t T, N, D, H, P;
};

struct ForwardArgs {
  Sizes sizes;
  DType dtype;
  bool wide_gates;                      // gates_x is in the wide type
  const void* gates_x;                  // [T, N, D, 4H]
  int64_t gates_stride_t, gates_stride_n;
  const void *h0, *c0;                  // [D, N, P], [D, N, H]
  const void *weight_hh, *weight_hr;    // [D, 4H, P], [D, P, H] or null
  const int64_t* lengths;               // [N] or null
  const bool* reset_mask;               // [T, N] or null
  void *output, *h_n, *c_n;             // [T, N, D, P], [D, N, P], [D, N, H]
  void* cells;                          // [T, N, D, H] wide, or null
  void* gates;                          // [T, N, D, 4H] activated, or null
};

struct BackwardArgs {
  Sizes sizes;
  DType dtype;
  bool wide_gates;                      // dgates_x is in the wide type
  const void* doutput;                  // [T, N, D, P] or null
  int64_t doutput_stride_t, doutput_stride_n;
  const void *dh_n, *dc_n;              // [D, N, P], [D, N, H], each or null
  const void* dcells;                   // [T, N, D, H] wide, or null
  const void* c0;
  const void *weight_hh, *weight_hr;
  const void *cells, *gates;            // as the forward left them
  const int64_t* lengths;
  const bool* reset_mask;
  void *dgates_x, *dh0, *dc0;           // [T, N, D, 4H], [D, N, P], [D, N, H]
  void* dhidden;                        // [T, N, D, P] wide, or null without a projection
};

// fn(begin, end, context) over [0, n) in chunks, on the framework's threads.
using ParallelFor = void (*)(int64_t n, void (*fn)(int64_t, int64_t, void*), void* context);

struct Threads {
  int count;
  ParallelFor parallel_for;
};

struct Kernels {
  const char* isa;
  void (*forward)(const ForwardArgs&, const Threads&);
  void (*backward)(const BackwardArgs&, const Threads&);
};

// The kernels for the best instruction set of this machine, or for the one that FASTLSTM_CPU_ISA names ("generic", "avx2",
// "avx512") where the machine has it.
const Kernels& cpu_kernels();

}  // namespace fastlstm

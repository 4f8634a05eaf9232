// What the CPU recurrence is asked to do: plain pointers, sizes and strides. No torch header here or below.
//
// T, N, D, H, P and "wide" as in core/types.h. Every array is contiguous in the order of its shape unless strides are
// given. The meaning of every argument is that of fastlstm/reference/lstm.py.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "core/variant.h"
#include "cpu/matrix_product.h"
#include "cpu/threads.h"

namespace fastlstm {

// Gates for some steps at a time. Without `visit` an array of gates holds all T steps. With it, it holds `steps` of
// them: the loop works through the steps in stretches, k from k0 to k1 in the order in which a direction takes them (so
// t = k, and T - 1 - k in reverse), and calls visit(context, k0, k1, shares) to have a stretch's gates made before it,
// or used after it. The units of a row are shared between that many workers, of whom each is best to make what it
// reads: a line that another core wrote comes from afar.
struct Stretches {
  int64_t steps;
  void (*visit)(void* context, int64_t k0, int64_t k1, int shares);
  void* context;
};

// Where an array of gates-like rows has its parts: row `row` of step t of direction d is at
// data + d * stride_d + t * stride_t + row * stride_n, t counted from the stretch's earliest step.
struct Strides {
  int64_t d, t, n;
};

struct ForwardArgs {
  Sizes sizes;
  DType dtype;
  int float32_parts;    // in products of float32 on AMX: 3, or fewer (matrix_product.h)
  bool wide_gates;      // gates_x is in the wide type
  bool wide_states;     // c0 and c_n are in the wide type
  bool narrow_weights;  // weight_hh and weight_hr are bfloat16 beside float32 tensors
  const void* gates_x;  // [4H] rows
  Strides gates_strides;
  Stretches stretches;
  const void *h0, *c0;                      // [D, N, P], [D, N, H]
  const void *weight_hh[2], *weight_hr[2];  // of each direction: [4H, P], [P, H] or null
  const void *bias_ih[2], *bias_hh[2];      // [4H], added to gates_x; each or null
  const int64_t* lengths;                   // [N] or null
  const bool* reset_mask;                   // [T, N] or null
  void *output, *h_n, *c_n;                 // [T, N, D, P], [D, N, P], [D, N, H]
  void* cells;                              // [T, N, D, H] wide, or null
  void* gates;                              // [T, N, D, 4H] activated, or null
};

struct BackwardArgs {
  Sizes sizes;
  DType dtype;
  int float32_parts;    // in products of float32 on AMX: 3, or fewer (matrix_product.h)
  bool wide_gates;      // dgates_x and h_entering are in the wide type
  bool wide_states;     // c0, dh_n, dc_n, dh0 and dc0 are in the wide type
  const void* doutput;  // [T, N, D, P] or null
  int64_t doutput_stride_t, doutput_stride_n;
  const void *dh_n, *dc_n;  // [D, N, P], [D, N, H], each or null
  const void* dcells;       // [T, N, D, H] wide, or null
  const void *h0, *c0;      // h0 is read for h_entering alone
  const void *weight_hh[2], *weight_hr[2];
  const void *output, *cells, *gates;  // as the forward left them; output is read for h_entering alone
  const int64_t* lengths;
  const bool* reset_mask;
  void *dh0, *dc0;  // [D, N, P], [D, N, H]
  void* dgates_x;   // [4H] rows
  Strides dgates_strides;
  Stretches stretches;
  // What the weights' gradients are made of beside dgates_x, laid out like it with rows of other widths; each or null,
  // but dhidden with a projection.
  void* dhidden;  // [P] rows, wide: the whole gradient at h_t, with a projection
  Strides dhidden_strides;
  void* h_entering;  // [P] rows: the h that W_hh multiplied
  Strides h_entering_strides;
  void* unprojected;  // [H] rows, wide: what W_hr multiplied
  Strides unprojected_strides;
};

// The gate inputs of rows of a sequence: gates [rows, 4H] = x weight_ih^T, in the wide type. Every array is contiguous.
struct GatesArgs {
  int64_t rows, I, H;
  DType dtype;
  bool narrow_weights;    // weight_ih is bfloat16 beside float32 tensors
  const void* x;          // [rows, I]
  const void* weight_ih;  // [4H, I]
  void* gates;
};

// One step of one layer. Every array is contiguous and of one type, but for narrow weights and what is wide; the
// results share no memory with anything.
struct StepArgs {
  int64_t N, I, H, P;  // N up to kMaxStepRows, unless gates_x are given
  DType dtype;
  bool narrow_weights;                // the three matrices are bfloat16 beside float32 tensors
  const void *x, *h, *c;              // [N, I], [N, P], [N, H]
  const void *weight_ih, *weight_hh;  // [4H, I], [4H, P]
  const void *bias_ih, *bias_hh;      // [4H], each or null
  const void* weight_hr;              // [P, H] or null
  void *h_out, *c_out;                // [N, P], [N, H]
  const void* gates_x;  // [N, 4H] wide: what x and h give the gates, without biases or projection; or null: made here
  void *cells, *gates;  // the tape, each or null: [N, H] wide, [N, 4H] activated
};

// The gradients of one step, likewise.
struct StepBackwardArgs {
  int64_t N, I, H, P;  // N up to kMaxStepRows, unless dx, dh_in and weight_hr are null
  DType dtype;
  const void *dh, *dc;                // [N, P], [N, H]: of the results, each or null
  const void* c;                      // [N, H], as it entered
  const void *cells, *gates;          // [N, H] wide, [N, 4H], as the forward left them
  const void *weight_ih, *weight_hh;  // [4H, I], [4H, P]
  const void* weight_hr;              // [P, H] or null
  void *dx, *dh_in, *dc_in;           // [N, I], [N, P], [N, H], each or null
  void* dgates;                       // [N, 4H] wide, before the activations
  void* unprojected;                  // [N, H] wide, what W_hr multiplied, or null
};

// Rows from which a step is better made with packed weights.
constexpr int64_t kMaxStepRows = 8;

// With layer normalisation, recurrent dropout or zoneout: gates for all steps at a time; biases are in gates_x.
struct VariantKernels {
  void (*forward)(const ForwardArgs&, const Variant&, const Threads&);
  void (*backward)(const BackwardArgs&, const Variant&, const VariantTape&, const Threads&);
};

struct Int8Args;

struct Kernels {
  const char* isa;
  void (*forward)(const ForwardArgs&, const Threads&);
  void (*backward)(const BackwardArgs&, const Threads&);
  void (*step)(const StepArgs&, const Threads&);
  void (*step_backward)(const StepBackwardArgs&, const Threads&);
  void (*gates)(const GatesArgs&, const Threads&);
  const VariantKernels* variants;
  const MatrixProducts *products, *double_products;
  void (*int8_layer)(const Int8Args&, const Threads&);  // int8_recurrence.h
  bool takes_parts = false;  // whether products heed how many parts a float32 number is to be taken as
};

// The kernels for the best instruction set of this machine, or for the one that FASTLSTM_CPU_ISA names: "generic",
// "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx". Throws std::runtime_error where the machine does not have that one.
const Kernels& cpu_kernels();

}  // namespace fastlstm

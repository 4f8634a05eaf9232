// Arguments of the CPU's kernels: those of core/recurrence_args.h, and those that only the CPU takes. No torch header
// here or below.
#pragma once

#include <cstdint>

#include "core/recurrence_args.h"
#include "core/types.h"
#include "core/variant.h"
#include "cpu/matrix_product.h"
#include "cpu/threads.h"

namespace fastlstm {

// Gates for a chunk of steps at a time. Without `visit` an array of gates holds all T steps. With it, it holds `steps`
// of them: the loop takes the steps in chunks [k0, k1), in the order of a direction (t = k, in reverse T - 1 - k), and
// calls visit(context, k0, k1, shares), which makes a chunk's gates before the loop reads them, or uses those that it
// wrote. `shares` workers share the units of a row; each should make the gates that it reads itself, since a line from
// another core's cache is slow.
struct Chunks {
  int64_t steps;
  void (*visit)(void* context, int64_t k0, int64_t k1, int shares);
  void* context;
};

struct ForwardArgs : RecurrenceForwardArgs {
  int float32_parts;    // in products of float32 on AMX: 3, or fewer (matrix_product.h)
  bool narrow_weights;  // weight_hh and weight_hr are bfloat16, the other tensors float32
  Chunks chunks;
  const void *weight_hh[2], *weight_hr[2];  // of each direction: [4H, P], [P, H] or null
  const void *bias_ih[2], *bias_hh[2];      // [4H], added to gates_x; each or null
};

struct BackwardArgs : RecurrenceBackwardArgs {
  int float32_parts;
  const void *weight_hh[2], *weight_hr[2];
  Chunks chunks;
  Strides dgates_strides, dhidden_strides;  // t counted from the first step of a chunk
  // Rows from which the gradients of the weights are made, beside dgates_x; each or null.
  void* h_entering;  // [P] rows: the h that W_hh multiplied; needs `output` and `h0`
  Strides h_entering_strides;
  void* unprojected;  // [H] rows, wide: what W_hr multiplied
  Strides unprojected_strides;
  const void *output, *h0;  // as the forward left it and took it
};

// The gate inputs of some rows of a sequence: gates [rows, 4H] = x weight_ih^T, in the wide type. Every array is
// contiguous.
struct GatesArgs {
  int64_t rows, I, H;
  DType dtype;
  bool narrow_weights;    // weight_ih is bfloat16, x float32
  const void* x;          // [rows, I]
  const void* weight_ih;  // [4H, I]
  void* gates;
};

// One step of one layer. Every array is contiguous and of one type, except narrow weights and what is wide; the results
// share no memory with anything.
struct StepArgs {
  int64_t N, I, H, P;  // N up to kMaxStepRows, unless gates_x are given
  DType dtype;
  bool narrow_weights;                // the three matrices are bfloat16, the other tensors float32
  const void *x, *h, *c;              // [N, I], [N, P], [N, H]
  const void *weight_ih, *weight_hh;  // [4H, I], [4H, P]
  const void *bias_ih, *bias_hh;      // [4H], each or null
  const void* weight_hr;              // [P, H] or null
  void *h_out, *c_out;                // [N, P], [N, H]
  const void* gates_x;                // [N, 4H] wide: x W_ih^T + h W_hh^T without biases; or null: made here
  void *cells, *gates;                // the tape, each or null: [N, H] wide, [N, 4H] activated
};

// The gradients of one step, in the same form.
struct StepBackwardArgs {
  int64_t N, I, H, P;  // N up to kMaxStepRows, unless dx, dh_in and weight_hr are null
  DType dtype;
  const void *dh, *dc;                // [N, P], [N, H]: of the results, each or null
  const void* c;                      // [N, H], as it entered
  const void *cells, *gates;          // [N, H] wide, [N, 4H], as the forward left them
  const void *weight_ih, *weight_hh;  // [4H, I], [4H, P]
  const void* weight_hr;              // [P, H] or null
  void *dx, *dh_in, *dc_in;           // [N, I], [N, P], [N, H], each or null
  void* dgates;                       // [N, 4H] wide: gradients of the pre-activations
  void* unprojected;                  // [N, H] wide: what W_hr multiplied, or null
};

// The most rows for which a step is faster on weights that are not packed.
constexpr int64_t kMaxStepRows = 8;

// Layer normalisation, recurrent dropout, zoneout. Gates of all steps at a time; gates_x include the biases.
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
  bool takes_parts = false;                             // whether products use `parts` of a float32 number
};

// The kernels for this machine's best instruction set, or for the one that FASTLSTM_CPU_ISA names: "generic", "avx2",
// "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx". Throws std::runtime_error if the machine does not have that one.
const Kernels& cpu_kernels();

}  // namespace fastlstm

// The CPU recurrence with layer normalisation, recurrent dropout or zoneout; see recurrence.h for the arguments it shares with
// the plain one. Gates for all steps at a time; biases are in gates_x.
#pragma once

#include "core/variant.h"
#include "cpu/recurrence.h"

namespace fastlstm {

struct VariantKernels {
  void (*forward)(const ForwardArgs&, const Variant&, const Threads&);
  void (*backward)(const BackwardArgs&, const Variant&, const VariantTape&, const Threads&);
};

// Those for the instruction set of cpu_kernels().
const VariantKernels& cpu_variant_kernels();

}  // namespace fastlstm

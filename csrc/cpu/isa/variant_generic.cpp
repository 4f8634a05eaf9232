// The variants' kernels for any machine.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/steps/plan.h"
#include "cpu/variant.h"
#include "cpu/workspace.h"

#define FASTLSTM_SIMD_BYTES 16

namespace fastlstm {
namespace variant_generic {
#include "cpu/variant/kernels.h"
}  // namespace variant_generic

const VariantKernels& variant_kernels_generic() {
  static const VariantKernels kernels{variant_generic::forward, variant_generic::backward};
  return kernels;
}
}  // namespace fastlstm

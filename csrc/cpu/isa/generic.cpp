// The kernels for any machine: 128-bit vectors, which every compiler here has or emulates. On aarch64 they are NEON's,
// which every such processor has.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#define FASTLSTM_SIMD_BYTES 16

namespace fastlstm {
namespace generic {
#include "cpu/isa/kernels.h"
#include "cpu/variant/kernels.h"
}  // namespace generic

const Kernels& kernels_generic() {
  static const Kernels kernels{"generic",
                               generic::forward,
                               generic::backward,
                               generic::step,
                               generic::step_backward,
                               generic::gates,
                               &generic::variants::kernels,
                               &generic::fma_products<float>,
                               &generic::fma_products<double>};
  return kernels;
}
}  // namespace fastlstm

// The layer with 8-bit weights for any machine.

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/int8_recurrence.h"
#include "cpu/isa/int8.h"
#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#define FASTLSTM_SIMD_BYTES 16

namespace fastlstm {
namespace int8_generic {
#include "cpu/int8/kernels.h"
#include "cpu/int8/plain_dot.h"
}  // namespace int8_generic

void int8_layer_generic(const Int8Args& args, const Threads& threads) {
  int8_generic::int8_layer<int8_generic::PlainDot>(args, threads);
}
}  // namespace fastlstm

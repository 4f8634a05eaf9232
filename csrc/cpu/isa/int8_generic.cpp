// The layer with 8-bit weights for any machine.

#define FASTLSTM_SIMD_BYTES 16
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace int8_generic {
#include "cpu/int8/kernels.h"
#include "cpu/int8/plain_dot.h"
}  // namespace int8_generic

void int8_layer_generic(const Int8Args& args, const Threads& threads) {
  int8_generic::int8_layer<int8_generic::PlainDot>(args, threads);
}
}  // namespace fastlstm

#include "cpu/isa/end.h"

// The kernels for any machine: 128-bit vectors, which every supported compiler has or emulates.

#define FASTLSTM_SIMD_BYTES 16
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace generic {
#include "cpu/isa/kernels.h"
}  // namespace generic

const Kernels& kernels_generic() {
  static constexpr Kernels kernels = generic::all_kernels("generic", int8_layer_generic);
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"

// The layer with 8-bit weights for x86-64 with AVX2.

#if defined(__x86_64__)
#define FASTLSTM_SIMD_BYTES 32
#define FASTLSTM_TARGET "avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace int8_avx2 {
#include "cpu/int8/kernels.h"
#include "cpu/int8/maddubs_dot.h"
}  // namespace int8_avx2

void int8_layer_avx2(const Int8Args& args, const Threads& threads) {
  int8_avx2::int8_layer<int8_avx2::MaddubsDot>(args, threads);
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

// The kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).

#if defined(__x86_64__)
#define FASTLSTM_SIMD_BYTES 32
#define FASTLSTM_TARGET "avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace avx2 {
#include "cpu/isa/kernels.h"
}  // namespace avx2

const Kernels& kernels_avx2() {
  static constexpr Kernels kernels = avx2::all_kernels("avx2", int8_layer_avx2);
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

// The kernels for x86-64 with AVX-512 F, BW, VL and DQ (Skylake-SP, Zen 4 and later).

#if defined(__x86_64__)
#define FASTLSTM_SIMD_BYTES 64
#define FASTLSTM_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace avx512 {
#include "cpu/isa/kernels.h"
}  // namespace avx512

const Kernels& kernels_avx512() {
  static constexpr Kernels kernels = avx512::all_kernels("avx512", int8_layer_avx2);
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

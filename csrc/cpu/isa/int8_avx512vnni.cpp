// The layer with 8-bit weights for x86-64 with AVX512-VNNI (Cascade Lake, Ice Lake, Zen 4 and later), and the kernels of
// AVX-512 with it.

#if defined(__x86_64__)
#define FASTLSTM_SIMD_BYTES 64
#define FASTLSTM_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
const Kernels& kernels_avx512();

namespace int8_avx512vnni {
#include "cpu/int8/kernels.h"
#include "cpu/int8/vnni_dot.h"
}  // namespace int8_avx512vnni

void int8_layer_avx512vnni(const Int8Args& args, const Threads& threads) {
  int8_avx512vnni::int8_layer<int8_avx512vnni::VnniDot>(args, threads);
}

const Kernels& kernels_avx512vnni() {
  static const Kernels kernels = [] {
    Kernels k = kernels_avx512();
    k.isa = "avx512vnni";
    k.int8_layer = int8_layer_avx512vnni;
    return k;
  }();
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

// The layer with 8-bit weights for x86-64 with AVX2 and AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and later), and the
// kernels of AVX2 with it.

#if defined(__x86_64__)
#include "cpu/isa/int8.h"

#if !defined(FASTLSTM_WITHOUT_AVXVNNI)
#define FASTLSTM_SIMD_BYTES 32
#define FASTLSTM_TARGET "avxvnni,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
const Kernels& kernels_avx2();

namespace int8_avxvnni {
#include "cpu/int8/kernels.h"
#include "cpu/int8/vnni_dot.h"
}  // namespace int8_avxvnni

void int8_layer_avxvnni(const Int8Args& args, const Threads& threads) {
  int8_avxvnni::int8_layer<int8_avxvnni::VnniDot>(args, threads);
}

const Kernels& kernels_avxvnni() {
  static const Kernels kernels = [] {
    Kernels k = kernels_avx2();
    k.isa = "avxvnni";
    k.int8_layer = int8_layer_avxvnni;
    return k;
  }();
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif
#endif

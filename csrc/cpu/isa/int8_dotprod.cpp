// The layer with 8-bit weights for aarch64 with SDOT (Armv8.2 with DotProd: Neoverse N1 and Cortex-A75 and later, Apple's
// A13, M1 and later), and the kernels of NEON with it.

#if defined(__aarch64__)
#define FASTLSTM_SIMD_BYTES 16
#if defined(__clang__)
#define FASTLSTM_TARGET "dotprod"
#else
#define FASTLSTM_TARGET "arch=armv8.2-a+dotprod"
#endif
#include "cpu/isa/begin.h"

namespace fastlstm {
const Kernels& kernels_generic();

namespace int8_dotprod {
#include "cpu/int8/kernels.h"
#include "cpu/int8/sdot_dot.h"
}  // namespace int8_dotprod

void int8_layer_dotprod(const Int8Args& args, const Threads& threads) {
  int8_dotprod::int8_layer<int8_dotprod::SdotDot>(args, threads);
}

const Kernels& kernels_dotprod() {
  static const Kernels kernels = [] {
    Kernels k = kernels_generic();
    k.isa = "dotprod";
    k.int8_layer = int8_layer_dotprod;
    return k;
  }();
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

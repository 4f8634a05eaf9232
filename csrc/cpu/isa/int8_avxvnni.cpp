// The layer with 8-bit weights for x86-64 with AVX2 and AVX-VNNI (Alder Lake, Sierra Forest, Zen 5 and later), and the
// kernels of AVX2 with it.

#if defined(__x86_64__)
#include <immintrin.h>

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

#if !defined(FASTLSTM_WITHOUT_AVXVNNI)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,f16c"))), apply_to = function)
#elif defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avxvnni,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 32

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

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif

// The kernels for x86-64 with AVX-512 F, BW, VL and DQ (Skylake-SP, Zen 4 and later).

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/isa/int8.h"
#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), \
                             apply_to = function)
#elif defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 64

namespace fastlstm {
namespace avx512 {
#include "cpu/isa/kernels.h"
#include "cpu/variant/kernels.h"
}  // namespace avx512

const Kernels& kernels_avx512() {
  static const Kernels kernels{"avx512",
                               avx512::forward,
                               avx512::backward,
                               avx512::step,
                               avx512::step_backward,
                               avx512::gates,
                               &avx512::variants::kernels,
                               &avx512::fma_products<float>,
                               &avx512::fma_products<double>,
                               int8_layer_avx2};
  return kernels;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

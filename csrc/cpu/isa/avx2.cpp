// The kernels for x86-64 with AVX2, FMA and F16C (Haswell, Zen and later).

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 32

namespace fastlstm {
namespace avx2 {
#include "cpu/isa/kernels.h"
#include "cpu/variant/kernels.h"
}  // namespace avx2

const Kernels& kernels_avx2() {
  static const Kernels kernels{"avx2",
                               avx2::forward,
                               avx2::backward,
                               avx2::step,
                               avx2::step_backward,
                               avx2::gates,
                               &avx2::variants::kernels,
                               &avx2::fma_products<float>,
                               &avx2::fma_products<double>,
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

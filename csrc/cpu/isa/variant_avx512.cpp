// The variants' kernels for x86-64 with AVX-512 (F, BW, VL, DQ).

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/steps/plan.h"
#include "cpu/variant.h"
#include "cpu/workspace.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#elif defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 64

namespace fastlstm {
namespace variant_avx512 {
#include "cpu/variant/kernels.h"
}  // namespace variant_avx512

const VariantKernels& variant_kernels_avx512() {
  static const VariantKernels kernels{variant_avx512::forward, variant_avx512::backward};
  return kernels;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// The variants' kernels for x86-64 with AVX2, FMA and F16C.

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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 32

namespace fastlstm {
namespace variant_avx2 {
#include "cpu/variant/kernels.h"
}  // namespace variant_avx2

const VariantKernels& variant_kernels_avx2() {
  static const VariantKernels kernels{variant_avx2::forward, variant_avx2::backward};
  return kernels;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

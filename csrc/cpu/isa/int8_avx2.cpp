// The layer with 8-bit weights for x86-64 with AVX2.

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

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 32

namespace fastlstm {
namespace int8_avx2 {
#include "cpu/int8/kernels.h"
#include "cpu/int8/maddubs_dot.h"
}  // namespace int8_avx2

void int8_layer_avx2(const Int8Args& args, const Threads& threads) {
  int8_avx2::int8_layer<int8_avx2::MaddubsDot>(args, threads);
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

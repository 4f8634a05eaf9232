// The layer with 8-bit weights for x86-64 with AMX's tiles of bytes beside AVX512-VNNI.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/int8_recurrence.h"
#include "cpu/isa/int8.h"
#include "cpu/isa/processor.h"
#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#elif defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 64

namespace fastlstm {
namespace int8_amx {
#include "cpu/int8/kernels.h"
#include "cpu/int8/vnni_dot.h"
#include "cpu/product/tiles.h"
#include "cpu/int8/tile_dot.h"

void run(const Int8Args& args, const Threads& threads) { int8_layer<TileDot>(args, threads); }
}  // namespace int8_amx

RunInt8Layer* int8_layer_of_amx(bool emulated) {
  const Processor& p = Processor::here();
  if (!p.avx512vnni) return int8_layer_avx2;
  if (!emulated && !p.amx_int8) return int8_layer_avx512vnni;
  int8_amx::Tiles::emulated = emulated;
  return int8_amx::run;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

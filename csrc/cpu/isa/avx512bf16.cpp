// The kernels for x86-64 with AVX512-BF16 beside AVX-512: bfloat16 products by VDPBF16PS, the rest as on AVX-512.
// dispatch.cpp says where they are chosen.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/isa/int8.h"
#include "cpu/isa/processor.h"
#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#elif defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 64

namespace fastlstm {
const Kernels& kernels_avx512();

namespace avx512bf16 {
#include "cpu/isa/loops.h"
#include "cpu/product/parts.h"
#include "cpu/product/pair_product.h"
#include "cpu/product/blocked_matrix_product.h"
#include "cpu/product/fma_matrix_product.h"
#include "cpu/product/pair_matrix_product.h"

void forward(const ForwardArgs& args, const Threads& threads) {
  if (args.dtype != DType::kBFloat16) return kernels_avx512().forward(args, threads);
  const Sizes& s = args.sizes;
  const Plan plan = make_plan(s, args.lengths, 4 * s.H * s.P * 2, threads.count);
  if (args.wide_gates) {
    Forward<float, BFloat16, float, BFloat16, Pairs<1>>(args, threads, plan).run();
  } else {
    Forward<float, BFloat16, BFloat16, BFloat16, Pairs<1>>(args, threads, plan).run();
  }
}

void backward(const BackwardArgs& args, const Threads& threads) {
  if (args.dtype != DType::kBFloat16) return kernels_avx512().backward(args, threads);
  const Sizes& s = args.sizes;
  const Plan plan = make_plan(s, args.lengths, 4 * s.H * s.P * 2, threads.count);
  if (args.wide_gates) {
    Backward<float, BFloat16, float, Pairs<1>>(args, threads, plan).run();
  } else {
    Backward<float, BFloat16, BFloat16, Pairs<1>>(args, threads, plan).run();
  }
}

}  // namespace avx512bf16

const Kernels& kernels_avx512bf16() {
  static const Kernels kernels{"avx512bf16",
                               avx512bf16::forward,
                               avx512bf16::backward,
                               kernels_avx512().step,
                               kernels_avx512().step_backward,
                               kernels_avx512().gates,
                               kernels_avx512().variants,
                               &avx512bf16::pair_products,
                               kernels_avx512().double_products,
                               Processor::here().avx512vnni ? int8_layer_avx512vnni : int8_layer_avx2};
  return kernels;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

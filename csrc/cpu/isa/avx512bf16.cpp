// The kernels for x86-64 with AVX512-BF16 and AVX-512: bfloat16 products by VDPBF16PS, the rest as on AVX-512.
// dispatch.cpp says where they are chosen.

#if defined(__x86_64__)
#include "cpu/isa/processor.h"

#define FASTLSTM_SIMD_BYTES 64
#define FASTLSTM_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c"
#include "cpu/isa/begin.h"

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
  static const Kernels kernels = [] {
    Kernels k = kernels_avx512();
    k.isa = "avx512bf16";
    k.forward = avx512bf16::forward;
    k.backward = avx512bf16::backward;
    k.products = &avx512bf16::pair_products;
    k.int8_layer = Processor::here().avx512vnni ? int8_layer_avx512vnni : int8_layer_avx2;
    return k;
  }();
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

// The kernels for x86-64 with AMX (bfloat16 tiles) beside AVX-512: the recurrence's products on tiles, the rest as on AVX-512.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "plan.h"
#include "recurrence.h"
#include "workspace.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define FASTLSTM_SIMD_BYTES 64

namespace fastlstm {
const Kernels& kernels_avx512();

namespace amx {
#include "loops.h"
#include "tiles.h"
#include "parts.h"
#include "tile_product.h"
#include "tile_matrix_product.h"

// How numbers of a type are taken apart: those of the state, and those of the weights. Backward, the state is float32 gradients.
template <class IO>
struct Parts;
template <>
struct Parts<float> {
  using Forward = Tiled<3, 3>;
  using Backward = Tiled<3, 3>;
};
template <>
struct Parts<BFloat16> {
  using Forward = Tiled<1, 1>;
  using Backward = Tiled<2, 1>;
};
template <>
struct Parts<Float16> {
  using Forward = Tiled<2, 2>;
  using Backward = Tiled<2, 2>;
};

// A product of tiles takes the 16 cycles of 16 rows whether they are there or not; fused multiply-adds take one a row.
template <class Product>
bool worthwhile(const Sizes& s) {
  return s.N > Product::kProducts;
}

// visit(IO, GX), numbers of the types, for a call that tiles can serve.
template <class Visit>
bool visit_types(DType dtype, bool wide_gates, const Visit& visit) {
  switch (dtype) {
    case DType::kFloat64: return false;
    case DType::kFloat32: return visit(float{}, float{});
    case DType::kBFloat16: return wide_gates ? visit(BFloat16{}, float{}) : visit(BFloat16{}, BFloat16{});
    case DType::kFloat16: return wide_gates ? visit(Float16{}, float{}) : visit(Float16{}, Float16{});
  }
  return false;
}

void forward(const ForwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const bool served = visit_types(args.dtype, args.wide_gates, [&](auto io, auto gx) {
    using Product = typename Parts<decltype(io)>::Forward;
    if (!worthwhile<Product>(s)) return false;
    const int64_t bytes = 4 * s.H * Product::packed_depth(s.P) * 2;
    const Plan plan = make_plan(s, args.lengths, bytes, threads.count);
    Forward<float, decltype(io), decltype(gx), Product>(args, threads, plan).run();
    return true;
  });
  if (!served) kernels_avx512().forward(args, threads);
}

void backward(const BackwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const bool served = visit_types(args.dtype, args.wide_gates, [&](auto io, auto gx) {
    using Product = typename Parts<decltype(io)>::Backward;
    if (!worthwhile<Product>(s)) return false;
    const int64_t bytes = Product::packed_depth(4 * s.H) * s.P * 2;
    const Plan plan = make_plan(s, args.lengths, bytes, threads.count);
    Backward<float, decltype(io), decltype(gx), Product>(args, threads, plan).run();
    return true;
  });
  if (!served) kernels_avx512().backward(args, threads);
}

}  // namespace amx

const Kernels& kernels_amx(bool emulated) {
  static const MatrixProducts products{amx::worthwhile_product, amx::packed_product_bytes, amx::pack_product,
                                       amx::multiply_matrices};
  static const Kernels kernels{emulated ? "amx-emulated" : "amx", amx::forward, amx::backward, kernels_avx512().step,
                               &products};
  amx::Tiles::emulated = emulated;
  return kernels;
}
}  // namespace fastlstm

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

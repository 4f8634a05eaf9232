// The kernels for x86-64 with AMX (bfloat16 tiles) beside AVX-512: the recurrence's products on tiles, the rest as on
// AVX-512.

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
const Kernels& kernels_avx512();

namespace amx {
#include "cpu/isa/loops.h"
#include "cpu/product/tiles.h"
#include "cpu/product/parts.h"
#include "cpu/product/tile_product.h"
#include "cpu/product/tile_panels.h"
#include "cpu/product/tile_matrix_product.h"

// How numbers are taken apart: those of the state, and those of the weights. Backward, the state is float32 gradients.
template <class ForwardProduct, class BackwardProduct = ForwardProduct>
struct Products {
  using Forward = ForwardProduct;
  using Backward = BackwardProduct;
};

// A product of tiles takes the 16 cycles of 16 rows whether they are there or not; fused multiply-adds take one a row.
template <class Product>
bool worthwhile(const Sizes& s) {
  return s.N > Product::kProducts;
}

// visit(IO, GX, W, Products) for a call that tiles can serve: numbers of the types, and the products.
template <class Args, class Visit>
bool visit_types(const Args& args, bool narrow_weights, const Visit& visit) {
  using OfBFloat16 = Products<Tiled<1, 1>, Tiled<2, 1>>;
  using OfFloat16 = Products<Tiled<2, 2>>;
  switch (args.dtype) {
    case DType::kFloat64:
      return false;
    case DType::kFloat32:
      switch (args.float32_parts) {
        case 1:
          return narrow_weights ? visit(float{}, float{}, BFloat16{}, Products<Tiled<1, 1>>{})
                                : visit(float{}, float{}, float{}, Products<Tiled<1, 1>>{});
        case 2:
          return narrow_weights ? visit(float{}, float{}, BFloat16{}, Products<Tiled<2, 1>>{})
                                : visit(float{}, float{}, float{}, Products<Tiled<2, 2>>{});
        default:
          return narrow_weights ? visit(float{}, float{}, BFloat16{}, Products<Tiled<3, 1>>{})
                                : visit(float{}, float{}, float{}, Products<Tiled<3, 3>>{});
      }
    case DType::kBFloat16:
      return args.wide_gates ? visit(BFloat16{}, float{}, BFloat16{}, OfBFloat16{})
                             : visit(BFloat16{}, BFloat16{}, BFloat16{}, OfBFloat16{});
    case DType::kFloat16:
      return args.wide_gates ? visit(Float16{}, float{}, Float16{}, OfFloat16{})
                             : visit(Float16{}, Float16{}, Float16{}, OfFloat16{});
  }
  return false;
}

void forward(const ForwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const bool served = visit_types(args, args.narrow_weights, [&](auto io, auto gx, auto w, auto products) {
    using Product = typename decltype(products)::Forward;
    if (!worthwhile<Product>(s)) return false;
    const int64_t bytes = 4 * s.H * Product::packed_depth(s.P) * 2;
    const Plan plan = make_plan(s, args.lengths, bytes, threads.count);
    Forward<float, decltype(io), decltype(gx), decltype(w), Product>(args, threads, plan).run();
    return true;
  });
  if (!served) kernels_avx512().forward(args, threads);
}

void backward(const BackwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const bool served = visit_types(args, false, [&](auto io, auto gx, auto, auto products) {
    using Product = typename decltype(products)::Backward;
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
  static const Kernels kernels{emulated ? "amx-emulated" : "amx",
                               amx::forward,
                               amx::backward,
                               kernels_avx512().step,
                               kernels_avx512().step_backward,
                               kernels_avx512().gates,
                               kernels_avx512().variants,
                               &products,
                               kernels_avx512().double_products,
                               int8_layer_of_amx(emulated),
                               true};
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

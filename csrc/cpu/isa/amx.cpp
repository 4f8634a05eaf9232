// The kernels for x86-64 with AMX (bfloat16 tiles) and AVX-512: the recurrence's products and large products on tiles,
// the rest as on AVX-512.

#if defined(__x86_64__)
#define FASTLSTM_SIMD_BYTES 64
#define FASTLSTM_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
const Kernels& kernels_avx512();

namespace amx {
#include "cpu/isa/loops.h"
#include "cpu/product/tiles.h"
#include "cpu/product/parts.h"
#include "cpu/product/tile_product.h"
#include "cpu/product/tile_panels.h"
#include "cpu/product/tile_matrix_product.h"

// The products of both passes, by the parts of the left factor and of the weights. The left factor is the state
// forward, and float32 gradients backward.
template <class ForwardProduct, class BackwardProduct = ForwardProduct>
struct Products {
  using Forward = ForwardProduct;
  using Backward = BackwardProduct;
};

// A product of tiles takes 16 cycles for up to 16 rows; multiply-adds take one cycle for each row.
template <class Product>
bool worthwhile(const Sizes& s) {
  return s.N > Product::kProducts;
}

// visit(IO, GX, W, Products) with values of the types of a call, if tiles can serve it.
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
  static const Kernels kernels = [emulated] {
    Kernels k = kernels_avx512();
    k.isa = emulated ? "amx-emulated" : "amx";
    k.forward = amx::forward;
    k.backward = amx::backward;
    k.products = &products;
    k.int8_layer = int8_layer_of_amx(emulated);
    k.takes_parts = true;
    return k;
  }();
  amx::Tiles::emulated = emulated;
  return kernels;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif

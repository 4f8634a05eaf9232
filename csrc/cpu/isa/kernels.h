// Everything that a complete set of kernels compiles: the loops, large products, the choice of types, the variants.
// Included by <isa>.cpp inside its namespace, after begin.h.

#include "cpu/isa/loops.h"
#include "cpu/product/blocked_matrix_product.h"
#include "cpu/product/fma_matrix_product.h"

// visit(value of the type in which W_hh [4H, P], of type W, is packed). `bytes` is the size of one worker's share in
// the accumulation type. Where reading the weights takes most of the time, 16-bit weights stay 16-bit and are widened
// at every step (measured: benchmarks/log.md).
template <class Acc, class W, class Visit>
void visit_packed(int64_t N, int64_t bytes, const Visit& visit) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    // From a quarter of the second-level cache on, one to three rows use all of its bandwidth.
    if (N <= 3 ? bytes > second_level_bytes() / 4 : N <= 16 && bytes > resident_bytes()) return visit(BFloat16Pair{});
  } else if constexpr (std::is_same_v<W, Float16>) {
    if (N <= 2 && bytes > resident_bytes()) return visit(Float16{});
  }
  visit(Acc{});
}

template <class Acc, class IO, class GX, class W>
void forward_typed(const ForwardArgs& args, const Threads& threads) {
  const int64_t weight_bytes = 4 * args.sizes.H * args.sizes.P * sizeof(Acc);
  const Plan plan = make_plan(args.sizes, args.lengths, weight_bytes, threads.count, Pass::kForward);
  visit_packed<Acc, W>(args.sizes.N, weight_bytes / plan.U, [&](auto packed) {
    Forward<Acc, IO, GX, W, Fma<Acc, decltype(packed)>>(args, threads, plan).run();
  });
}

template <class Acc, class IO, class GX>
void backward_typed(const BackwardArgs& args, const Threads& threads) {
  const int64_t weight_bytes = 4 * args.sizes.H * args.sizes.P * sizeof(Acc);
  const Plan plan = make_plan(args.sizes, args.lengths, weight_bytes, threads.count);
  visit_packed<Acc, IO>(args.sizes.N, weight_bytes / plan.U, [&](auto packed) {
    Backward<Acc, IO, GX, Fma<Acc, decltype(packed)>>(args, threads, plan).run();
  });
}

// visit(values of the types Acc, IO, GX, W of a call).
template <class Visit>
void visit_types(DType dtype, bool wide_gates, bool narrow_weights, const Visit& visit) {
  constexpr BFloat16 b{};
  constexpr Float16 h{};
  switch (dtype) {
    case DType::kFloat64:
      return visit(double{}, double{}, double{}, double{});
    case DType::kFloat32:
      return narrow_weights ? visit(float{}, float{}, float{}, b) : visit(float{}, float{}, float{}, float{});
    case DType::kBFloat16:
      return wide_gates ? visit(float{}, b, float{}, b) : visit(float{}, b, b, b);
    case DType::kFloat16:
      return wide_gates ? visit(float{}, h, float{}, h) : visit(float{}, h, h, h);
  }
}

void forward(const ForwardArgs& args, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, args.narrow_weights, [&](auto acc, auto io, auto gx, auto w) {
    forward_typed<decltype(acc), decltype(io), decltype(gx), decltype(w)>(args, threads);
  });
}

void backward(const BackwardArgs& args, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, false, [&](auto acc, auto io, auto gx, auto) {
    backward_typed<decltype(acc), decltype(io), decltype(gx)>(args, threads);
  });
}

void step(const StepArgs& args, const Threads& threads) {
  visit_types(args.dtype, false, args.narrow_weights, [&](auto acc, auto io, auto, auto w) {
    Step<decltype(acc), decltype(io), decltype(w)>(args).run(threads);
  });
}

void step_backward(const StepBackwardArgs& args, const Threads& threads) {
  visit_types(args.dtype, false, false,
              [&](auto acc, auto io, auto, auto) { StepBackward<decltype(acc), decltype(io)>(args, threads).run(); });
}

void gates(const GatesArgs& args, const Threads& threads) {
  visit_types(args.dtype, true, args.narrow_weights, [&](auto acc, auto io, auto, auto w) {
    GateInputs<decltype(acc), decltype(io), decltype(w)>(args).run(threads);
  });
}

#include "cpu/variant/kernels.h"

constexpr Kernels all_kernels(const char* isa, void (*int8_layer)(const Int8Args&, const Threads&)) {
  Kernels k{};
  k.isa = isa;
  k.forward = forward;
  k.backward = backward;
  k.step = step;
  k.step_backward = step_backward;
  k.gates = gates;
  k.variants = &variants::kernels;
  k.products = &fma_products<float>;
  k.double_products = &fma_products<double>;
  k.int8_layer = int8_layer;
  return k;
}

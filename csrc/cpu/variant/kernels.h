// The variants' kernels. Included at the end of isa/kernels.h, inside the namespace of an instruction set.

namespace variants {

#include "core/variant_directions.h"

#include "cpu/variant/rows.h"
#include "cpu/variant/frame.h"
#include "cpu/variant/forward.h"
#include "cpu/variant/backward.h"

// visit(values of the types Acc, IO, GX of a call).
template <class Visit>
void visit_types(DType dtype, bool wide_gates, const Visit& visit) {
  switch (dtype) {
    case DType::kFloat64:
      return visit(double{}, double{}, double{});
    case DType::kFloat32:
      return visit(float{}, float{}, float{});
    case DType::kBFloat16:
      return wide_gates ? visit(float{}, BFloat16{}, float{}) : visit(float{}, BFloat16{}, BFloat16{});
    case DType::kFloat16:
      return wide_gates ? visit(float{}, Float16{}, float{}) : visit(float{}, Float16{}, Float16{});
  }
}

void forward(const ForwardArgs& args, const Variant& variant, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, [&](auto acc, auto io, auto gx) {
    const Sizes& s = args.sizes;
    const Plan plan = make_plan(s, args.lengths, 4 * s.H * s.P * sizeof(acc), threads.count);
    VariantForward<decltype(acc), decltype(io), decltype(gx)>(args, variant, threads, plan).run();
  });
}

void backward(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, [&](auto acc, auto io, auto gx) {
    const Sizes& s = args.sizes;
    const Plan plan = make_plan(s, args.lengths, 4 * s.H * s.P * sizeof(acc), threads.count);
    VariantBackward<decltype(acc), decltype(io), decltype(gx)>(args, variant, tape, threads, plan).run();
  });
}

constexpr VariantKernels kernels{forward, backward};

}  // namespace variants

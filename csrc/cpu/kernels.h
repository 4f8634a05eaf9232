// Everything that is compiled once for each instruction set, and the choice of types. Included inside a namespace of an
// instruction set by kernels_<isa>.cpp.

#include "loops.h"

// Weights above this, of one worker's share, are streamed from the third-level cache at every step.
constexpr int64_t kResidentBytes = int64_t{3} << 19;

template <class Acc, class IO, class GX>
void forward_typed(const ForwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const int64_t weight_bytes = 4 * s.H * s.P * sizeof(Acc);
  const Plan plan = make_plan(s, args.lengths, weight_bytes, threads.count);
  if constexpr (!std::is_same_v<Acc, IO>) {
    // With one or two rows a step takes as long as its weights take to arrive: half the bytes, half the time.
    if (s.N <= 2 && weight_bytes / plan.U > kResidentBytes) {
      Forward<Acc, IO, GX, Fma<Acc, IO>>(args, threads, plan).run();
      return;
    }
  }
  Forward<Acc, IO, GX, Fma<Acc, Acc>>(args, threads, plan).run();
}

template <class Acc, class IO, class GX>
void backward_typed(const BackwardArgs& args, const Threads& threads) {
  const Sizes& s = args.sizes;
  const Plan plan = make_plan(s, args.lengths, 4 * s.H * s.P * sizeof(Acc), threads.count);
  Backward<Acc, IO, GX, Fma<Acc, Acc>>(args, threads, plan).run();
}

// Calls visit with values of the three types Acc, IO, GX that a call asks for.
template <class Visit>
void visit_types(DType dtype, bool wide_gates, const Visit& visit) {
  switch (dtype) {
    case DType::kFloat64: return visit(double{}, double{}, double{});
    case DType::kFloat32: return visit(float{}, float{}, float{});
    case DType::kBFloat16: return wide_gates ? visit(float{}, BFloat16{}, float{}) : visit(float{}, BFloat16{}, BFloat16{});
    case DType::kFloat16: return wide_gates ? visit(float{}, Float16{}, float{}) : visit(float{}, Float16{}, Float16{});
  }
}

void forward(const ForwardArgs& args, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, [&](auto acc, auto io, auto gx) {
    forward_typed<decltype(acc), decltype(io), decltype(gx)>(args, threads);
  });
}

void backward(const BackwardArgs& args, const Threads& threads) {
  visit_types(args.dtype, args.wide_gates, [&](auto acc, auto io, auto gx) {
    backward_typed<decltype(acc), decltype(io), decltype(gx)>(args, threads);
  });
}

void step(const StepArgs& args, const Threads& threads) {
  visit_types(args.dtype, false, [&](auto acc, auto io, auto) { Step<decltype(acc), decltype(io)>(args).run(threads); });
}

void gates(const GatesArgs& args, const Threads& threads) {
  visit_types(args.dtype, true, [&](auto acc, auto io, auto) { GateInputs<decltype(acc), decltype(io)>(args).run(threads); });
}

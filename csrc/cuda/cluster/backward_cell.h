// The backward cell of the kernels that keep the weights on the chip: a thread takes one row and unit backwards through
// all steps, with the gradient of c in a register.
#pragma once

#include "cuda/cluster/forward_cell.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct ClusterBackwardCall : BackwardArrays<IO, Acc> {
  Steps steps;
  const IO *weight_hh, *weight_hr;             // of direction 0; weight_hr null without a projection
  int64_t weight_hh_stride, weight_hr_stride;  // from there to those of direction 1, in numbers
};

// The step that direction d takes kStepsAhead later, going backwards from t; it may not exist.
__device__ __forceinline__ int64_t steps_later(int d, int64_t t) { return d == 0 ? t - kStepsAhead : t + kStepsAhead; }

// The gradients of c and of the gates of one row and unit.
template <class IO, class Acc>
class BackwardState {
 public:
  using Call = ClusterBackwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, const RowSteps& row, int d, int64_t n, int64_t unit) {
    if (!row.there()) return;
    const int64_t state = (d * call.sizes.N + n) * call.sizes.H + unit;
    c0_ = call.c0.load_or_zero(state);
    dc_ = call.dc_n.load_or_zero(state);
  }

  // Loads early what step t needs besides the product.
  __device__ __forceinline__ void fetch(const Call& call, const RowSteps& row, int d, int64_t t, int64_t n,
                                        int64_t unit) {
    const Sizes& s = call.sizes;
    const int64_t H = s.H, later = steps_later(d, t);
    if (row.has(later)) {
      const int64_t place = ((later * s.N + n) * s.D + d) * H + unit;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) ptx::prefetch_l2(call.gates + (place - unit) * 4 + gate * H + unit);
      ptx::prefetch_l2(call.cells + place);
      if (call.dcells != nullptr) ptx::prefetch_l2(call.dcells + place);
    }
    if (t >= row.length) return;
    const int64_t place = ((t * s.N + n) * s.D + d) * H + unit;
    const IO* gates = call.gates + (place - unit) * 4 + unit;
    gates_ = {Rounding<Acc>::load(gates[0]), Rounding<Acc>::load(gates[H]), Rounding<Acc>::load(gates[2 * H]),
              Rounding<Acc>::load(gates[3 * H])};
    c_ = call.cells[place];
    cut_ = call.steps.cut_entering(d, t, n, row.length);
    c_in_ = 0;
    if (!cut_) {
      const bool first = t == call.steps.first_step(d, row.length);
      const int64_t before = ((call.steps.step_before(d, t) * s.N + n) * s.D + d) * H + unit;
      c_in_ = first ? c0_ : call.cells[before];
    }
    if (call.dcells != nullptr) dc_ += call.dcells[place];
  }

  // Step t of an existing row, from dh, the whole gradient of its h before any projection; returns the gates'
  // gradients, 0 where the row does not have the step. For the step before they are also written to passed[0],
  // passed[stride], ...; a step that the row does not have passes those of `before` on.
  __device__ __forceinline__ Gates<Acc> step(const RowSteps& row, int64_t t, Acc dh, IO* passed, const IO* before,
                                             int stride) {
    if (t < row.length) {
      const CellGradient<Acc> gradient = lstm_cell_backward(gates_, CellMath::tanh(c_), c_in_, dh, dc_);
      const Acc of_gates[4] = {gradient.gates.i, gradient.gates.f, gradient.gates.g, gradient.gates.o};
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) Rounding<Acc>::store(passed[gate * stride], cut_ ? Acc{0} : of_gates[gate]);
      dc_ = cut_ ? Acc{0} : gradient.c_in;
      return gradient.gates;
    }
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) passed[gate * stride] = before[gate * stride];
    return {};
  }

  // Stores the gates' gradients of step t of an existing row.
  __device__ __forceinline__ void keep(const Call& call, int d, int64_t t, int64_t n, int64_t unit,
                                       const Gates<Acc>& gradients) const {
    const Sizes& s = call.sizes;
    const int64_t first = ((t * s.N + n) * s.D + d) * 4 * s.H + unit;
    call.dgates_x.store(first, gradients.i);
    call.dgates_x.store(first + s.H, gradients.f);
    call.dgates_x.store(first + 2 * s.H, gradients.g);
    call.dgates_x.store(first + 3 * s.H, gradients.o);
  }

  // After all steps of an existing row.
  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit) const {
    if (call.dc0.data != nullptr) call.dc0.store((d * call.sizes.N + n) * call.sizes.H + unit, dc_);
  }

 private:
  bool cut_ = false;
  Acc c0_ = 0, dc_ = 0, c_ = 0, c_in_ = 0;
  Gates<Acc> gates_{};
};

// The gradient of h of one row and output, of `width`: H units, or P with a projection.
template <class IO, class Acc>
class BackwardOutput {
 public:
  using Call = ClusterBackwardCall<IO, Acc>;

  // Loads the gradient of h_n, which is added at the row's last step, the first one taken backwards, or at the end if
  // the row has no steps.
  __device__ __forceinline__ void start(const Call& call, const RowSteps& row, int d, int64_t n, int64_t unit,
                                        int64_t width) {
    if (row.there() && call.dh_n.data != nullptr) dh_ = call.dh_n.load((d * call.sizes.N + n) * width + unit);
  }

  // Loads early the gradient of h of step t besides the product.
  __device__ __forceinline__ void fetch(const Call& call, const RowSteps& row, int d, int64_t t, int64_t n,
                                        int64_t unit, int64_t width) {
    if (call.doutput == nullptr) return;
    const int64_t later = steps_later(d, t);
    if (row.has(later)) {
      ptx::prefetch_l2(call.doutput + later * call.doutput_stride_t + n * call.doutput_stride_n + d * width + unit);
    }
    if (t >= row.length) return;
    dh_ += Rounding<Acc>::load(call.doutput[t * call.doutput_stride_t + n * call.doutput_stride_n + d * width + unit]);
  }

  // The whole gradient of h of step t; zero where the row does not have the step.
  __device__ __forceinline__ Acc arriving(const RowSteps& row, int64_t t, Acc sum) {
    if (t >= row.length) return 0;
    sum += dh_;
    dh_ = 0;
    return sum;
  }

  // After all steps of an existing row, with the product's sum for the state before the first.
  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit, int64_t width,
                                         Acc sum) const {
    if (call.dh0.data != nullptr) call.dh0.store((d * call.sizes.N + n) * width + unit, sum + dh_);
  }

 private:
  Acc dh_ = 0;
};

// One row and unit, which a thread takes backwards through all steps; step j counts from the last.
template <class IO, class Acc>
class BackwardCell {
 public:
  using Call = ClusterBackwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, int d, int64_t n, int64_t unit) {
    row_.start(call, n < call.sizes.N && unit < call.sizes.H, n);
    state_.start(call, row_, d, n, unit);
    output_.start(call, row_, d, n, unit, call.sizes.H);
  }

  __device__ __forceinline__ void fetch(const Call& call, int d, int64_t j, int64_t n, int64_t unit) {
    const int64_t t = call.steps.step_at(d, call.sizes.T - 1 - j);
    state_.fetch(call, row_, d, t, n, unit);
    output_.fetch(call, row_, d, t, n, unit, call.sizes.H);
  }

  __device__ __forceinline__ Gates<Acc> step(const Call& call, int d, int64_t j, Acc sum, IO* passed, const IO* before,
                                             int stride) {
    if (!row_.there()) return {};
    const int64_t t = call.steps.step_at(d, call.sizes.T - 1 - j);
    return state_.step(row_, t, output_.arriving(row_, t, sum), passed, before, stride);
  }

  __device__ __forceinline__ void keep(const Call& call, int d, int64_t j, int64_t n, int64_t unit,
                                       const Gates<Acc>& gradients) const {
    if (row_.there()) state_.keep(call, d, call.steps.step_at(d, call.sizes.T - 1 - j), n, unit, gradients);
  }

  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit, Acc sum) const {
    if (!row_.there()) return;
    output_.finish(call, d, n, unit, call.sizes.H, sum);
    state_.finish(call, d, n, unit);
  }

 private:
  RowSteps row_;
  BackwardState<IO, Acc> state_;
  BackwardOutput<IO, Acc> output_;
};

}  // namespace fastlstm::cuda

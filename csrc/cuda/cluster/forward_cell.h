// The forward cell of the kernels that keep the weights on the chip: a thread takes one row and unit through all steps,
// with c in a register.
#pragma once

#include "cuda/device/arrays.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct ClusterForwardCall : ForwardArrays<IO, Acc> {
  Steps steps;
  const IO *weight_hh, *weight_hr;             // of direction 0; weight_hr null without a projection
  int64_t weight_hh_stride, weight_hr_stride;  // from there to those of direction 1, in numbers
};

// How many steps before its loads a step's numbers are prefetched. Memory may take longer than a step to answer; from
// the second-level cache they then come in a quarter of that time. Every thread prefetches the numbers that it will
// load: shared lines are one request.
constexpr int kStepsAhead = 4;

// One step of a row: whether the row has it, and whether the next one enters with zeros.
struct RowStep {
  int64_t t;
  bool there, cut;
};

// The steps of one row, for a thread that has a part of it.
struct RowSteps {
  int length = -1;  // -1: there is no such row, or this thread has no part of it

  template <class Call>
  __device__ __forceinline__ void start(const Call& call, bool is_there, int64_t n) {
    if (is_there) length = static_cast<int>(clamped_length(call.lengths, n, call.sizes.T));
  }

  __device__ __forceinline__ bool there() const { return length >= 0; }
  __device__ __forceinline__ bool has(int64_t t) const { return t >= 0 && t < length; }

  // The k-th step of direction d.
  template <class Call>
  __device__ __forceinline__ RowStep at(const Call& call, int d, int64_t k, int64_t n) const {
    RowStep step{call.steps.step_at(d, k), false, false};
    step.there = step.t < length;
    step.cut = step.there && step.t != call.steps.last_step(d, length) &&
               call.steps.cut_entering(d, call.steps.step_after(d, step.t), n, length);
    return step;
  }
};

// The results of a step for one row and unit: zeros where the row does not have the step.
template <class Acc>
struct ForwardStep {
  Gates<Acc> gates{};
  CellState<Acc> cell{};  // h before any projection
};

// c of one row and unit.
template <class IO, class Acc>
class ForwardState {
 public:
  using Call = ClusterForwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, const RowSteps& row, int d, int64_t n, int64_t unit) {
    if (!row.there()) return;
    const int64_t state = (d * call.sizes.N + n) * call.sizes.H + unit;
    c_ = call.c0.load_or_zero(state);
    if (row.length > 0 && call.steps.cut_entering(d, call.steps.first_step(d, row.length), n, row.length)) c_ = 0;
  }

  // Loads early what step k adds to the product.
  __device__ __forceinline__ void fetch(const Call& call, const RowSteps& row, int d, int64_t k, int64_t n,
                                        int64_t unit) {
    const int64_t t = call.steps.step_at(d, k), H = call.sizes.H;
    const int64_t later = call.steps.step_at(d, k + kStepsAhead);
    if (row.has(later)) {
      const int64_t first = later * call.gates_stride_t + n * call.gates_stride_n + d * call.gates_stride_d + unit;
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) ptx::prefetch_l2(call.gates_x.at(first + gate * H));
    }
    if (t >= row.length) return;
    const int64_t first = t * call.gates_stride_t + n * call.gates_stride_n + d * call.gates_stride_d + unit;
    x_ = {call.gates_x.load(first), call.gates_x.load(first + H), call.gates_x.load(first + 2 * H),
          call.gates_x.load(first + 3 * H)};
  }

  // A step of an existing row, from the product's sums. Stores nothing: other blocks wait for h, and none for the tape.
  __device__ __forceinline__ ForwardStep<Acc> step(const RowStep& at, const Gates<Acc>& sums) {
    ForwardStep<Acc> step;
    if (!at.there) return step;
    step.gates = {sums.i + x_.i, sums.f + x_.f, sums.g + x_.g, sums.o + x_.o};
    step.cell = lstm_cell_forward<CellMath>(step.gates, c_);
    c_ = at.cut ? Acc{0} : step.cell.c;
    return step;
  }

  // Stores the tape of step t of an existing row.
  __device__ __forceinline__ void keep(const Call& call, int d, int64_t t, int64_t n, int64_t unit,
                                       const ForwardStep<Acc>& step) const {
    const Sizes& s = call.sizes;
    const int64_t place = ((t * s.N + n) * s.D + d) * s.H + unit;
    if (call.cells != nullptr) call.cells[place] = step.cell.c;
    if (call.gates != nullptr) {
      IO* kept = call.gates + (place - unit) * 4 + unit;
      Rounding<Acc>::store(kept[0], step.gates.i);
      Rounding<Acc>::store(kept[s.H], step.gates.f);
      Rounding<Acc>::store(kept[2 * s.H], step.gates.g);
      Rounding<Acc>::store(kept[3 * s.H], step.gates.o);
    }
  }

  // After all steps of an existing row: c is that of its last step, or c0 if it has none.
  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit) const {
    call.c_n.store((d * call.sizes.N + n) * call.sizes.H + unit, c_);
  }

 private:
  Acc c_ = 0;
  Gates<Acc> x_{};
};

// h of one row and output, of `width`: H units, or P with a projection.
template <class IO, class Acc>
class ForwardOutput {
 public:
  using Call = ClusterForwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, const RowSteps& row, int d, int64_t n, int64_t unit,
                                        int64_t width) {
    if (!row.there()) return;
    h_ = first(call, d, n, unit, width);
  }

  // h of a row and output as it enters its first step; zero where there is none.
  static __device__ __forceinline__ IO entering_first(const Call& call, int d, int64_t n, int64_t unit, int64_t width) {
    if (n >= call.sizes.N || unit >= width) return IO{};
    const int64_t length = clamped_length(call.lengths, n, call.sizes.T);
    const bool cut = length > 0 && call.steps.cut_entering(d, call.steps.first_step(d, length), n, length);
    return cut ? IO{} : first(call, d, n, unit, width);
  }

  // A step of an existing row: sets `output`, returns h as it enters the next step.
  __device__ __forceinline__ IO step(const RowStep& at, Acc h, IO& output) {
    output = IO{};
    if (at.there) {
      Rounding<Acc>::store(output, h);
      h_ = at.cut ? IO{} : output;
    }
    return h_;
  }

  // Stores the output of step t of an existing row.
  __device__ __forceinline__ void keep(const Call& call, int d, int64_t t, int64_t n, int64_t unit, int64_t width,
                                       IO output) const {
    const Sizes& s = call.sizes;
    call.output[((t * s.N + n) * s.D + d) * width + unit] = output;
  }

  // As ForwardState::finish.
  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit, int64_t width) const {
    call.h_n[(d * call.sizes.N + n) * width + unit] = h_;
  }

 private:
  static __device__ __forceinline__ IO first(const Call& call, int d, int64_t n, int64_t unit, int64_t width) {
    return call.h0 == nullptr ? IO{} : call.h0[(d * call.sizes.N + n) * width + unit];
  }

  IO h_{};
};

// One row and unit, which a thread takes through all steps.
template <class IO, class Acc>
class ForwardCell {
 public:
  using Call = ClusterForwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, int d, int64_t n, int64_t unit) {
    row_.start(call, n < call.sizes.N && unit < call.sizes.H, n);
    output_.start(call, row_, d, n, unit, call.sizes.H);
    state_.start(call, row_, d, n, unit);
  }

  __device__ __forceinline__ void fetch(const Call& call, int d, int64_t k, int64_t n, int64_t unit) {
    state_.fetch(call, row_, d, k, n, unit);
  }

  // What `keep` stores.
  struct Step {
    ForwardStep<Acc> state;
    IO output;
  };

  // Step k from the product's sums; returns h as it enters step k + 1.
  __device__ __forceinline__ IO step(const Call& call, int d, int64_t k, int64_t n, const Gates<Acc>& sums,
                                     Step& step) {
    if (!row_.there()) return IO{};
    const RowStep at = row_.at(call, d, k, n);
    step.state = state_.step(at, sums);
    return output_.step(at, step.state.cell.h, step.output);
  }

  __device__ __forceinline__ void keep(const Call& call, int d, int64_t k, int64_t n, int64_t unit,
                                       const Step& step) const {
    if (!row_.there()) return;
    const int64_t t = call.steps.step_at(d, k);
    state_.keep(call, d, t, n, unit, step.state);
    output_.keep(call, d, t, n, unit, call.sizes.H, step.output);
  }

  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit) const {
    if (!row_.there()) return;
    output_.finish(call, d, n, unit, call.sizes.H);
    state_.finish(call, d, n, unit);
  }

 private:
  RowSteps row_;
  ForwardState<IO, Acc> state_;
  ForwardOutput<IO, Acc> output_;
};

}  // namespace fastlstm::cuda

// The backward kernels: what follows a step's product.
//
// The gates' gradient of one step times W_hh is the gradient of h for the step before; a launch makes this product and,
// from its sums, the gates' gradients of that step. With a projection there are two launches: times W_hh, then times
// W_hr.
#pragma once

#include "cuda/device/arrays.h"
#include "cuda/product/product.h"

namespace fastlstm::cuda {

// What the kernels of one call share. "Passed" are the gates' gradients as a factor of the product for the step before:
// zero before a row's last step and where a reset cuts them, unchanged by steps that a row does not have.
template <class IO, class Acc>
struct BackwardCall : BackwardArrays<IO, Acc> {
  Steps steps;
  IO* passed[2];         // [D, N, passed_width] each; launch j reads passed[j % 2] and writes the other
  int64_t passed_width;  // 4H, padded
  IO* projected;         // dhidden of the step as a factor, [D, N, projected_width]
  int64_t projected_width;
  Acc* dc;  // [D, N, H], for the step before
};

template <class IO, class Acc>
__global__ void lstm_backward_kernel_start(const __grid_constant__ BackwardCall<IO, Acc> call, int64_t width) {
  const Sizes& s = call.sizes;
  const int64_t total = s.D * s.N * width;
  for (int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; index < total;
       index += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = index / width, column = index % width;
    if (column < call.passed_width) {
      call.passed[0][row * call.passed_width + column] = IO{};
      call.passed[1][row * call.passed_width + column] = IO{};
    }
    if (call.projected != nullptr && column < call.projected_width) {
      call.projected[row * call.projected_width + column] = IO{};
    }
    if (column < s.H) {
      call.dc[row * s.H + column] = call.dc_n.load_or_zero(row * s.H + column);
    }
  }
}

// The whole gradient of h of a step: through the later step (`sum`), of the output, and at a row's last step of h_n.
template <class IO, class Acc>
__device__ __forceinline__ Acc arriving(const BackwardCall<IO, Acc>& call, const Place& at, int64_t length, Acc sum) {
  const int64_t P = call.sizes.P;
  if (call.dh_n.data != nullptr && at.t == call.steps.last_step(at.d, length)) {
    sum += call.dh_n.load((at.d * call.sizes.N + at.n) * P + at.unit);
  }
  if (call.doutput != nullptr) {
    sum += Rounding<Acc>::load(
        call.doutput[at.t * call.doutput_stride_t + at.n * call.doutput_stride_n + at.d * P + at.unit]);
  }
  return sum;
}

// The cell's gradients of one row and unit; dh is the whole gradient of its (unprojected) h.
template <class IO, class Acc>
__device__ __forceinline__ void backward_cell(const BackwardCall<IO, Acc>& call, const Place& at, Acc sum) {
  const Sizes& s = call.sizes;
  const int64_t H = s.H, state = at.d * s.N + at.n, step = (at.t * s.N + at.n) * s.D + at.d, length = call.length(at.n);
  const int64_t from = step * 4 * H + at.unit;
  const IO* passed_in = call.passed[at.k % 2] + state * call.passed_width + at.unit;
  IO* passed_out = call.passed[(at.k + 1) % 2] + state * call.passed_width + at.unit;
  Acc& carried = call.dc[state * H + at.unit];
  Acc dc_in = carried;
  if (at.t < length) {
    const Acc dh = call.dhidden == nullptr ? arriving(call, at, length, sum) : sum;
    Acc dc = carried;
    if (call.dcells != nullptr) dc += call.dcells[step * H + at.unit];
    const bool cut = call.steps.cut_entering(at.d, at.t, at.n, length);
    Acc c_in = 0;
    if (!cut) {
      const int64_t before = ((call.steps.step_before(at.d, at.t) * s.N + at.n) * s.D + at.d) * H + at.unit;
      c_in =
          at.t == call.steps.first_step(at.d, length) ? call.c0.load_or_zero(state * H + at.unit) : call.cells[before];
    }
    const Gates<Acc> gates{Rounding<Acc>::load(call.gates[from]), Rounding<Acc>::load(call.gates[from + H]),
                           Rounding<Acc>::load(call.gates[from + 2 * H]),
                           Rounding<Acc>::load(call.gates[from + 3 * H])};
    const Acc tanh_c = CellMath::tanh(call.cells[step * H + at.unit]);
    const CellGradient<Acc> gradient = lstm_cell_backward(gates, tanh_c, c_in, dh, dc);
    const Acc of_gates[4] = {gradient.gates.i, gradient.gates.f, gradient.gates.g, gradient.gates.o};
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      call.dgates_x.store(from + gate * H, of_gates[gate]);
      IO rounded;
      Rounding<Acc>::store(rounded, of_gates[gate]);
      passed_out[gate * H] = cut ? IO{} : rounded;
    }
    dc_in = cut ? Acc{0} : gradient.c_in;
    carried = dc_in;
  } else {
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      call.dgates_x.store(from + gate * H, Acc{0});
      passed_out[gate * H] = passed_in[gate * H];
    }
  }
  if (at.k == s.T - 1 && call.dc0.data != nullptr) call.dc0.store(state * H + at.unit, dc_in);
}

// Stores dhidden of one row and output: to its array, and as a factor of the product with W_hr.
template <class IO, class Acc>
__device__ __forceinline__ void hidden_gradient(const BackwardCall<IO, Acc>& call, const Place& at, Acc sum) {
  const Sizes& s = call.sizes;
  const int64_t length = call.length(at.n);
  const Acc dh = at.t < length ? arriving(call, at, length, sum) : Acc{0};
  call.dhidden[((at.t * s.N + at.n) * s.D + at.d) * s.P + at.unit] = dh;
  Rounding<Acc>::store(call.projected[(at.d * s.N + at.n) * call.projected_width + at.unit], dh);
}

template <class IO, class Acc>
__device__ __forceinline__ void initial_gradient(const BackwardCall<IO, Acc>& call, const Place& at, Acc sum) {
  const int64_t place = (at.d * call.sizes.N + at.n) * call.sizes.P + at.unit;
  // A row without steps has not had its dh_n added anywhere.
  if (call.dh_n.data != nullptr && call.length(at.n) == 0) sum += call.dh_n.load(place);
  call.dh0.store(place, sum);
}

// What the sums of a launch are used for.
enum class Use { kCell, kHidden, kInitial };

// Launch j, for the j-th step backwards; j = T for the initial states. Blocks: row tiles, column tiles, directions.
template <class Policy, class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    lstm_backward_kernel_step(const __grid_constant__ BackwardCall<typename Policy::IO, typename Policy::Acc> call,
                              const __grid_constant__ Factors factors, int64_t j, Use use) {
  FASTLSTM_SHARED(shared);
  Product<Policy, Tile, 1>(shared).run(factors, [&](int d, int64_t n, int64_t unit, const auto& sums) {
    const Place at{d, j, call.steps.step_at(d, call.sizes.T - 1 - j), n, unit};
    if (use == Use::kCell) {
      backward_cell(call, at, sums[0]);
    } else if (use == Use::kHidden) {
      hidden_gradient(call, at, sums[0]);
    } else {
      initial_gradient(call, at, sums[0]);
    }
  });
}

}  // namespace fastlstm::cuda

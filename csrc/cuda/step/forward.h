// The forward kernels: what follows a step's product, and how the states of step 0 are made.
#pragma once

#include "cuda/device/arrays.h"
#include "cuda/product/product.h"

namespace fastlstm::cuda {

// What the kernels of one call share. "Entering" is the state with which a row enters its next step: h as a factor of
// the product (padded with zeros to a multiple of 16 bytes), c in the wide type; both zero where a reset cuts them,
// unchanged by steps that a row does not have.
template <class IO, class Acc>
struct ForwardCall : ForwardArrays<IO, Acc> {
  Steps steps;
  IO* entering_h[2];  // [D, N, entering_width] each; step k reads entering_h[k % 2] and writes the other
  int64_t entering_width;
  Acc* entering_c;  // [D, N, H]
  IO* unprojected;  // [D, N, unprojected_width], with a projection, else null
  int64_t unprojected_width;
};

template <class IO, class Acc>
__global__ void lstm_forward_kernel_start(const __grid_constant__ ForwardCall<IO, Acc> call, int64_t width) {
  const Sizes& s = call.sizes;
  const int64_t total = s.D * s.N * width;
  for (int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; index < total;
       index += int64_t{gridDim.x} * blockDim.x) {
    const int64_t row = index / width, column = index % width, n = row % s.N;
    const int d = static_cast<int>(row / s.N);
    const int64_t length = call.length(n);
    const bool cut = length > 0 && call.steps.cut_entering(d, call.steps.first_step(d, length), n, length);
    if (column < s.P) {
      const IO h = call.h0 == nullptr ? IO{} : call.h0[row * s.P + column];
      call.entering_h[0][row * call.entering_width + column] = cut ? IO{} : h;
      if (length == 0) call.h_n[row * s.P + column] = h;
    } else if (column < call.entering_width) {
      call.entering_h[0][row * call.entering_width + column] = IO{};
      call.entering_h[1][row * call.entering_width + column] = IO{};
    }
    if (column < s.H) {
      const Acc c = call.c0.load_or_zero(row * s.H + column);
      call.entering_c[row * s.H + column] = cut ? Acc{0} : c;
      if (length == 0) call.c_n.store(row * s.H + column, c);
    } else if (call.unprojected != nullptr && column < call.unprojected_width) {
      call.unprojected[row * call.unprojected_width + column] = IO{};
    }
  }
}

// Stores h of a step: to the output, for the next step, and at a row's last step to h_n.
template <class IO, class Acc>
__device__ __forceinline__ void pass_on(const ForwardCall<IO, Acc>& call, const Place& at, int64_t length, Acc h) {
  const Sizes& s = call.sizes;
  const int64_t state = at.d * s.N + at.n;
  const bool last = at.t == call.steps.last_step(at.d, length);
  const bool cut = !last && call.steps.cut_entering(at.d, call.steps.step_after(at.d, at.t), at.n, length);
  IO rounded;
  Rounding<Acc>::store(rounded, h);
  call.output[((at.t * s.N + at.n) * s.D + at.d) * s.P + at.unit] = rounded;
  call.entering_h[(at.k + 1) % 2][state * call.entering_width + at.unit] = cut ? IO{} : rounded;
  if (last) call.h_n[state * s.P + at.unit] = rounded;
}

// A step that this row does not have: zero output; the state stays.
template <class IO, class Acc>
__device__ __forceinline__ void leave_out(const ForwardCall<IO, Acc>& call, const Place& at) {
  const Sizes& s = call.sizes;
  const int64_t place = (at.d * s.N + at.n) * call.entering_width + at.unit;
  call.output[((at.t * s.N + at.n) * s.D + at.d) * s.P + at.unit] = IO{};
  call.entering_h[(at.k + 1) % 2][place] = call.entering_h[at.k % 2][place];
}

// The cell of one row and unit, from the sums of h W_hh^T for its four gates.
template <class IO, class Acc>
__device__ __forceinline__ void forward_cell(const ForwardCall<IO, Acc>& call, const Place& at, Gates<Acc> gates) {
  const Sizes& s = call.sizes;
  const int64_t H = s.H, state = at.d * s.N + at.n, step = (at.t * s.N + at.n) * s.D + at.d, length = call.length(at.n);
  const bool projected = call.unprojected != nullptr, there = at.t < length;
  Acc c = 0, h = 0;
  if (there) {
    const int64_t first =
        at.t * call.gates_stride_t + at.n * call.gates_stride_n + at.d * call.gates_stride_d + at.unit;
    gates.i += call.gates_x.load(first);
    gates.f += call.gates_x.load(first + H);
    gates.g += call.gates_x.load(first + 2 * H);
    gates.o += call.gates_x.load(first + 3 * H);
    const CellState<Acc> out = lstm_cell_forward<CellMath>(gates, call.entering_c[state * H + at.unit]);
    c = out.c;
    h = out.h;
    const bool last = at.t == call.steps.last_step(at.d, length);
    const bool cut = !last && call.steps.cut_entering(at.d, call.steps.step_after(at.d, at.t), at.n, length);
    call.entering_c[state * H + at.unit] = cut ? Acc{0} : c;
    if (last) call.c_n.store(state * H + at.unit, c);
  } else {
    gates = {};
  }
  if (call.cells != nullptr) call.cells[step * H + at.unit] = c;
  if (call.gates != nullptr) {
    IO* kept = call.gates + step * 4 * H + at.unit;
    Rounding<Acc>::store(kept[0], gates.i);
    Rounding<Acc>::store(kept[H], gates.f);
    Rounding<Acc>::store(kept[2 * H], gates.g);
    Rounding<Acc>::store(kept[3 * H], gates.o);
  }
  if (projected) {
    Rounding<Acc>::store(call.unprojected[state * call.unprojected_width + at.unit], h);
  } else if (there) {
    pass_on(call, at, length, h);
  } else {
    leave_out(call, at);
  }
}

// The blocks on a multiprocessor for which the compiler limits registers; 0: no limit. For small blocks, as many as
// shared memory has room for.
template <class Policy, class Tile>
constexpr int kBlocks = Policy::kProductsASlab > 1 && Tile::kThreads == 128 && Tile::kRows == 16 ? 8 : 0;

// Step k: h W_hh^T and the cell. Blocks: row tiles, unit tiles, directions.
template <class Policy, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, kBlocks<Policy, Tile>)
    lstm_forward_kernel_step(const __grid_constant__ ForwardCall<typename Policy::IO, typename Policy::Acc> call,
                             const __grid_constant__ Factors factors, int64_t k) {
  FASTLSTM_SHARED(shared);
  Product<Policy, Tile, 4>(shared).run(factors, [&](int d, int64_t n, int64_t unit, const auto& sums) {
    forward_cell(call, {d, k, call.steps.step_at(d, k), n, unit}, {sums[0], sums[1], sums[2], sums[3]});
  });
}

// The projection of step k, W_hr (o tanh(c)).
template <class Policy, class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    lstm_forward_kernel_project(const __grid_constant__ ForwardCall<typename Policy::IO, typename Policy::Acc> call,
                                const __grid_constant__ Factors factors, int64_t k) {
  FASTLSTM_SHARED(shared);
  Product<Policy, Tile, 1>(shared).run(factors, [&](int d, int64_t n, int64_t unit, const auto& sums) {
    const Place at{d, k, call.steps.step_at(d, k), n, unit};
    const int64_t length = call.length(n);
    if (at.t < length) {
      pass_on(call, at, length, sums[0]);
    } else {
      leave_out(call, at);
    }
  });
}

}  // namespace fastlstm::cuda

// The variants' forward kernels: after a step's product, a block for each row takes it through the cell. The states
// with which rows enter steps are updated in place; a row that does not have a step is left alone.
#pragma once

#include "cuda/variant/rows.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct VariantForwardCall : ForwardArrays<IO, Acc>, VariantArrays<IO, Acc> {
  IO* h;       // [D, N, P], entering the next step; zero where a reset cuts it
  IO* factor;  // [D, N, factor_width], the same masked and padded with zeros
  int64_t factor_width;
  Acc* c;           // [D, N, H], entering
  Acc* products;    // [D, N, 4H]
  IO* unprojected;  // [D, N, unprojected_width], with a projection, else null
  int64_t unprojected_width;
  Acc* projected;   // [D, N, P], with a projection
  Acc* candidates;  // [D, N, H], with layer normalisation

  __device__ __forceinline__ Place place(int64_t k) const {
    const int d = static_cast<int>(blockIdx.y);
    return {d, k, this->steps.step_at(d, k), static_cast<int64_t>(blockIdx.x), 0};
  }
};

// Stores h for the next step: as it is, and as the factor of the product.
template <class IO, class Acc>
__device__ __forceinline__ void enter_h(const VariantForwardCall<IO, Acc>& call, int64_t state, int64_t unit, IO h) {
  const int64_t place = state * call.sizes.P + unit;
  call.h[place] = h;
  if (call.h_mask != nullptr) Rounding<Acc>::store(h, Rounding<Acc>::load(h) * call.h_mask[place]);
  call.factor[state * call.factor_width + unit] = h;
}

// Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_start(const __grid_constant__ VariantForwardCall<IO, Acc> call) {
  const Sizes& s = call.sizes;
  const Place at = call.place(0);
  const int64_t state = at.d * s.N + at.n, length = call.length(at.n);
  const bool cut = length > 0 && call.steps.cut_entering(at.d, call.steps.first_step(at.d, length), at.n, length);
  for (int64_t j = threadIdx.x; j < call.factor_width; j += blockDim.x) {
    if (j < s.P) {
      const IO h = call.h0[state * s.P + j];
      enter_h(call, state, j, cut ? IO{} : h);
      if (length == 0) call.h_n[state * s.P + j] = h;
    } else {
      call.factor[state * call.factor_width + j] = IO{};
    }
  }
  for (int64_t j = threadIdx.x; j < s.H; j += blockDim.x) {
    const Acc c = call.c0.load(state * s.H + j);
    call.c[state * s.H + j] = cut ? Acc{0} : c;
    if (length == 0) call.c_n.store(state * s.H + j, c);
  }
  if (call.unprojected == nullptr) return;
  for (int64_t j = threadIdx.x; j < call.unprojected_width; j += blockDim.x) {
    call.unprojected[state * call.unprojected_width + j] = IO{};
  }
}

// Makes h_t of a row that has the step from y~, and stores it: to the output, for the next step, and at the row's last
// step to h_n.
template <class IO, class Acc>
__device__ __forceinline__ void emit(const VariantForwardCall<IO, Acc>& call, const Place& at, int64_t length, Acc y) {
  const Sizes& s = call.sizes;
  const int64_t state = at.d * s.N + at.n;
  const bool last = at.t == call.steps.last_step(at.d, length);
  const bool cut = !last && call.steps.cut_entering(at.d, call.steps.step_after(at.d, at.t), at.n, length);
  IO h;
  Rounding<Acc>::store(h, call.zone_h.mix(at, Rounding<Acc>::load(call.h[state * s.P + at.unit]), y));
  call.output[((at.t * s.N + at.n) * s.D + at.d) * s.P + at.unit] = h;
  if (last) call.h_n[state * s.P + at.unit] = h;
  enter_h(call, state, at.unit, cut ? IO{} : h);
}

template <class IO, class Acc>
__device__ __forceinline__ void leave_out(const VariantForwardCall<IO, Acc>& call, const Place& at) {
  const Sizes& s = call.sizes;
  const int64_t step = (at.t * s.N + at.n) * s.D + at.d;
  for (int64_t j = threadIdx.x; j < s.P; j += blockDim.x) call.output[step * s.P + j] = IO{};
  for (int64_t j = threadIdx.x; j < s.H; j += blockDim.x) {
    if (call.cells != nullptr) call.cells[step * s.H + j] = Acc{0};
    if (call.gates == nullptr) continue;
    for (int gate = 0; gate < 4; ++gate) call.gates[(step * 4 + gate) * s.H + j] = IO{};
  }
}

// Gates, c and h~ of step k; h~ goes on to h, or to the projection. Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_cell(const __grid_constant__ VariantForwardCall<IO, Acc> call, int64_t k) {
  FASTLSTM_SHARED(shared);
  const Sizes& s = call.sizes;
  Place at = call.place(k);
  const int64_t H = s.H, state = at.d * s.N + at.n, step = (at.t * s.N + at.n) * s.D + at.d, length = call.length(at.n);
  if (at.t >= length) {
    leave_out(call, at);
    return;
  }
  const bool normed = call.norm_hh != nullptr;
  const bool last = at.t == call.steps.last_step(at.d, length);
  const bool cut = !last && call.steps.cut_entering(at.d, call.steps.step_after(at.d, at.t), at.n, length);
  Acc* products = call.products + state * 4 * H;
  const Moments<Acc> of_products = normed ? moments(products, 4 * H, shared) : Moments<Acc>{};
  const int64_t first = at.t * call.gates_stride_t + at.n * call.gates_stride_n + at.d * call.gates_stride_d;
  const auto show = [&](int64_t unit, Acc h) {
    if (call.unprojected == nullptr) {
      emit(call, {at.d, at.k, at.t, at.n, unit}, length, h);
    } else {
      Rounding<Acc>::store(call.unprojected[state * call.unprojected_width + unit], h);
    }
  };
  for (at.unit = threadIdx.x; at.unit < H; at.unit += blockDim.x) {
    Acc sums[4];
#pragma unroll
    for (int gate = 0; gate < 4; ++gate) {
      const int64_t place = gate * H + at.unit;
      Acc product = products[place];
      if (normed)
        product = Rounding<Acc>::load(call.norm_hh[at.d * 4 * H + place]) *
                  ((product - of_products.mean) * of_products.scale);
      sums[gate] = call.gates_x.load(first + place) + product;
    }
    Gates<Acc> gates{sums[0], sums[1], sums[2], sums[3]};
    Acc& entering = call.c[state * H + at.unit];
    const Acc c_in = entering;
    const CellState<Acc> candidate = lstm_cell_forward<CellMath>(gates, c_in);
    const Acc c = call.zone_c.mix(at, c_in, candidate.c);
    if (call.cells != nullptr) call.cells[step * H + at.unit] = c;
    if (call.gates != nullptr) {
      IO* kept = call.gates + step * 4 * H + at.unit;
      Rounding<Acc>::store(kept[0], gates.i);
      Rounding<Acc>::store(kept[H], gates.f);
      Rounding<Acc>::store(kept[2 * H], gates.g);
      Rounding<Acc>::store(kept[3 * H], gates.o);
    }
    if (last) call.c_n.store(state * H + at.unit, c);
    entering = cut ? Acc{0} : c;
    if (normed) {
      call.candidates[state * H + at.unit] = candidate.c;
      // Only this thread reads this place, of gate o, again.
      products[3 * H + at.unit] = gates.o;
    } else {
      show(at.unit, candidate.h);
    }
  }
  if (!normed) return;
  const Acc* candidates = call.candidates + state * H;
  const Moments<Acc> of_cell = moments(candidates, H, shared);
  for (int64_t j = threadIdx.x; j < H; j += blockDim.x) {
    Acc shown = Rounding<Acc>::load(call.norm_c[at.d * H + j]) * ((candidates[j] - of_cell.mean) * of_cell.scale);
    if (call.bias_c != nullptr) shown += Rounding<Acc>::load(call.bias_c[at.d * H + j]);
    show(j, products[3 * H + j] * CellMath::tanh(shown));
  }
}

// h of step k from its projection. Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_emit(const __grid_constant__ VariantForwardCall<IO, Acc> call, int64_t k) {
  Place at = call.place(k);
  const int64_t P = call.sizes.P, length = call.length(at.n);
  if (at.t >= length) return;  // its output is already 0
  const Acc* y = call.projected + (at.d * call.sizes.N + at.n) * P;
  for (at.unit = threadIdx.x; at.unit < P; at.unit += blockDim.x) emit(call, at, length, y[at.unit]);
}

}  // namespace fastlstm::cuda

// The variants' backward kernels: a block for each row, as forward.
#pragma once

#include "cuda/variant/rows.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct VariantBackwardCall : BackwardArrays<IO, Acc>, VariantArrays<IO, Acc> {
  const Acc *candidates, *product_hat, *product_scale, *cell_hat, *cell_scale;
  EitherArray<IO, Acc> dproducts;
  Acc* dshown;
  IO* factor;  // [D, N, factor_width], dproducts of the later step, zero where a reset cuts them; padded
  int64_t factor_width;
  Acc* sums;      // [D, N, P], their product with W_hh
  Acc* kept;      // [D, N, P], what zoneout passes to the previous h
  IO* projected;  // [D, N, projected_width], dhidden of the step as a factor
  int64_t projected_width;
  Acc* unprojected;  // [D, N, H], gradient of h~, then of LN(c~) or c~ in its tanh
  Acc* dc;           // [D, N, H]
  Acc* work;         // [D, N, 4H], with layer normalisation

  __device__ __forceinline__ Place place(int64_t j) const {
    const int d = static_cast<int>(blockIdx.y);
    return {d, j, this->steps.step_at(d, this->sizes.T - 1 - j), static_cast<int64_t>(blockIdx.x), 0};
  }
};

// Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_start_backward(const __grid_constant__ VariantBackwardCall<IO, Acc> call) {
  const Sizes& s = call.sizes;
  const int64_t state = blockIdx.y * s.N + blockIdx.x;
  for (int64_t j = threadIdx.x; j < call.factor_width; j += blockDim.x)
    call.factor[state * call.factor_width + j] = IO{};
  for (int64_t j = threadIdx.x; j < s.P; j += blockDim.x) call.kept[state * s.P + j] = Acc{0};
  for (int64_t j = threadIdx.x; j < s.H; j += blockDim.x) {
    call.dc[state * s.H + j] = call.dc_n.data == nullptr ? Acc{0} : call.dc_n.load(state * s.H + j);
  }
  if (call.projected == nullptr) return;
  for (int64_t j = threadIdx.x; j < call.projected_width; j += blockDim.x)
    call.projected[state * call.projected_width + j] = IO{};
}

// The gradient of h, or of h0, through the later step.
template <class IO, class Acc>
__device__ __forceinline__ Acc from_later(const VariantBackwardCall<IO, Acc>& call, int64_t place) {
  const Acc sum = call.sums[place];
  return (call.h_mask == nullptr ? sum : sum * call.h_mask[place]) + call.kept[place];
}

// The gradient of h_t of a row, split by zoneout: returns y~_t's part, and keeps h_{t-1}'s.
template <class IO, class Acc>
__device__ __forceinline__ Acc arrive(const VariantBackwardCall<IO, Acc>& call, const Place& at, int64_t length,
                                      bool cut) {
  const Sizes& s = call.sizes;
  const int64_t place = (at.d * s.N + at.n) * s.P + at.unit;
  Acc dh = from_later(call, place);
  if (call.dh_n.data != nullptr && at.t == call.steps.last_step(at.d, length)) dh += call.dh_n.load(place);
  if (call.doutput != nullptr) {
    dh += Rounding<Acc>::load(
        call.doutput[at.t * call.doutput_stride_t + at.n * call.doutput_stride_n + at.d * s.P + at.unit]);
  }
  call.kept[place] = cut ? Acc{0} : call.zone_h.mix(at, dh, Acc{0});
  return call.zone_h.mix(at, Acc{0}, dh);
}

// With a projection: the gradient of y~ of launch j's step, to dhidden and as a factor. Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_arrive(const __grid_constant__ VariantBackwardCall<IO, Acc> call, int64_t j) {
  const Sizes& s = call.sizes;
  Place at = call.place(j);
  const int64_t length = call.length(at.n), state = at.d * s.N + at.n, step = (at.t * s.N + at.n) * s.D + at.d;
  const bool there = at.t < length, cut = there && call.steps.cut_entering(at.d, at.t, at.n, length);
  for (at.unit = threadIdx.x; at.unit < s.P; at.unit += blockDim.x) {
    const Acc dy = there ? arrive(call, at, length, cut) : Acc{0};
    call.dhidden[step * s.P + at.unit] = dy;
    Rounding<Acc>::store(call.projected[state * call.projected_width + at.unit], dy);
  }
}

template <class IO, class Acc>
__device__ __forceinline__ void leave_out(const VariantBackwardCall<IO, Acc>& call, int64_t step) {
  const int64_t H = call.sizes.H;
  for (int64_t j = threadIdx.x; j < 4 * H; j += blockDim.x) {
    call.dgates_x.store(step * 4 * H + j, Acc{0});
    if (call.norm_hh != nullptr) call.dproducts.store(step * 4 * H + j, Acc{0});
  }
  if (call.norm_hh == nullptr) return;
  for (int64_t j = threadIdx.x; j < H; j += blockDim.x) call.dshown[step * H + j] = Acc{0};
}

// The cell state that entered a step.
template <class IO, class Acc>
__device__ __forceinline__ Acc cell_entering(const VariantBackwardCall<IO, Acc>& call, const Place& at, int64_t length,
                                             bool cut) {
  const Sizes& s = call.sizes;
  if (cut) return 0;
  if (at.t == call.steps.first_step(at.d, length)) return call.c0.load((at.d * s.N + at.n) * s.H + at.unit);
  return call.cells[((call.steps.step_before(at.d, at.t) * s.N + at.n) * s.D + at.d) * s.H + at.unit];
}

// The gradient of W_hh h, through layer normalisation, from the gates' gradients in `work`, each thread's own.
template <class IO, class Acc>
__device__ __forceinline__ void through_norm(const VariantBackwardCall<IO, Acc>& call, const Place& at, bool cut,
                                             unsigned char* shared) {
  const int64_t H = call.sizes.H, state = at.d * call.sizes.N + at.n,
                step = (at.t * call.sizes.N + at.n) * call.sizes.D + at.d;
  Acc* work = call.work + state * 4 * H;
  const Acc* hat = call.product_hat + step * 4 * H;
  Acc sum = 0, sum_hat = 0;
  for (int64_t unit = threadIdx.x; unit < H; unit += blockDim.x) {
    for (int64_t k = unit; k < 4 * H; k += H) {
      const Acc dhat = Rounding<Acc>::load(call.norm_hh[at.d * 4 * H + k]) * work[k];
      work[k] = dhat;
      sum += dhat;
      sum_hat += dhat * hat[k];
    }
  }
  const Sums<Acc> sums = block_sums(sum, sum_hat, shared);
  const Acc mean = sums.first / static_cast<Acc>(4 * H), mean_hat = sums.second / static_cast<Acc>(4 * H);
  for (int64_t unit = threadIdx.x; unit < H; unit += blockDim.x) {
    for (int64_t k = unit; k < 4 * H; k += H) {
      const Acc dproduct = call.product_scale[step] * (work[k] - mean - hat[k] * mean_hat);
      call.dproducts.store(step * 4 * H + k, dproduct);
      IO rounded;
      Rounding<Acc>::store(rounded, dproduct);
      call.factor[state * call.factor_width + k] = cut ? IO{} : rounded;
    }
  }
}

// The gradients of the gates, the cell and the product of launch j's step. Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_cell_backward(const __grid_constant__ VariantBackwardCall<IO, Acc> call, int64_t j) {
  FASTLSTM_SHARED(shared);
  const Sizes& s = call.sizes;
  Place at = call.place(j);
  const int64_t H = s.H, state = at.d * s.N + at.n, step = (at.t * s.N + at.n) * s.D + at.d, length = call.length(at.n);
  if (at.t >= length) {
    leave_out(call, step);
    return;
  }
  const bool normed = call.norm_hh != nullptr, cut = call.steps.cut_entering(at.d, at.t, at.n, length);
  Acc *arrived = call.unprojected + state * H, *work = call.work + state * 4 * H;
  const IO* tape = call.gates + step * 4 * H;
  Acc sum = 0, sum_hat = 0;
  for (at.unit = threadIdx.x; at.unit < H; at.unit += blockDim.x) {
    const Acc dh = call.projected == nullptr ? arrive(call, at, length, cut) : arrived[at.unit];
    const int64_t unit = at.unit;
    Acc shown, gain = 1, hat = 0;
    if (normed) {
      gain = Rounding<Acc>::load(call.norm_c[at.d * H + unit]);
      hat = call.cell_hat[step * H + unit];
      shown = gain * hat;
      if (call.bias_c != nullptr) shown += Rounding<Acc>::load(call.bias_c[at.d * H + unit]);
    } else {
      shown = call.candidates[step * H + unit];
    }
    const Acc o = Rounding<Acc>::load(tape[3 * H + unit]), tanh_c = CellMath::tanh(shown);
    const Acc dshown = dh * o * (1 - tanh_c * tanh_c), d_o = dh * tanh_c * o * (1 - o);
    arrived[unit] = gain * dshown;
    call.dgates_x.store(step * 4 * H + 3 * H + unit, d_o);
    if (normed) {
      call.dshown[step * H + unit] = dshown;
      work[3 * H + unit] = d_o;
      sum += arrived[unit];
      sum_hat += arrived[unit] * hat;
    } else {
      IO rounded;
      Rounding<Acc>::store(rounded, d_o);
      call.factor[state * call.factor_width + 3 * H + unit] = cut ? IO{} : rounded;
    }
  }
  Acc mean = 0, mean_hat = 0;
  if (normed) {
    const Sums<Acc> sums = block_sums(sum, sum_hat, shared);
    mean = sums.first / static_cast<Acc>(H);
    mean_hat = sums.second / static_cast<Acc>(H);
  }
  for (at.unit = threadIdx.x; at.unit < H; at.unit += blockDim.x) {
    const int64_t unit = at.unit;
    Acc dc = call.dc[state * H + unit];
    if (call.dcells != nullptr) dc += call.dcells[step * H + unit];
    const Acc kept = call.zone_c.mix(at, dc, Acc{0});
    Acc dcandidate = call.zone_c.mix(at, Acc{0}, dc);
    if (normed) {
      dcandidate += call.cell_scale[step] * (arrived[unit] - mean - call.cell_hat[step * H + unit] * mean_hat);
    } else {
      dcandidate += arrived[unit];
    }
    const Acc i = Rounding<Acc>::load(tape[unit]), f = Rounding<Acc>::load(tape[H + unit]);
    const Acc g = Rounding<Acc>::load(tape[2 * H + unit]);
    const Acc grads[3] = {dcandidate * g * i * (1 - i), dcandidate * cell_entering(call, at, length, cut) * f * (1 - f),
                          dcandidate * i * (1 - g * g)};
#pragma unroll
    for (int gate = 0; gate < 3; ++gate) {
      call.dgates_x.store(step * 4 * H + gate * H + unit, grads[gate]);
      if (normed) {
        work[gate * H + unit] = grads[gate];
      } else {
        IO rounded;
        Rounding<Acc>::store(rounded, grads[gate]);
        call.factor[state * call.factor_width + gate * H + unit] = cut ? IO{} : rounded;
      }
    }
    call.dc[state * H + unit] = cut ? Acc{0} : dcandidate * f + kept;
  }
  if (normed) through_norm(call, at, cut, shared);
}

// dh0 and dc0. Blocks: rows, directions.
template <class IO, class Acc>
__global__ void __launch_bounds__(kRowThreads)
    lstm_variant_kernel_initial(const __grid_constant__ VariantBackwardCall<IO, Acc> call) {
  const Sizes& s = call.sizes;
  const int64_t state = blockIdx.y * s.N + blockIdx.x;
  // A row without steps has not had its dh_n added anywhere.
  const bool empty = call.length(blockIdx.x) == 0 && call.dh_n.data != nullptr;
  for (int64_t j = threadIdx.x; j < s.P; j += blockDim.x) {
    const int64_t place = state * s.P + j;
    call.dh0.store(place, empty ? call.dh_n.load(place) : from_later(call, place));
  }
  for (int64_t j = threadIdx.x; j < s.H; j += blockDim.x) call.dc0.store(state * s.H + j, call.dc[state * s.H + j]);
}

}  // namespace fastlstm::cuda

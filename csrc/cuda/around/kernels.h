// The kernels of around.h. A block takes a row of an array after the other, in strides of the grid; its threads take the
// row's numbers.
#pragma once

#include "cuda/around/around.h"
#include "cuda/device/place.h"

namespace fastlstm::cuda {

// Blocks: biases, then parts of their width.
template <class IO, class Acc>
__global__ void lstm_kernel_add_biases(const __grid_constant__ Biases biases, int64_t width, IO* sums) {
  const int k = static_cast<int>(blockIdx.x);
  const IO *ih = static_cast<const IO*>(biases.ih[k]), *hh = static_cast<const IO*>(biases.hh[k]);
  for (int64_t j = blockIdx.y * int64_t{blockDim.x} + threadIdx.x; j < width; j += gridDim.y * int64_t{blockDim.x}) {
    Rounding<Acc>::store(sums[k * width + j], Rounding<Acc>::load(ih[j]) + Rounding<Acc>::load(hh[j]));
  }
}

template <class IO>
__global__ void lstm_kernel_keep_existing(const IO* x, IO* into, int64_t T, int64_t N, int64_t width,
                                          const int64_t* lengths) {
  for (int64_t row = blockIdx.x; row < T * N; row += gridDim.x) {
    const bool there = row / N < clamped_length(lengths, row % N, T);
    for (int64_t j = threadIdx.x; j < width; j += blockDim.x) into[row * width + j] = there ? x[row * width + j] : IO{};
  }
}

template <class IO>
__global__ void lstm_kernel_entering_states(const IO* output, const IO* h0, IO* into, Sizes s, Steps steps,
                                            const int64_t* lengths) {
  for (int64_t row = blockIdx.x; row < s.D * s.T * s.N; row += gridDim.x) {
    const int64_t n = row % s.N, t = row / s.N % s.T, length = clamped_length(lengths, n, s.T);
    const int d = static_cast<int>(row / s.N / s.T);
    const bool first = t == steps.first_step(d, length);
    const bool zero = t >= length || steps.cut_entering(d, t, n, length) || (first && h0 == nullptr);
    const IO* from = first ? h0 + (d * s.N + n) * s.P : output + ((steps.step_before(d, t) * s.N + n) * s.D + d) * s.P;
    for (int64_t j = threadIdx.x; j < s.P; j += blockDim.x) into[row * s.P + j] = zero ? IO{} : from[j];
  }
}

template <class IO, class Acc>
__global__ void lstm_kernel_unprojected(const Acc* cells, const IO* gates, Acc* into, Sizes s) {
  for (int64_t row = blockIdx.x; row < s.D * s.T * s.N; row += gridDim.x) {
    const int64_t d = row / (s.T * s.N), of_step = row % (s.T * s.N) * s.D + d;
    for (int64_t j = threadIdx.x; j < s.H; j += blockDim.x) {
      const Acc o = Rounding<Acc>::load(gates[(of_step * 4 + 3) * s.H + j]);
      into[row * s.H + j] = o * CellMath::tanh(cells[of_step * s.H + j]);
    }
  }
}

}  // namespace fastlstm::cuda

// The backward recurrence in one launch: as cluster_forward.h, with the weights' columns held, and the gradients of the gates
// exchanged in place of h.
#pragma once

#include "cluster_forward.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct ClusterBackwardCall {
  Sizes sizes;
  Steps steps;
  const IO* doutput;  // or null
  int64_t doutput_stride_t, doutput_stride_n;
  const IO *dh_n, *dc_n;  // each or null
  const Acc* dcells;      // or null
  const IO* c0;
  const IO* weight_hh;
  const Acc* cells;
  const IO* gates;
  const int64_t* lengths;
  EitherArray<IO, Acc> dgates_x;
  IO *dh0, *dc0;
};

// One row and unit, which a thread takes backwards through all steps.
template <class IO, class Acc>
class BackwardCell {
 public:
  using Call = ClusterBackwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, int d, int64_t n, int64_t unit) {
    const Sizes& s = call.sizes;
    there_ = n < s.N && unit < s.H;
    if (!there_) return;
    length_ = clamped_length(call.lengths, n, s.T);
    if (call.dc_n != nullptr) dc_ = Rounding<Acc>::load(call.dc_n[(d * s.N + n) * s.H + unit]);
  }

  // Loads what the j-th step backwards needs beside the product, early.
  __device__ __forceinline__ void fetch(const Call& call, int d, int64_t j, int64_t n, int64_t unit) {
    const Sizes& s = call.sizes;
    const int64_t t = call.steps.step_at(d, s.T - 1 - j);
    if (!there_ || t >= length_) return;
    const int64_t H = s.H, state = (d * s.N + n) * H + unit, place = ((t * s.N + n) * s.D + d) * H + unit;
    const IO* gates = call.gates + (place - unit) * 4 + unit;
    gates_ = {Rounding<Acc>::load(gates[0]), Rounding<Acc>::load(gates[H]), Rounding<Acc>::load(gates[2 * H]),
              Rounding<Acc>::load(gates[3 * H])};
    c_ = call.cells[place];
    cut_ = call.steps.cut_entering(d, t, n, length_);
    c_in_ = 0;
    if (!cut_) {
      const bool first = t == call.steps.first_step(d, length_);
      const int64_t before = ((call.steps.step_before(d, t) * s.N + n) * s.D + d) * H + unit;
      c_in_ = first ? Rounding<Acc>::load(call.c0[state]) : call.cells[before];
    }
    dh_ = 0;
    dc_extra_ = call.dcells == nullptr ? Acc{0} : call.dcells[place];
    if (call.doutput != nullptr) {
      dh_ += Rounding<Acc>::load(call.doutput[t * call.doutput_stride_t + n * call.doutput_stride_n + d * H + unit]);
    }
    if (call.dh_n != nullptr && t == call.steps.last_step(d, length_)) dh_ += Rounding<Acc>::load(call.dh_n[state]);
  }

  // The j-th step backwards from the product's sum, into the gates' gradients as they go to the step before.
  __device__ __forceinline__ void step(const Call& call, int d, int64_t j, int64_t n, int64_t unit, Acc sum) {
    if (!there_) return;
    const Sizes& s = call.sizes;
    const int64_t H = s.H, t = call.steps.step_at(d, s.T - 1 - j), from = ((t * s.N + n) * s.D + d) * 4 * H + unit;
    if (t < length_) {
      const CellGradient<Acc> gradient = lstm_cell_backward(gates_, CellMath::tanh(c_), c_in_, sum + dh_, dc_ + dc_extra_);
      const Acc of_gates[4] = {gradient.gates.i, gradient.gates.f, gradient.gates.g, gradient.gates.o};
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        call.dgates_x.store(from + gate * H, of_gates[gate]);
        Rounding<Acc>::store(passed[gate], of_gates[gate]);
        if (cut_) passed[gate] = IO{};
      }
      dc_ = cut_ ? Acc{0} : gradient.c_in;
    } else {
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) call.dgates_x.store(from + gate * H, Acc{0});
    }
  }

  // After all steps, with the product's sum for the state before the first.
  __device__ __forceinline__ void finish(const Call& call, int d, int64_t n, int64_t unit, Acc sum) const {
    if (!there_) return;
    const int64_t state = (d * call.sizes.N + n) * call.sizes.H + unit;
    if (call.dh_n != nullptr && length_ == 0) sum += Rounding<Acc>::load(call.dh_n[state]);
    Rounding<Acc>::store(call.dh0[state], sum);
    Rounding<Acc>::store(call.dc0[state], dc_);
  }

  IO passed[4] = {};  // kept by steps that the row does not have

 private:
  bool there_ = false, cut_ = false;
  int64_t length_ = 0;
  Acc dc_ = 0, dc_extra_ = 0, dh_ = 0, c_ = 0, c_in_ = 0;
  Gates<Acc> gates_{};
};

// Blocks: clusters one after the other, 1, directions. K runs over the gates of all the cluster's units.
template <class Shape, bool kCluster>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    lstm_backward_kernel_cluster(const __grid_constant__ ClusterBackwardCall<typename Shape::IO, typename Shape::Acc> call) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Memory = ClusterMemory<Shape>;
  using Split = ThreadPlaces<Shape>;
  FASTLSTM_SHARED(shared);
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), blocks = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
  const int unit0 = static_cast<int>(blockIdx.x % blocks) * Shape::kUnits, all_units = blocks * Shape::kUnits;
  const int64_t row0 = blockIdx.x / blocks * int64_t{Shape::kRows};
  unsigned char* states = shared + Memory::kStates;
  Acc* sums = reinterpret_cast<Acc*>(shared + Memory::kSums);
  const auto place = [&](int64_t j, int row, int column) {
    return reinterpret_cast<IO*>(states + j % 2 * Shape::kStateBytes + row * Shape::kStateStride) + column;
  };

  Exchange<kCluster> exchange(reinterpret_cast<uint64_t*>(shared), 4 * all_units * Shape::kRows * sizeof(IO), s.T);
  const IO* weights = call.weight_hh + d * 4 * s.H * s.H;
  const StationaryProduct<Shape> product(shared + Memory::kWeights, [&](int, int unit, int k) {
    const int gate = k / all_units, from = k % all_units;
    return unit0 + unit < s.H && from < s.H && gate < 4 ? weights[(gate * s.H + from) * s.H + unit0 + unit] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::kK; index += Shape::kThreads) {
    for (int j = 0; j < 2; ++j) *place(j, index / Shape::kK, index % Shape::kK) = IO{};
  }
  BackwardCell<IO, Acc> cells[Split::kElements];
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    cells[e].start(call, d, row0 + Split::row(e), unit0 + Split::unit(e));
    cells[e].fetch(call, d, 0, row0 + Split::row(e), unit0 + Split::unit(e));
  }
  exchange.ready();

  for (int64_t j = 0; j <= s.T; ++j) {
    exchange.wait(j);
    product.run(states + j % 2 * Shape::kStateBytes, sums);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      const int row = Split::row(e), unit = Split::unit(e);
      const Acc sum = StationaryProduct<Shape>::sum(sums, row, 0, unit);
      if (j == s.T) {
        cells[e].finish(call, d, row0 + row, unit0 + unit, sum);
        continue;
      }
      cells[e].step(call, d, j, row0 + row, unit0 + unit, sum);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        exchange.send(j + 1, place(j + 1, row, gate * all_units + unit0 + unit), cells[e].passed[gate]);
      }
    }
    if (j + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e) cells[e].fetch(call, d, j + 1, row0 + Split::row(e), unit0 + Split::unit(e));
    }
  }
  exchange.done();
}

}  // namespace fastlstm::cuda

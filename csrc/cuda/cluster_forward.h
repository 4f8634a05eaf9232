// The forward recurrence in one launch: a cluster of blocks takes some rows through all steps, its blocks hold the weights of some
// units each, and c stays in registers.
#pragma once

#include "exchange.h"
#include "place.h"
#include "stationary.h"

namespace fastlstm::cuda {

// How shared memory is laid out, from its start; two mbarriers come first.
template <class Shape>
struct ClusterMemory {
  static constexpr size_t kWeights = 16;
  static constexpr size_t kStates = kWeights + Shape::kWeightBytes;
  static constexpr size_t kSums = kStates + 2 * Shape::kStateBytes;
  static constexpr size_t kBytes = kSums + Shape::kSumBytes;
};

// The rows and units of a block, shared out to its threads: neighbours have neighbouring units.
template <class Shape>
struct ThreadPlaces {
  static constexpr int kElements = Shape::kUnits * Shape::kRows / Shape::kThreads;
  static_assert(kElements * Shape::kThreads == Shape::kUnits * Shape::kRows);

  static __device__ __forceinline__ int row(int e) { return (static_cast<int>(threadIdx.x) + e * Shape::kThreads) / Shape::kUnits; }
  static __device__ __forceinline__ int unit(int e) { return (static_cast<int>(threadIdx.x) + e * Shape::kThreads) % Shape::kUnits; }
};

template <class IO, class Acc>
struct ClusterForwardCall {
  Sizes sizes;
  Steps steps;
  EitherArray<IO, Acc> gates_x;
  int64_t gates_stride_t, gates_stride_n;
  const IO *h0, *c0;
  const IO* weight_hh;
  const int64_t* lengths;
  IO *output, *h_n, *c_n;
  Acc* cells;  // or null
  IO* gates;   // or null
};

// One row and unit, which a thread takes through all steps.
template <class IO, class Acc>
class ForwardCell {
 public:
  using Call = ClusterForwardCall<IO, Acc>;

  __device__ __forceinline__ void start(const Call& call, int d, int64_t n, int64_t unit) {
    const Sizes& s = call.sizes;
    there_ = n < s.N && unit < s.H;
    if (!there_) return;
    length_ = clamped_length(call.lengths, n, s.T);
    const int64_t state = (d * s.N + n) * s.H + unit;
    h_ = call.h0[state];
    const IO c = call.c0[state];
    c_ = Rounding<Acc>::load(c);
    if (length_ == 0) {
      call.h_n[state] = h_;
      call.c_n[state] = c;
    } else if (call.steps.cut_entering(d, call.steps.first_step(d, length_), n, length_)) {
      c_ = 0;
    }
  }

  // Loads what step k adds to the product, early.
  __device__ __forceinline__ void fetch(const Call& call, int d, int64_t k, int64_t n, int64_t unit) {
    const int64_t t = call.steps.step_at(d, k), H = call.sizes.H;
    if (!there_ || t >= length_) return;
    const int64_t first = t * call.gates_stride_t + n * call.gates_stride_n + d * 4 * H + unit;
    x_ = {call.gates_x.load(first), call.gates_x.load(first + H), call.gates_x.load(first + 2 * H), call.gates_x.load(first + 3 * H)};
  }

  // Step k from the product's sums; returns h as it enters step k + 1.
  __device__ __forceinline__ IO step(const Call& call, int d, int64_t k, int64_t n, int64_t unit, Gates<Acc> gates) {
    if (!there_) return IO{};
    const Sizes& s = call.sizes;
    const int64_t t = call.steps.step_at(d, k), place = ((t * s.N + n) * s.D + d) * s.H + unit;
    IO output{};
    Acc c = 0;
    if (t < length_) {
      gates = {gates.i + x_.i, gates.f + x_.f, gates.g + x_.g, gates.o + x_.o};
      const CellState<Acc> out = lstm_cell_forward<CellMath>(gates, c_);
      c = out.c;
      Rounding<Acc>::store(output, out.h);
      const bool last = t == call.steps.last_step(d, length_);
      const bool cut = !last && call.steps.cut_entering(d, call.steps.step_after(d, t), n, length_);
      c_ = cut ? Acc{0} : c;
      h_ = cut ? IO{} : output;
      if (last) {
        const int64_t state = (d * s.N + n) * s.H + unit;
        call.h_n[state] = output;
        Rounding<Acc>::store(call.c_n[state], c);
      }
    } else {
      gates = {};
    }
    call.output[place] = output;
    if (call.cells != nullptr) call.cells[place] = c;
    if (call.gates != nullptr) {
      IO* kept = call.gates + (place - unit) * 4 + unit;
      Rounding<Acc>::store(kept[0], gates.i);
      Rounding<Acc>::store(kept[s.H], gates.f);
      Rounding<Acc>::store(kept[2 * s.H], gates.g);
      Rounding<Acc>::store(kept[3 * s.H], gates.o);
    }
    return h_;
  }

 private:
  bool there_ = false;
  int64_t length_ = 0;
  IO h_{};
  Acc c_ = 0;
  Gates<Acc> x_{};
};

// Blocks: clusters one after the other, 1, directions. A cluster has as many blocks as hold all units.
template <class Shape, bool kCluster>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    lstm_forward_kernel_cluster(const __grid_constant__ ClusterForwardCall<typename Shape::IO, typename Shape::Acc> call) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Memory = ClusterMemory<Shape>;
  using Split = ThreadPlaces<Shape>;
  FASTLSTM_SHARED(shared);
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), blocks = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
  const int unit0 = static_cast<int>(blockIdx.x % blocks) * Shape::kUnits;
  const int64_t row0 = blockIdx.x / blocks * int64_t{Shape::kRows};
  unsigned char* states = shared + Memory::kStates;
  Acc* sums = reinterpret_cast<Acc*>(shared + Memory::kSums);
  const auto place = [&](int64_t k, int row, int unit) {
    return reinterpret_cast<IO*>(states + k % 2 * Shape::kStateBytes + row * Shape::kStateStride) + unit;
  };

  Exchange<kCluster> exchange(reinterpret_cast<uint64_t*>(shared), blocks * Shape::kUnits * Shape::kRows * sizeof(IO), s.T - 1);
  const IO* weights = call.weight_hh + d * 4 * s.H * s.H;
  const StationaryProduct<Shape> product(shared + Memory::kWeights, [&](int gate, int unit, int k) {
    return unit0 + unit < s.H && k < s.H ? weights[(gate * s.H + unit0 + unit) * s.H + k] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::kK; index += Shape::kThreads) {
    const int row = index / Shape::kK, unit = index % Shape::kK;
    const int64_t n = row0 + row;
    IO h{};
    if (n < s.N && unit < s.H) {
      const int64_t length = clamped_length(call.lengths, n, s.T);
      const bool cut = length > 0 && call.steps.cut_entering(d, call.steps.first_step(d, length), n, length);
      if (!cut) h = call.h0[(d * s.N + n) * s.H + unit];
    }
    *place(0, row, unit) = h;
    *place(1, row, unit) = IO{};
  }
  ForwardCell<IO, Acc> cells[Split::kElements];
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    cells[e].start(call, d, row0 + Split::row(e), unit0 + Split::unit(e));
    cells[e].fetch(call, d, 0, row0 + Split::row(e), unit0 + Split::unit(e));
  }
  exchange.ready();

  for (int64_t k = 0; k < s.T; ++k) {
    exchange.wait(k);
    product.run(states + k % 2 * Shape::kStateBytes, sums);
    __syncthreads();
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      const int row = Split::row(e), unit = Split::unit(e);
      const auto sum = [&](int gate) { return StationaryProduct<Shape>::sum(sums, row, gate, unit); };
      const IO h = cells[e].step(call, d, k, row0 + row, unit0 + unit, {sum(0), sum(1), sum(2), sum(3)});
      if (k + 1 < s.T) exchange.send(k + 1, place(k + 1, row, unit0 + unit), h);
    }
    if (k + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e) cells[e].fetch(call, d, k + 1, row0 + Split::row(e), unit0 + Split::unit(e));
    }
  }
  exchange.done();
}

}  // namespace fastlstm::cuda

// The forward recurrence in one launch: a cluster of blocks takes some rows through all steps. Each block holds the
// weights of some units; c stays in registers.
#pragma once

#include "cuda/cluster/exchange.h"
#include "cuda/cluster/forward_cell.h"
#include "cuda/product/stationary.h"

namespace fastlstm::cuda {

// A block's part of a layer in the forward pass: columns are the four gates of kUnits units, over all of K. The sums go
// through shared memory to the threads that step the cells.
template <class Product_, int kStates_ = 2>
struct ForwardShape : Product_ {
  using Product = Product_;
  static constexpr int kStates = kStates_;
  static constexpr int kUnits = Product::kColumns / 4, kMostUnits = Product::kK;
  static constexpr int kSumStride = Product::kColumns + 4;
  static constexpr int kSentBytes =
      kUnits * Product::kRows * sizeof(typename Product::IO);  // to each block of a cluster, in a step

  // Layout of shared memory; two mbarriers come first.
  static constexpr size_t kWeightsAt = 16;
  static constexpr size_t kStatesAt = kWeightsAt + Product::kWeightBytes;
  static constexpr size_t kSumsAt = kStatesAt + kStates * Product::kStateBytes;
  static constexpr size_t kSharedBytes =
      kSumsAt + Product::kWarpsK * Product::kRows * kSumStride * sizeof(typename Product::Acc);

  // The gate of a column, its unit, and its index among the sums.
  static __device__ __forceinline__ int gate(int column) { return column / kUnits; }
  static __device__ __forceinline__ int unit(int column) { return column % kUnits; }
  static __device__ __forceinline__ int sum_at(int warp_k, int row, int gate, int unit) {
    return (warp_k * Product::kRows + row) * kSumStride + gate * kUnits + unit;
  }
};

// The rows and units of a block, shared out to its threads; neighbours have neighbouring units. If they do not divide
// evenly, some threads have one place less.
template <class Shape>
struct ThreadPlaces {
  static constexpr int kPlaces = Shape::kUnits * Shape::kRows;
  static constexpr int kElements = (kPlaces + Shape::kThreads - 1) / Shape::kThreads;
  static constexpr bool kAll = kElements * Shape::kThreads == kPlaces;

  static __device__ __forceinline__ bool mine(int e) { return kAll || place(e) < kPlaces; }
  static __device__ __forceinline__ int row(int e) { return mine(e) ? place(e) / Shape::kUnits : 0; }
  static __device__ __forceinline__ int unit(int e) { return place(e) % Shape::kUnits; }
  // The row of the batch; N or more if this place does not exist.
  static __device__ __forceinline__ int64_t n(int e, int64_t row0, int64_t N) { return mine(e) ? row0 + row(e) : N; }

 private:
  static __device__ __forceinline__ int place(int e) { return static_cast<int>(threadIdx.x) + e * Shape::kThreads; }
};

// h as it enters a step, [kRows][kK] in shared memory, exchanged between the blocks of a cluster.
template <class Shape, bool kCluster>
class ClusterStates {
 public:
  using IO = typename Shape::IO;
  static_assert(ThreadPlaces<Shape>::kPlaces % 32 == 0, "sending takes all threads of a warp");

  __device__ __forceinline__ ClusterStates(unsigned char* shared, int blocks, int64_t T)
      : states_(shared + Shape::kStatesAt),
        exchange_(reinterpret_cast<uint64_t*>(shared), blocks * Shape::kSentBytes, T - 1) {}

  __device__ __forceinline__ IO* at(int64_t k, int row, int unit) const {
    return reinterpret_cast<IO*>(states_ + k % 2 * Shape::kStateBytes + row * Shape::kStateStride) + unit;
  }
  // Stores the state of step 0, and zeros where no block sends.
  __device__ __forceinline__ void start(int row, int unit, IO h) const {
    *at(0, row, unit) = h;
    *at(1, row, unit) = IO{};
  }
  __device__ __forceinline__ void ready() const { exchange_.ready(); }
  __device__ __forceinline__ const unsigned char* wait(int64_t k) {
    exchange_.wait(k);
    return reinterpret_cast<const unsigned char*>(at(k, 0, 0));
  }
  __device__ __forceinline__ void send(int64_t k, int row, int unit, IO h) const {
    exchange_.send_to_all(k, at(k, row, unit), h);
  }
  __device__ __forceinline__ void sent() const {}
  __device__ __forceinline__ void done() const { exchange_.done(); }

 private:
  unsigned char* states_;
  Exchange<kCluster> exchange_;
};

// All steps of the rows from row0 on, for the units of block `block` of `blocks`, by all of its threads.
template <class Shape, class States>
__device__ __forceinline__ void forward_on_chip(const ClusterForwardCall<typename Shape::IO, typename Shape::Acc>& call,
                                                unsigned char* shared, int block, int64_t row0, States& states) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Split = ThreadPlaces<Shape>;
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), unit0 = block * Shape::kUnits;
  Acc* sums = reinterpret_cast<Acc*>(shared + Shape::kSumsAt);

  const IO* weights = call.weight_hh + d * call.weight_hh_stride;
  const StationaryProduct<typename Shape::Product> product(shared + Shape::kWeightsAt, [&](int column, int k) {
    const int64_t unit = unit0 + Shape::unit(column);
    return unit < s.H && k < s.H ? weights[(Shape::gate(column) * s.H + unit) * s.H + k] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::kK; index += Shape::kThreads) {
    const int row = index / Shape::kK, unit = index % Shape::kK;
    states.start(row, unit, ForwardOutput<IO, Acc>::entering_first(call, d, row0 + row, unit, s.H));
  }
  ForwardCell<IO, Acc> cells[Split::kElements];
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    cells[e].start(call, d, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    cells[e].fetch(call, d, 0, Split::n(e, row0, s.N), unit0 + Split::unit(e));
  }
  states.ready();

  // Other blocks wait for h, and `sent` may wait for earlier stores to complete. So the tape is stored after both, if
  // registers can hold it that long.
  constexpr bool kAllSentFirst = Split::kElements <= 4;
  for (int64_t k = 0; k < s.T; ++k) {
    const auto keep = [&](int e, const typename ForwardCell<IO, Acc>::Step& step) {
      cells[e].keep(call, d, k, Split::n(e, row0, s.N), unit0 + Split::unit(e), step);
    };
    const unsigned char* state = states.wait(k);
    typename StationaryProduct<typename Shape::Product>::Sums parts;
    product.run(state, parts);
    product.for_pairs(parts, [&](int column, int row, Acc first, Acc second) {
      sums[Shape::sum_at(product.warp_k(), row, Shape::gate(column), Shape::unit(column))] = first;
      sums[Shape::sum_at(product.warp_k(), row + 1, Shape::gate(column), Shape::unit(column))] = second;
    });
    __syncthreads();
    typename ForwardCell<IO, Acc>::Step steps[Split::kElements];
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      const int row = Split::row(e), unit = Split::unit(e);
      const auto sum = [&](int gate) {
        Acc total = 0;  // in a fixed order, so that results repeat bit by bit
#pragma unroll
        for (int w = 0; w < Shape::kWarpsK; ++w) total += sums[Shape::sum_at(w, row, gate, unit)];
        return total;
      };
      const IO h = cells[e].step(call, d, k, Split::n(e, row0, s.N), {sum(0), sum(1), sum(2), sum(3)}, steps[e]);
      if (k + 1 < s.T && Split::mine(e)) states.send(k + 1, row, unit0 + unit, h);
      if (!kAllSentFirst) keep(e, steps[e]);
    }
    if (k + 1 < s.T) states.sent();
    if (kAllSentFirst) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e) keep(e, steps[e]);
    }
    if (k + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e)
        cells[e].fetch(call, d, k + 1, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    }
  }
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) cells[e].finish(call, d, Split::n(e, row0, s.N), unit0 + Split::unit(e));
  states.done();
}

// Blocks: clusters one after the other, 1, directions. A cluster has as many blocks as hold all units.
template <class Shape, bool kCluster>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_forward_kernel_cluster(
    const __grid_constant__ ClusterForwardCall<typename Shape::IO, typename Shape::Acc> call) {
  if constexpr (!kCluster || ptx::kHasClusters) {
    FASTLSTM_SHARED(shared);
    const int blocks = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
    ClusterStates<Shape, kCluster> states(shared, blocks, call.sizes.T);
    forward_on_chip<Shape>(call, shared, static_cast<int>(blockIdx.x % blocks),
                           blockIdx.x / blocks * int64_t{Shape::kRows}, states);
  }
}

}  // namespace fastlstm::cuda

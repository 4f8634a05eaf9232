// The backward recurrence in one launch. A block has the gates of its own units, as in forward.h, and multiplies their
// gradients by the weights: its part of the sums for all units. The blocks exchange these parts, half the bytes of the
// gates' gradients.
#pragma once

#include "cuda/cluster/backward_cell.h"
#include "cuda/cluster/forward.h"

namespace fastlstm::cuda {

// A block's part of a layer in the backward pass: columns are all units, K the four gates of kUnits units. Its state is
// the gradients of its own gates. It receives the parts of its units' sums, from each block and each of the warps that
// split K. There are two states, since a warp without work for this block's own units may still be reading the last
// state when all parts have arrived.
template <class Product_>
struct BackwardShape : Product_ {
  using Product = Product_;
  static constexpr int kUnits = Product::kK / 4, kMostUnits = Product::kColumns;
  static constexpr int kMostBlocks = kMostUnits / kUnits;
  static constexpr int kPartFloats = Product::kRows * kUnits;
  static constexpr int kSentBytes =
      Product::kWarpsK * kPartFloats * sizeof(float);  // to each block of a cluster, in a step

  static constexpr size_t kWeightsAt = 16;
  static constexpr size_t kStatesAt = kWeightsAt + Product::kWeightBytes;
  static constexpr size_t kPartsAt = kStatesAt + 2 * Product::kStateBytes;
  static constexpr size_t kSharedBytes = kPartsAt + 2 * kMostBlocks * Product::kWarpsK * kPartFloats * sizeof(float);

  // Index within a part: rows in pairs, which are sent together; neighbouring units two words apart.
  static __device__ __forceinline__ int place(int row, int unit) { return (row / 2 * kUnits + unit) * 2 + row % 2; }
};

// All steps, by all threads of a block.
template <class Shape, bool kCluster>
__device__ __forceinline__ void backward_on_cluster(
    const ClusterBackwardCall<typename Shape::IO, typename Shape::Acc>& call, unsigned char* shared) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Split = ThreadPlaces<Shape>;
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), blocks = kCluster ? static_cast<int>(ptx::cluster_size()) : 1;
  const int block = static_cast<int>(blockIdx.x % blocks), unit0 = block * Shape::kUnits,
            sources = blocks * Shape::kWarpsK;
  const int64_t row0 = blockIdx.x / blocks * int64_t{Shape::kRows};
  const auto state = [&](int64_t j, int row) {
    return reinterpret_cast<IO*>(shared + Shape::kStatesAt + j % 2 * Shape::kStateBytes + row * Shape::kStateStride);
  };
  float* parts = reinterpret_cast<float*>(shared + Shape::kPartsAt);
  const auto part = [&](int64_t j, int source) { return parts + (j % 2 * sources + source) * Shape::kPartFloats; };

  Exchange<kCluster> exchange(reinterpret_cast<uint64_t*>(shared), blocks * Shape::kSentBytes, s.T);
  const int H = static_cast<int>(s.H);  // a cluster holds few weights: 32-bit indexes take half the registers
  const IO* weights = call.weight_hh + d * call.weight_hh_stride;
  const StationaryProduct<typename Shape::Product> product(shared + Shape::kWeightsAt, [&](int unit, int k) {
    const int from = unit0 + k % Shape::kUnits;
    return unit < H && from < H ? weights[(k / Shape::kUnits * H + from) * H + unit] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::kK; index += Shape::kThreads) {
    for (int j = 0; j < 2; ++j) state(j, index / Shape::kK)[index % Shape::kK] = IO{};
  }
  BackwardCell<IO, Acc> cells[Split::kElements];
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    cells[e].start(call, d, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    cells[e].fetch(call, d, 0, Split::n(e, row0, s.N), unit0 + Split::unit(e));
  }
  exchange.ready();

  const auto sum_of = [&](int64_t j, int row, int unit) {
    Acc sum = 0;  // in a fixed order, so that results repeat bit by bit
    for (int source = 0; source < sources; ++source) sum += part(j, source)[Shape::place(row, unit)];
    return sum;
  };
  for (int64_t j = 0; j < s.T; ++j) {
    exchange.wait(j);
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      const int row = Split::row(e), unit = Split::unit(e);
      const Acc sum = j > 0 ? sum_of(j, row, unit) : Acc{0};
      const Gates<Acc> gradients =
          cells[e].step(call, d, j, sum, state(j, row) + unit, state(j + 1, row) + unit, Shape::kUnits);
      cells[e].keep(call, d, j, Split::n(e, row0, s.N), unit0 + unit, gradients);
    }
    __syncthreads();
    typename StationaryProduct<typename Shape::Product>::Sums sums;
    product.run(reinterpret_cast<const unsigned char*>(state(j, 0)), sums);
    product.for_pairs(sums, [&](int unit, int row, Acc first, Acc second) {
      const int to = unit / Shape::kUnits;
      if (to >= blocks) return;
      float* place = part(j + 1, block * Shape::kWarpsK + product.warp_k()) + Shape::place(row, unit % Shape::kUnits);
      exchange.send(j + 1, to, place, first, second);
    });
    if (j + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e)
        cells[e].fetch(call, d, j + 1, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    }
  }
  exchange.wait(s.T);
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    const int row = Split::row(e), unit = Split::unit(e);
    cells[e].finish(call, d, Split::n(e, row0, s.N), unit0 + unit, sum_of(s.T, row, unit));
  }
  exchange.done();
}

// Blocks: clusters one after the other, 1, directions.
template <class Shape, bool kCluster>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_backward_kernel_cluster(
    const __grid_constant__ ClusterBackwardCall<typename Shape::IO, typename Shape::Acc> call) {
  if constexpr (!kCluster || ptx::kHasClusters) {
    FASTLSTM_SHARED(shared);
    backward_on_cluster<Shape, kCluster>(call, shared);
  }
}

}  // namespace fastlstm::cuda

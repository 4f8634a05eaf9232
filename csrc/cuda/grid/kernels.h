// The recurrence in one launch of the whole grid: the cluster kernels' work, for weights that no cluster can hold. A
// group of blocks takes some rows of one direction through all steps.
#pragma once

#include "cuda/cluster/backward.h"
#include "cuda/grid/exchange.h"

namespace fastlstm::cuda {

// How many of a shape's rows the batch has from row0 on.
template <class Shape>
__device__ __forceinline__ int rows_of_group(const Sizes& s, int64_t row0) {
  return s.N - row0 < Shape::kRows ? static_cast<int>(s.N - row0) : Shape::kRows;
}

// Blocks: those of a group, groups, directions.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    lstm_forward_kernel_grid(const __grid_constant__ ClusterForwardCall<typename Shape::IO, typename Shape::Acc> call,
                             const __grid_constant__ GridMemory memory) {
  FASTLSTM_SHARED(shared);
  const int64_t row0 = blockIdx.y * int64_t{Shape::kRows};
  GridStates<Shape> states(shared, memory, blockIdx.z * gridDim.y + blockIdx.y, gridDim.x,
                           rows_of_group<Shape>(call.sizes, row0), gridDim.x * Shape::kUnits);
  forward_on_chip<Shape>(call, shared, static_cast<int>(blockIdx.x), row0, states);
}

// A block's part of a layer in the backward pass, where the gates' gradients are exchanged: kUnits columns of the
// weights, K the four gates of all units. (Clusters exchange parts of sums, of which there would be as many as blocks.)
template <class Product_>
struct BackwardGridShape : Product_ {
  using Product = Product_;
  static constexpr int kUnits = Product::kColumns, kMostUnits = Product::kK / 4;
  static constexpr int kSumStride = Product::kColumns + 4;
  static constexpr size_t kWeightsAt = 16;
  static constexpr size_t kStatesAt = kWeightsAt + Product::kWeightBytes;
  static constexpr size_t kSumsAt = kStatesAt + Product::kStateBytes;
  static constexpr size_t kSharedBytes =
      kSumsAt + Product::kWarpsK * Product::kRows * kSumStride * sizeof(typename Product::Acc);

  static __device__ __forceinline__ int sum_at(int warp_k, int row, int unit) {
    return (warp_k * Product::kRows + row) * kSumStride + unit;
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    lstm_backward_kernel_grid(const __grid_constant__ ClusterBackwardCall<typename Shape::IO, typename Shape::Acc> call,
                              const __grid_constant__ GridMemory memory) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Split = ThreadPlaces<Shape>;
  FASTLSTM_SHARED(shared);
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), unit0 = static_cast<int>(blockIdx.x) * Shape::kUnits;
  const int all_units = static_cast<int>(gridDim.x) * Shape::kUnits;
  const int64_t row0 = blockIdx.y * int64_t{Shape::kRows};
  Acc* sums = reinterpret_cast<Acc*>(shared + Shape::kSumsAt);
  GridStates<Shape> states(shared, memory, blockIdx.z * gridDim.y + blockIdx.y, gridDim.x,
                           rows_of_group<Shape>(s, row0), 4 * all_units);
  const IO* weights = call.weight_hh + d * call.weight_hh_stride;
  const StationaryProduct<typename Shape::Product> product(shared + Shape::kWeightsAt, [&](int column, int k) {
    const int gate = k / all_units, from = k % all_units, unit = unit0 + column;
    return unit < s.H && from < s.H && gate < 4 ? weights[(gate * s.H + from) * s.H + unit] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::kK; index += Shape::kThreads) {
    states.start(index / Shape::kK, index % Shape::kK, IO{});
  }
  BackwardCell<IO, Acc> cells[Split::kElements];
  IO passed[Split::kElements][4] = {};
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    cells[e].start(call, d, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    cells[e].fetch(call, d, 0, Split::n(e, row0, s.N), unit0 + Split::unit(e));
  }
  states.ready();

  for (int64_t j = 0; j <= s.T; ++j) {
    const unsigned char* state = states.wait(j);
    typename StationaryProduct<typename Shape::Product>::Sums parts;
    product.run(state, parts);
    product.for_pairs(parts, [&](int unit, int row, Acc first, Acc second) {
      sums[Shape::sum_at(product.warp_k(), row, unit)] = first;
      sums[Shape::sum_at(product.warp_k(), row + 1, unit)] = second;
    });
    __syncthreads();
    Gates<Acc> gradients[Split::kElements];
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      const int row = Split::row(e), unit = Split::unit(e);
      Acc sum = 0;  // in a fixed order, so that results repeat bit by bit
#pragma unroll
      for (int w = 0; w < Shape::kWarpsK; ++w) sum += sums[Shape::sum_at(w, row, unit)];
      if (j == s.T) {
        cells[e].finish(call, d, Split::n(e, row0, s.N), unit0 + unit, sum);
        continue;
      }
      gradients[e] = cells[e].step(call, d, j, sum, passed[e], passed[e], 1);
#pragma unroll
      for (int gate = 0; gate < 4; ++gate) {
        if (Split::mine(e)) states.send(j + 1, row, gate * all_units + unit0 + unit, passed[e][gate]);
      }
    }
    if (j == s.T) break;
    states.sent();
    // After `sent`, which waits for earlier stores to complete.
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e)
      cells[e].keep(call, d, j, Split::n(e, row0, s.N), unit0 + Split::unit(e), gradients[e]);
    if (j + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e)
        cells[e].fetch(call, d, j + 1, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    }
  }
}

// The shape that serves H with 8 kTilesN rows a group, if its state leaves room for that many.
template <class Policy, int kTilesN>
struct ForwardGridShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = ForwardShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>, 1>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (sizeof(typename Policy::IO) == 2) {
      if (H <= 1024) return use(Shape<1, 8, 2, 8, 0>{});
      if constexpr (kTilesN == 1) {
        if (H <= 2048) return use(Shape<2, 4, 2, 10, 22>{});
      }
    } else {
      if (H <= 1024) return use(Shape<1, 8, 2, 10, 6>{});
    }
  }
};

template <class Policy, int kTilesN>
struct BackwardGridShapes {
  template <int kWarpsM, int kWarpsK, int kTilesM, int kHeld, int kShared>
  using Shape = BackwardGridShape<StationaryShape<Policy, kWarpsM, kWarpsK, kTilesM, kHeld, kShared, kTilesN>>;

  template <class Use>
  static void visit(int64_t H, const Use& use) {
    if constexpr (kTilesN > 2) {
      return;
    } else {
      constexpr int64_t kFew = sizeof(typename Policy::IO) == 2 ? 1024 : 512;
      if (H <= kFew) return use(Shape<1, 8, 1, 20, 12>{});
      if constexpr (kTilesN == 1) {
        if (H <= kFew * 3 / 2) return use(Shape<1, 8, 1, 20, 28>{});
      }
    }
  }
};

}  // namespace fastlstm::cuda

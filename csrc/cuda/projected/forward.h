// The forward recurrence with a projection in one launch.
#pragma once

#include "cuda/projected/exchange.h"

namespace fastlstm::cuda {

// All steps, for `rows` of the batch from row0 on and the units of block `block`, by all of its threads.
template <class Shape, class Reduction>
__device__ __forceinline__ void forward_projected(
    const ClusterForwardCall<typename Shape::IO, typename Shape::Acc>& call, unsigned char* shared,
    const Slices& slices, int block, int row0, Reduction& reduction) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Split = ThreadPlaces<Shape>;
  using Outputs = OutputPlaces<Shape>;
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), unit0 = block * Shape::kUnits, output0 = block << slices.shift;
  const auto y = [&](int row) {
    return reinterpret_cast<IO*>(shared + Shape::kSharedStateAt + row * Shape::Shared::kStateStride);
  };
  const auto own = [&](int row) {
    return reinterpret_cast<IO*>(shared + Shape::kOwnStateAt + row * Shape::Own::kStateStride);
  };
  Acc* sums = reinterpret_cast<Acc*>(shared + Shape::kSumsAt);

  const int H = static_cast<int>(s.H), P = static_cast<int>(s.P);  // sizes on the chip fit 32 bits
  const IO* weight_hh = call.weight_hh + d * call.weight_hh_stride;
  const StationaryProduct<typename Shape::Shared> gates_product(
      shared + Shape::kSharedWeightsAt, [&](int column, int k) {
        const int unit = unit0 + column % Shape::kUnits;
        return unit < H && k < P ? weight_hh[(column / Shape::kUnits * H + unit) * P + k] : IO{};
      });
  const IO* weight_hr = call.weight_hr + d * call.weight_hr_stride;
  const StationaryProduct<typename Shape::Own> output_product(shared + Shape::kOwnWeightsAt, [&](int output, int k) {
    const int unit = unit0 + k;
    return output < P && k < Shape::kUnits && unit < H ? weight_hr[output * H + unit] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::Shared::kK; index += Shape::kThreads) {
    const int row = index / Shape::Shared::kK, output = index % Shape::Shared::kK;
    y(row)[output] = ForwardOutput<IO, Acc>::entering_first(call, d, row0 + row, output, s.P);
  }
  for (int index = threadIdx.x; index < Shape::kRows * Shape::Own::kK; index += Shape::kThreads) {
    own(index / Shape::Own::kK)[index % Shape::Own::kK] = IO{};
  }
  RowSteps unit_rows[Split::kElements], output_rows[Outputs::kElements];
  ForwardState<IO, Acc> states[Split::kElements];
  ForwardOutput<IO, Acc> outputs[Outputs::kElements];
  const Outputs places(slices, block);
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    const int64_t n = Split::n(e, row0, s.N), unit = unit0 + Split::unit(e);
    unit_rows[e].start(call, n < s.N && unit < s.H, n);
    states[e].start(call, unit_rows[e], d, n, unit);
    states[e].fetch(call, unit_rows[e], d, 0, n, unit);
  }
#pragma unroll
  for (int e = 0; e < Outputs::kElements; ++e) {
    const int n = row0 + places.row(e), output = output0 + places.output(e);
    output_rows[e].start(call, places.mine(e) && places.copy() == 0 && n < s.N && output < s.P, n);
    outputs[e].start(call, output_rows[e], d, n, output, s.P);
  }
  reduction.ready();

  for (int k = 0; k < s.T; ++k) {
    if (k > 0) reduction.wait_for_outputs();
    typename StationaryProduct<typename Shape::Shared>::Sums of_gates;
    gates_product.run(shared + Shape::kSharedStateAt, of_gates);
    gates_product.for_pairs(of_gates, [&](int column, int row, Acc first, Acc second) {
      sums[Shape::sum_at(gates_product.warp_k(), row, column)] = first;
      sums[Shape::sum_at(gates_product.warp_k(), row + 1, column)] = second;
    });
    __syncthreads();
    ForwardStep<Acc> steps[Split::kElements];
    const int64_t t = call.steps.step_at(d, k);
    const auto keep_state = [&](int e) {
      if (unit_rows[e].there()) states[e].keep(call, d, t, row0 + Split::row(e), unit0 + Split::unit(e), steps[e]);
    };
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      if (!unit_rows[e].there()) continue;
      const int row = Split::row(e), unit = Split::unit(e);
      const auto sum = [&](int gate) {
        Acc total = 0;  // in a fixed order, so that results repeat bit by bit
#pragma unroll
        for (int w = 0; w < Shape::Shared::kWarpsK; ++w)
          total += sums[Shape::sum_at(w, row, gate * Shape::kUnits + unit)];
        return total;
      };
      const RowStep at = unit_rows[e].at(call, d, k, row0 + row);
      steps[e] = states[e].step(at, {sum(0), sum(1), sum(2), sum(3)});
      Rounding<Acc>::store(own(row)[unit], steps[e].cell.h);
      if (!Reduction::kWaitsForStores) keep_state(e);
    }
    __syncthreads();
    typename StationaryProduct<typename Shape::Own>::Sums of_outputs;
    output_product.run(shared + Shape::kOwnStateAt, of_outputs);
    output_product.for_pairs(of_outputs, [&](int output, int row, Acc first, Acc second) {
      reduction.send_part(output_product.warp_k(), output, row, first, second);
    });
    reduction.parts_sent();
    if (Reduction::kWaitsForStores) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e) keep_state(e);
    }
    if (k + 1 < s.T) {
#pragma unroll
      for (int e = 0; e < Split::kElements; ++e) {
        states[e].fetch(call, unit_rows[e], d, k + 1, Split::n(e, row0, s.N), unit0 + Split::unit(e));
      }
    }
    reduction.wait_for_parts();
    IO finished[Outputs::kElements];
    const auto keep_output = [&](int e, const IO& h) {
      if (output_rows[e].there()) outputs[e].keep(call, d, t, row0 + places.row(e), output0 + places.output(e), s.P, h);
    };
#pragma unroll
    for (int e = 0; e < Outputs::kElements; ++e) {
      if (!places.mine(e)) continue;
      const Acc sum = reduction.sum(places, e);
      IO x{};
      if (output_rows[e].there())
        x = outputs[e].step(output_rows[e].at(call, d, k, row0 + places.row(e)), sum, finished[e]);
      if (k + 1 < s.T) reduction.send(places, e, x);
      if (!Reduction::kWaitsForStores) keep_output(e, finished[e]);
    }
    if (k + 1 < s.T) reduction.sent();
    if (Reduction::kWaitsForStores) {
#pragma unroll
      for (int e = 0; e < Outputs::kElements; ++e) keep_output(e, finished[e]);
    }
  }
  const int first_row = ptx::opaque(row0);
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    if (unit_rows[e].there()) states[e].finish(call, d, first_row + Split::row(e), unit0 + Split::unit(e));
  }
#pragma unroll
  for (int e = 0; e < Outputs::kElements; ++e) {
    if (output_rows[e].there()) outputs[e].finish(call, d, row0 + places.row(e), output0 + places.output(e), s.P);
  }
  reduction.done();
}

// Blocks: clusters one after the other, 1, directions. A cluster has as many blocks as hold all units.
template <class Shape, bool kCluster = (Shape::kMostBlocks > 1)>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_forward_kernel_projected_cluster(
    const __grid_constant__ ClusterForwardCall<typename Shape::IO, typename Shape::Acc> call) {
  if constexpr (!kCluster || ptx::kHasClusters) {
    FASTLSTM_SHARED(shared);
    const auto part = ProjectedPart<Shape>::in_cluster(call.sizes);
    const Slices slices(call.sizes.P, part.blocks);
    ClusterReduction<Shape, kCluster> reduction(shared, slices, part.block, part.blocks, part.rows, part.T, part.T - 1);
    forward_projected<Shape>(call, shared, slices, part.block, part.row0, reduction);
  }
}

// Blocks: those of a group, groups, directions.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_forward_kernel_projected_grid(
    const __grid_constant__ ClusterForwardCall<typename Shape::IO, typename Shape::Acc> call,
    const __grid_constant__ ProjectedGridMemory memory) {
  FASTLSTM_SHARED(shared);
  const auto part = ProjectedPart<Shape>::in_grid(call.sizes);
  const Slices slices(call.sizes.P, part.blocks);
  GridReduction<Shape> reduction(shared, memory, blockIdx.z * gridDim.y + blockIdx.y, slices, part.block, part.blocks,
                                 part.rows);
  forward_projected<Shape>(call, shared, slices, part.block, part.row0, reduction);
}

}  // namespace fastlstm::cuda

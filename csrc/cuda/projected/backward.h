// The backward recurrence with a projection in one launch: the forward's exchanges, with the gates' gradients in place
// of h~, and the gradient of y in place of y.
#pragma once

#include "cuda/projected/exchange.h"

namespace fastlstm::cuda {

// All steps backwards, for the rows of the batch from row0 on and the units of block `block`, by all of its threads.
template <class Shape, class Reduction>
__device__ __forceinline__ void backward_projected(
    const ClusterBackwardCall<typename Shape::IO, typename Shape::Acc>& call, unsigned char* shared,
    const Slices& slices, int block, int row0, Reduction& reduction) {
  using IO = typename Shape::IO;
  using Acc = typename Shape::Acc;
  using Split = ThreadPlaces<Shape>;
  using Outputs = OutputPlaces<Shape>;
  const Sizes& s = call.sizes;
  const int d = static_cast<int>(blockIdx.z), unit0 = block * Shape::kUnits, output0 = block << slices.shift;
  const auto dy = [&](int row) {
    return reinterpret_cast<IO*>(shared + Shape::kSharedStateAt + row * Shape::Shared::kStateStride);
  };
  const auto own = [&](int row) {
    return reinterpret_cast<IO*>(shared + Shape::kOwnStateAt + row * Shape::Own::kStateStride);
  };
  Acc* sums = reinterpret_cast<Acc*>(shared + Shape::kSumsAt);

  const int H = static_cast<int>(s.H), P = static_cast<int>(s.P);  // sizes on the chip fit 32 bits
  const IO* weight_hr = call.weight_hr + d * call.weight_hr_stride;
  const StationaryProduct<typename Shape::Shared> hidden_product(
      shared + Shape::kSharedWeightsAt, [&](int column, int k) {
        const int unit = unit0 + column;
        return unit < H && k < P ? weight_hr[k * H + unit] : IO{};
      });
  const IO* weight_hh = call.weight_hh + d * call.weight_hh_stride;
  const StationaryProduct<typename Shape::Own> output_product(shared + Shape::kOwnWeightsAt, [&](int output, int k) {
    const int unit = unit0 + k % Shape::kUnits;
    return output < P && unit < H ? weight_hh[(k / Shape::kUnits * H + unit) * P + output] : IO{};
  });
  for (int index = threadIdx.x; index < Shape::kRows * Shape::Shared::kK; index += Shape::kThreads) {
    dy(index / Shape::Shared::kK)[index % Shape::Shared::kK] = IO{};
  }
  for (int index = threadIdx.x; index < Shape::kRows * Shape::Own::kK; index += Shape::kThreads) {
    own(index / Shape::Own::kK)[index % Shape::Own::kK] = IO{};
  }
  RowSteps unit_rows[Split::kElements], output_rows[Outputs::kElements];
  BackwardState<IO, Acc> states[Split::kElements];
  BackwardOutput<IO, Acc> outputs[Outputs::kElements];
  const Outputs places(slices, block);
  const auto fetch_states = [&](int64_t t) {
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      states[e].fetch(call, unit_rows[e], d, t, Split::n(e, row0, s.N), unit0 + Split::unit(e));
    }
  };
  const auto fetch_outputs = [&](int64_t t) {
#pragma unroll
    for (int e = 0; e < Outputs::kElements; ++e) {
      outputs[e].fetch(call, output_rows[e], d, t, row0 + places.row(e), output0 + places.output(e), s.P);
    }
  };
  const auto step_back = [&](int64_t j) { return call.steps.step_at(d, s.T - 1 - j); };
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    const int64_t n = Split::n(e, row0, s.N), unit = unit0 + Split::unit(e);
    unit_rows[e].start(call, n < s.N && unit < s.H, n);
    states[e].start(call, unit_rows[e], d, n, unit);
  }
#pragma unroll
  for (int e = 0; e < Outputs::kElements; ++e) {
    const int n = row0 + places.row(e), output = output0 + places.output(e);
    output_rows[e].start(call, places.mine(e) && places.copy() == 0 && n < s.N && output < s.P, n);
    outputs[e].start(call, output_rows[e], d, n, output, s.P);
  }
  fetch_outputs(step_back(0));
  fetch_states(step_back(0));
  reduction.ready();

  Gates<Acc> gradients[Split::kElements];
  const auto keep_gradients = [&](int e, int64_t t) {
    if (unit_rows[e].there()) states[e].keep(call, d, t, row0 + Split::row(e), unit0 + Split::unit(e), gradients[e]);
  };
  for (int j = 0; j <= s.T; ++j) {
    if (j > 0) {
      typename StationaryProduct<typename Shape::Own>::Sums of_outputs;
      output_product.run(shared + Shape::kOwnStateAt, of_outputs);
      output_product.for_pairs(of_outputs, [&](int output, int row, Acc first, Acc second) {
        reduction.send_part(output_product.warp_k(), output, row, first, second);
      });
      reduction.parts_sent();
      if (Reduction::kWaitsForStores) {
#pragma unroll
        for (int e = 0; e < Split::kElements; ++e) keep_gradients(e, step_back(j - 1));
      }
      reduction.wait_for_parts();
    }
    const int64_t t = step_back(j);
    Acc arrived[Outputs::kElements];
    const auto keep_arrived = [&](int e, const Acc& dh) {
      const int64_t place = ((t * s.N + row0 + places.row(e)) * s.D + d) * s.P + output0 + places.output(e);
      if (output_rows[e].there()) call.dhidden[place] = dh;
    };
#pragma unroll
    for (int e = 0; e < Outputs::kElements; ++e) {
      if (!places.mine(e)) continue;
      const int n = row0 + places.row(e), output = output0 + places.output(e);
      const Acc sum = j > 0 ? reduction.sum(places, e) : Acc{0};
      if (j == s.T) {
        if (output_rows[e].there()) outputs[e].finish(call, d, n, output, s.P, sum);
        continue;
      }
      IO x{};
      if (output_rows[e].there()) {
        arrived[e] = outputs[e].arriving(output_rows[e], t, sum);
        Rounding<Acc>::store(x, arrived[e]);
      }
      reduction.send(places, e, x);
      if (!Reduction::kWaitsForStores) keep_arrived(e, arrived[e]);
    }
    if (j == s.T) break;
    reduction.sent();
    if (Reduction::kWaitsForStores) {
#pragma unroll
      for (int e = 0; e < Outputs::kElements; ++e) keep_arrived(e, arrived[e]);
    }
    if (j + 1 < s.T) fetch_outputs(step_back(j + 1));
    reduction.wait_for_outputs();
    typename StationaryProduct<typename Shape::Shared>::Sums of_hidden;
    hidden_product.run(shared + Shape::kSharedStateAt, of_hidden);
    hidden_product.for_pairs(of_hidden, [&](int column, int row, Acc first, Acc second) {
      sums[Shape::sum_at(hidden_product.warp_k(), row, column)] = first;
      sums[Shape::sum_at(hidden_product.warp_k(), row + 1, column)] = second;
    });
    __syncthreads();
#pragma unroll
    for (int e = 0; e < Split::kElements; ++e) {
      if (!unit_rows[e].there()) continue;
      const int row = Split::row(e), unit = Split::unit(e);
      Acc dh = 0;  // in a fixed order, so that results repeat bit by bit
#pragma unroll
      for (int w = 0; w < Shape::Shared::kWarpsK; ++w) dh += sums[Shape::sum_at(w, row, unit)];
      IO* passed = own(row) + unit;
      gradients[e] = states[e].step(unit_rows[e], t, dh, passed, passed, Shape::kUnits);
      if (!Reduction::kWaitsForStores) keep_gradients(e, t);
    }
    __syncthreads();
    if (j + 1 < s.T) fetch_states(step_back(j + 1));
  }
#pragma unroll
  for (int e = 0; e < Split::kElements; ++e) {
    if (unit_rows[e].there()) states[e].finish(call, d, row0 + Split::row(e), unit0 + Split::unit(e));
  }
  reduction.done();
}

// Blocks: clusters one after the other, 1, directions.
template <class Shape, bool kCluster = (Shape::kMostBlocks > 1)>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_backward_kernel_projected_cluster(
    const __grid_constant__ ClusterBackwardCall<typename Shape::IO, typename Shape::Acc> call) {
  if constexpr (!kCluster || ptx::kHasClusters) {
    FASTLSTM_SHARED(shared);
    const auto part = ProjectedPart<Shape>::in_cluster(call.sizes);
    const Slices slices(call.sizes.P, part.blocks);
    ClusterReduction<Shape, kCluster> reduction(shared, slices, part.block, part.blocks, part.rows, part.T, part.T);
    backward_projected<Shape>(call, shared, slices, part.block, part.row0, reduction);
  }
}

// Blocks: those of a group, groups, directions.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1) lstm_backward_kernel_projected_grid(
    const __grid_constant__ ClusterBackwardCall<typename Shape::IO, typename Shape::Acc> call,
    const __grid_constant__ ProjectedGridMemory memory) {
  FASTLSTM_SHARED(shared);
  const auto part = ProjectedPart<Shape>::in_grid(call.sizes);
  const Slices slices(call.sizes.P, part.blocks);
  GridReduction<Shape> reduction(shared, memory, blockIdx.z * gridDim.y + blockIdx.y, slices, part.block, part.blocks,
                                 part.rows);
  backward_projected<Shape>(call, shared, slices, part.block, part.row0, reduction);
}

}  // namespace fastlstm::cuda

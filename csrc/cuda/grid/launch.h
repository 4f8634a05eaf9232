// Launches the recurrence on the whole grid, if there is a shape for it and all its blocks run at once.
#pragma once

#include <algorithm>
#include <type_traits>

#include "core/layout.h"
#include "cuda/cluster/best_shape.h"
#include "cuda/cluster/on_chip_call.h"
#include "cuda/costs.h"
#include "cuda/families.h"
#include "cuda/grid/kernels.h"

namespace fastlstm::cuda {

// How many blocks of a cooperative launch the device runs at once, one on each multiprocessor; 0 without room for any,
// or without cooperative launches.
template <class Kernel>
int resident_blocks(Kernel kernel, int threads, size_t shared_bytes, const DeviceFacts& device) {
  int blocks = 0;
  const bool fine =
      device.cooperative != 0 && allow_shared_bytes(reinterpret_cast<const void*>(kernel), shared_bytes) &&
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) == cudaSuccess;
  if (!fine) cudaGetLastError();  // "no" is an answer, and must not be reported as the next call's error
  return fine && blocks > 0 ? device.multiprocessors : 0;
}

// Whether `groups` groups of `blocks` blocks run at once, and their count over T steps fits 32 bits.
inline bool blocks_fit(int64_t blocks, int64_t groups, int64_t D, int64_t T, int resident) {
  constexpr int64_t kMostCount = int64_t{1} << 30;
  return groups <= resident && blocks * groups * D <= resident && T < kMostCount / blocks;
}

template <class Shape, class IO, class Acc>
auto grid_kernel_for(const ClusterForwardCall<IO, Acc>&) {
  return lstm_forward_kernel_grid<Shape>;
}
template <class Shape, class IO, class Acc>
auto grid_kernel_for(const ClusterBackwardCall<IO, Acc>&) {
  return lstm_backward_kernel_grid<Shape>;
}

// A call with one shape: its blocks, the memory that they share, and the predicted time of a step.
template <class Shape>
struct GridPlan {
  int64_t blocks, groups, D;
  size_t bytes;

  explicit GridPlan(const Sizes& s)
      : blocks((s.H + Shape::kUnits - 1) / Shape::kUnits), groups((s.N + Shape::kRows - 1) / Shape::kRows), D(s.D) {
    lay_out(nullptr);
  }

  // Counters come first: they are cleared before the launch, with the states.
  GridMemory lay_out(void* workspace) {
    Layout layout(static_cast<char*>(workspace));
    GridMemory memory;
    memory.counters = layout.array<int>(groups * D * GridMemory::kCounterStride);
    memory.states = layout.array<unsigned char>(groups * D * 2 * Shape::kRows * GridStates<Shape>::kRowBytes);
    bytes = layout.used();
    return memory;
  }

  // Predicted clocks of a step: the product's time on tensor cores or in shared memory, the state's way from the
  // second-level cache to every block, the cell and the counter.
  template <class Call>
  Offer offer(const Call& call, const DeviceFacts& device) const {
    static std::atomic<uint64_t> answer;
    const auto ask = [&] {
      return resident_blocks(grid_kernel_for<Shape>(call), Shape::kThreads, Shape::kSharedBytes, device);
    };
    if (!blocks_fit(blocks, groups, D, call.sizes.T, known(answer, device, ask))) return {};
    const int64_t row_bytes = blocks * Shape::kUnits * GridStates<Shape>::kRowBytes / Shape::kMostUnits;
    const int64_t rows = std::min<int64_t>(call.sizes.N, Shape::kRows);
    const int64_t step =
        costs::kGridStep + Shape::kProductClocks + costs::cache_clocks(blocks * groups * D, rows * row_bytes);
    return {step, 2 * costs::kLaunch + Shape::kLoads * costs::kMemory};
  }

  template <class Call>
  void run(const Call& call, void* workspace, Launcher& launch, const char* name) {
    const GridMemory memory = lay_out(workspace);
    launch.clear(name, workspace, bytes);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(groups), static_cast<unsigned>(D));
    launch.cooperative(name, grid_kernel_for<Shape>(call), grid, Shape::kThreads, Shape::kSharedBytes, call, memory);
  }
};

// use(each shape for H), in the order of their numbers: with 8, 16 and 32 rows a group.
template <class Policy, class Use>
void visit_grid_shapes(const ForwardArgs& a, const Use& use) {
  ForwardGridShapes<Policy, 1>::visit(a.sizes.H, use);
  ForwardGridShapes<Policy, 2>::visit(a.sizes.H, use);
  ForwardGridShapes<Policy, 4>::visit(a.sizes.H, use);
}
template <class Policy, class Use>
void visit_grid_shapes(const BackwardArgs& a, const Use& use) {
  BackwardGridShapes<Policy, 1>::visit(a.sizes.H, use);
  BackwardGridShapes<Policy, 2>::visit(a.sizes.H, use);
  BackwardGridShapes<Policy, 4>::visit(a.sizes.H, use);
}

template <class Policy, class Args>
Offer GridKernels<Policy, Args>::offer(const Args& a, const DeviceFacts& device, int only) {
  if (!on_chip_may_take(a.sizes)) return {};
  const auto call = on_chip_call<Policy>(a);
  BestShape best(a.sizes.T, only);
  visit_grid_shapes<Policy>(a, [&](auto shape) { best.add(GridPlan<decltype(shape)>(a.sizes).offer(call, device)); });
  return best.offer();
}

template <class Policy, class Args>
size_t GridKernels<Policy, Args>::workspace(const Args& a, int shape) {
  size_t bytes = 0;
  const auto read = [&](auto of) { bytes = GridPlan<decltype(of)>(a.sizes).bytes; };
  visit_grid_shapes<Policy>(a, Numbered(shape, read));
  return bytes;
}

template <class Policy, class Args>
void GridKernels<Policy, Args>::run(const Args& a, int shape, void* workspace, Launcher& launch) {
  constexpr bool kForward = std::is_same_v<Args, ForwardArgs>;
  const auto call = on_chip_call<Policy>(a);
  const auto launch_on = [&](auto of) {
    GridPlan<decltype(of)>(a.sizes).run(call, workspace, launch,
                                        kForward ? "lstm_forward_kernel_grid" : "lstm_backward_kernel_grid");
  };
  visit_grid_shapes<Policy>(a, Numbered(shape, launch_on));
}

}  // namespace fastlstm::cuda

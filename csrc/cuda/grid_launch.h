// Launches the recurrence on the whole grid, where there is a shape for it and all its blocks run at once.
#pragma once

#include <algorithm>

#include "../core/layout.h"
#include "costs.h"
#include "grid_kernels.h"
#include "launch.h"
#include "on_chip_call.h"
#include "tiles.h"

namespace fastlstm::cuda {

// One call on one shape: which blocks, how much memory they share, what a step is predicted to take.
template <class Shape>
struct GridPlan {
  int64_t blocks, groups, D;
  size_t state_bytes, bytes;

  explicit GridPlan(const Sizes& s)
      : blocks((s.H + Shape::kUnits - 1) / Shape::kUnits), groups((s.N + Shape::kRows - 1) / Shape::kRows), D(s.D) {
    lay_out(nullptr);
  }

  // Counters first: all of it is cleared before the launch.
  GridMemory lay_out(void* workspace) {
    Layout layout(static_cast<char*>(workspace));
    GridMemory memory;
    memory.counters = layout.array<int>(groups * D * GridMemory::kCounterStride);
    memory.states = layout.array<unsigned char>(groups * D * 2 * Shape::kRows * GridStates<Shape>::kRowBytes);
    bytes = layout.used();
    return memory;
  }

  // Whether all blocks run at once, one to a multiprocessor, and their count over all steps stays within 32 bits.
  bool fits(const Sizes& s, const DeviceFacts& device) const {
    constexpr int64_t kMostCount = int64_t{1} << 30;
    return groups <= device.multiprocessors && blocks * groups * D <= device.multiprocessors && s.T < kMostCount / blocks &&
           Shape::kSharedBytes <= static_cast<size_t>(device.shared_bytes);
  }

  // Clocks of a step: the tensor cores' or shared memory's part of the product, the state's way from the second-level cache into
  // every block, and the cell and the counter.
  int64_t clocks() const {
    const int64_t row_bytes = blocks * Shape::kUnits * GridStates<Shape>::kRowBytes / Shape::kMostUnits;
    return costs::kGridStep + Shape::kProductClocks + Shape::kRows * row_bytes / costs::kCacheBytesPerClock;
  }
};

template <class Shape, class IO, class Acc>
auto grid_kernel_for(const ClusterForwardCall<IO, Acc>&) {
  return lstm_forward_kernel_grid<Shape>;
}
template <class Shape, class IO, class Acc>
auto grid_kernel_for(const ClusterBackwardCall<IO, Acc>&) {
  return lstm_backward_kernel_grid<Shape>;
}

// Launches the call on a shape, or with no launcher says in `bytes` what memory it would need. False if the device has no room.
template <class Shape, class Call>
bool launch_on_grid(Launcher* launch, const char* name, const Call& call, void* workspace, size_t& bytes) {
  const Sizes& s = call.sizes;
  GridPlan<Shape> plan(s);
  const auto kernel = grid_kernel_for<Shape>(call);
  if (!allow_shared_bytes(reinterpret_cast<const void*>(kernel), Shape::kSharedBytes)) return false;
  bytes = plan.bytes;
  if (launch == nullptr) return true;
  const GridMemory memory = plan.lay_out(workspace);
  launch->clear(name, workspace, plan.bytes);
  const dim3 blocks(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.groups), static_cast<unsigned>(s.D));
  launch->cooperative(name, kernel, blocks, Shape::kThreads, Shape::kSharedBytes, call, memory);
  return true;
}

// Asks take(shape) with the shape for H, with 8, 16 or 32 rows a group, that is predicted to be fastest of those that fit, unless the
// step kernels, at `in_steps`, are.
template <template <class, int> class Shapes, class Policy, class Take>
bool visit_grid_shape(const Sizes& s, const DeviceFacts& device, int64_t in_steps, const Take& take) {
  bool taken = false;
  int64_t best = in_steps;
  const auto predict = [&](auto shape) {
    using Shape = decltype(shape);
    const GridPlan<Shape> plan(s);
    if (plan.fits(s, device)) best = std::min(best, plan.clocks());
  };
  const auto ask = [&](auto shape) {
    using Shape = decltype(shape);
    const GridPlan<Shape> plan(s);
    if (!taken && best < in_steps && plan.clocks() == best && plan.fits(s, device)) taken = take(shape);
  };
  const auto visit_all = [&](const auto& use) {
    Shapes<Policy, 1>::visit(s.H, use);
    Shapes<Policy, 2>::visit(s.H, use);
    Shapes<Policy, 4>::visit(s.H, use);
  };
  visit_all(predict);
  visit_all(ask);
  return taken;
}

template <class Policy>
bool run_grid(const ForwardArgs& a, Launcher* launch, void* workspace, size_t& bytes) {
  if (!on_chip_may_take(a.sizes)) return false;
  const DeviceFacts device;
  const Sizes& s = a.sizes;
  const int64_t in_steps = choose_tile<Policy, 4>(s.N, s.H, s.H, s.D, device).clocks;
  const auto call = on_chip_call<Policy>(a);
  return visit_grid_shape<ForwardGridShapes, Policy>(s, device, in_steps, [&](auto shape) {
    return launch_on_grid<decltype(shape)>(launch, "lstm_forward_kernel_grid", call, workspace, bytes);
  });
}

template <class Policy>
bool run_grid(const BackwardArgs& a, Launcher* launch, void* workspace, size_t& bytes) {
  if (!on_chip_may_take(a.sizes)) return false;
  const DeviceFacts device;
  const Sizes& s = a.sizes;
  const int64_t in_steps = choose_tile<Policy, 1>(s.N, s.H, 4 * s.H, s.D, device).clocks;
  const auto call = on_chip_call<Policy>(a);
  return visit_grid_shape<BackwardGridShapes, Policy>(s, device, in_steps, [&](auto shape) {
    return launch_on_grid<decltype(shape)>(launch, "lstm_backward_kernel_grid", call, workspace, bytes);
  });
}

}  // namespace fastlstm::cuda

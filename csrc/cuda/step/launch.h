// The family of step kernels: its offer, and its launches.
#pragma once

#include "cuda/families.h"
#include "cuda/step/backward_launch.h"
#include "cuda/step/forward_launch.h"

namespace fastlstm::cuda {

template <class Policy>
ForwardSteps<Policy> steps_of(const ForwardArgs& a, void* workspace) {
  return {a, workspace};
}
template <class Policy>
BackwardSteps<Policy> steps_of(const BackwardArgs& a, void* workspace) {
  return {a, workspace};
}

// Predicted clocks: of a step's launches, and of those once in a call: the initial state, weights copied or transposed,
// and backward the gradients of the initial state.
template <class Policy>
Offer steps_offer(const ForwardArgs& a, const DeviceFacts& device) {
  const Sizes& s = a.sizes;
  const int64_t gates = choose_tile<Policy, 4>(s.N, s.H, s.P, s.D, device).clocks;
  if (a.weight_hr[0] == nullptr) return {gates, costs::kLaunch};
  return {gates + choose_tile<Policy, 1>(s.N, s.P, s.H, s.D, device).clocks, costs::kLaunch};
}
template <class Policy>
Offer steps_offer(const BackwardArgs& a, const DeviceFacts& device) {
  const Sizes& s = a.sizes;
  const int64_t gates = choose_tile<Policy, 1>(s.N, s.P, 4 * s.H, s.D, device).clocks;
  if (a.weight_hr[0] == nullptr) return {gates, 2 * costs::kLaunch + gates};
  return {gates + choose_tile<Policy, 1>(s.N, s.H, s.P, s.D, device).clocks, 3 * costs::kLaunch + gates};
}

template <class Policy, class Args>
Offer StepKernels<Policy, Args>::offer(const Args& a, const DeviceFacts& device, int) {
  return steps_offer<Policy>(a, device);
}

template <class Policy, class Args>
size_t StepKernels<Policy, Args>::workspace(const Args& a, int) {
  return steps_of<Policy>(a, nullptr).workspace();
}

template <class Policy, class Args>
void StepKernels<Policy, Args>::run(const Args& a, int, void* workspace, Launcher& launch) {
  steps_of<Policy>(a, workspace).run(launch);
}

}  // namespace fastlstm::cuda

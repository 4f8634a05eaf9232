// The arguments of the kernels that keep the weights on the chip, from a call's; and which calls they take.
#pragma once

#include <type_traits>

#include "cuda/cluster/backward.h"
#include "cuda/recurrence.h"

namespace fastlstm::cuda {

// Larger calls are left to the step kernels.
inline bool on_chip_may_take(const Sizes& s) {
  constexpr int64_t kMost = int64_t{1} << 26;  // blocks and steps are counted in 32 bits
  return s.N < kMost && s.T < kMost;
}

// Both directions' weights as one place and a stride: of two places the kernels would have to keep one more in
// registers, and the largest have none left.
template <class IO>
void put_weights(const void* const (&from)[2], int64_t D, const IO*& first, int64_t& stride) {
  const auto at = [&](int d) { return reinterpret_cast<intptr_t>(from[d]); };
  first = static_cast<const IO*>(from[0]);
  stride = D == 2 && from[0] != nullptr ? (at(1) - at(0)) / static_cast<intptr_t>(sizeof(IO)) : 0;
}

template <class Policy, class Args>
using CallOf =
    std::conditional_t<std::is_same_v<Args, ForwardArgs>, ClusterForwardCall<typename Policy::IO, typename Policy::Acc>,
                       ClusterBackwardCall<typename Policy::IO, typename Policy::Acc>>;

template <class Policy, class Args>
auto on_chip_call(const Args& a) {
  CallOf<Policy, Args> call{};
  call.take(a);
  call.steps = {a.sizes.T, a.sizes.N, a.reset_mask};
  put_weights(a.weight_hh, a.sizes.D, call.weight_hh, call.weight_hh_stride);
  put_weights(a.weight_hr, a.sizes.D, call.weight_hr, call.weight_hr_stride);
  return call;
}

}  // namespace fastlstm::cuda

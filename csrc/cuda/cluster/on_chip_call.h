// The arguments of the kernels that keep the weights on the chip, from a call's; and which calls they take.
#pragma once

#include <utility>

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

template <class Policy>
auto on_chip_call(const ForwardArgs& a) {
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;
  ClusterForwardCall<IO, Acc> call{};
  call.sizes = a.sizes;
  call.steps = {a.sizes.T, a.sizes.N, a.reset_mask};
  call.gates_x = {const_cast<void*>(a.gates_x), a.wide_gates};
  call.gates_stride_d = a.gates_strides.d;
  call.gates_stride_t = a.gates_strides.t;
  call.gates_stride_n = a.gates_strides.n;
  call.h0 = static_cast<const IO*>(a.h0);
  call.c0 = {const_cast<void*>(a.c0), a.wide_states};
  put_weights(a.weight_hh, a.sizes.D, call.weight_hh, call.weight_hh_stride);
  put_weights(a.weight_hr, a.sizes.D, call.weight_hr, call.weight_hr_stride);
  call.lengths = a.lengths;
  call.output = static_cast<IO*>(a.output);
  call.h_n = static_cast<IO*>(a.h_n);
  call.c_n = {a.c_n, a.wide_states};
  call.cells = static_cast<Acc*>(a.cells);
  call.gates = static_cast<IO*>(a.gates);
  return call;
}

template <class Policy>
auto on_chip_call(const BackwardArgs& a) {
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;
  ClusterBackwardCall<IO, Acc> call{};
  call.sizes = a.sizes;
  call.steps = {a.sizes.T, a.sizes.N, a.reset_mask};
  call.doutput = static_cast<const IO*>(a.doutput);
  call.doutput_stride_t = a.doutput_stride_t;
  call.doutput_stride_n = a.doutput_stride_n;
  call.dh_n = {const_cast<void*>(a.dh_n), a.wide_states};
  call.dc_n = {const_cast<void*>(a.dc_n), a.wide_states};
  call.dcells = static_cast<const Acc*>(a.dcells);
  call.c0 = {const_cast<void*>(a.c0), a.wide_states};
  put_weights(a.weight_hh, a.sizes.D, call.weight_hh, call.weight_hh_stride);
  put_weights(a.weight_hr, a.sizes.D, call.weight_hr, call.weight_hr_stride);
  call.cells = static_cast<const Acc*>(a.cells);
  call.gates = static_cast<const IO*>(a.gates);
  call.lengths = a.lengths;
  call.dgates_x = {a.dgates_x, a.wide_gates};
  call.dh0 = {a.dh0, a.wide_states};
  call.dc0 = {a.dc0, a.wide_states};
  call.dhidden = static_cast<Acc*>(a.dhidden);
  return call;
}

template <class Policy, class Args>
using CallOf = decltype(on_chip_call<Policy>(std::declval<const Args&>()));

}  // namespace fastlstm::cuda

// The arrays of a call (core/recurrence_args.h) with their types, as the kernels of every family have them.
#pragma once

#include "core/recurrence_args.h"
#include "cuda/device/place.h"

namespace fastlstm::cuda {

template <class IO, class Acc>
struct ForwardArrays {
  Sizes sizes;
  const int64_t* lengths;
  EitherArray<IO, Acc> gates_x;
  int64_t gates_stride_d, gates_stride_t, gates_stride_n;
  const IO* h0;             // or null
  EitherArray<IO, Acc> c0;  // or null
  IO *output, *h_n;
  EitherArray<IO, Acc> c_n;
  Acc* cells;  // or null
  IO* gates;   // or null

  void take(const RecurrenceForwardArgs& a) {
    sizes = a.sizes;
    lengths = a.lengths;
    gates_x = {const_cast<void*>(a.gates_x), a.wide_gates};
    gates_stride_d = a.gates_strides.d;
    gates_stride_t = a.gates_strides.t;
    gates_stride_n = a.gates_strides.n;
    h0 = static_cast<const IO*>(a.h0);
    c0 = {const_cast<void*>(a.c0), a.wide_states};
    output = static_cast<IO*>(a.output);
    h_n = static_cast<IO*>(a.h_n);
    c_n = {a.c_n, a.wide_states};
    cells = static_cast<Acc*>(a.cells);
    gates = static_cast<IO*>(a.gates);
  }

  __device__ __forceinline__ int64_t length(int64_t n) const { return clamped_length(lengths, n, sizes.T); }
};

template <class IO, class Acc>
struct BackwardArrays {
  Sizes sizes;
  const int64_t* lengths;
  const IO* doutput;  // or null
  int64_t doutput_stride_t, doutput_stride_n;
  EitherArray<IO, Acc> dh_n, dc_n;  // each or null
  const Acc* dcells;                // or null
  EitherArray<IO, Acc> c0;          // or null
  const Acc* cells;
  const IO* gates;
  EitherArray<IO, Acc> dgates_x;
  EitherArray<IO, Acc> dh0, dc0;  // each or null
  Acc* dhidden;                   // with a projection, else null

  void take(const RecurrenceBackwardArgs& a) {
    sizes = a.sizes;
    lengths = a.lengths;
    doutput = static_cast<const IO*>(a.doutput);
    doutput_stride_t = a.doutput_stride_t;
    doutput_stride_n = a.doutput_stride_n;
    dh_n = {const_cast<void*>(a.dh_n), a.wide_states};
    dc_n = {const_cast<void*>(a.dc_n), a.wide_states};
    dcells = static_cast<const Acc*>(a.dcells);
    c0 = {const_cast<void*>(a.c0), a.wide_states};
    cells = static_cast<const Acc*>(a.cells);
    gates = static_cast<const IO*>(a.gates);
    dgates_x = {a.dgates_x, a.wide_gates};
    dh0 = {a.dh0, a.wide_states};
    dc0 = {a.dc0, a.wide_states};
    dhidden = static_cast<Acc*>(a.dhidden);
  }

  __device__ __forceinline__ int64_t length(int64_t n) const { return clamped_length(lengths, n, sizes.T); }
};

}  // namespace fastlstm::cuda

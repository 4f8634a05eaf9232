// Storage types, their conversion to the accumulation type, and the cell's functions on a GPU.
#pragma once

#include <cuda_runtime.h>

#include "core/types.h"
#include "cuda/device/ptx.h"

namespace fastlstm::cuda {

#include "core/lstm_cell.h"
#include "core/steps.h"

template <class Acc>
struct Rounding;

template <>
struct Rounding<float> {
  static __device__ __forceinline__ void store(BFloat16& to, float x) { to.bits = ptx::float_to_bf16(x); }
  static __device__ __forceinline__ void store(Float16& to, float x) { to.bits = ptx::float_to_f16(x); }
  static __device__ __forceinline__ void store(float& to, float x) { to = x; }
  static __device__ __forceinline__ float load(BFloat16 x) { return ptx::bf16_to_float(x.bits); }
  static __device__ __forceinline__ float load(Float16 x) { return ptx::f16_to_float(x.bits); }
  static __device__ __forceinline__ float load(float x) { return x; }
};

template <>
struct Rounding<double> {
  static __device__ __forceinline__ void store(double& to, double x) { to = x; }
  static __device__ __forceinline__ double load(double x) { return x; }
};

// No overflow gives NaN: exp(-x) may be infinite, and 1 / infinity is the right result, 0.
struct CellMath {
  static __device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
  static __device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
  static __device__ __forceinline__ float tanh(float x) { return tanhf(x); }
  static __device__ __forceinline__ double tanh(double x) { return ::tanh(x); }
};

// An array in the I/O type or in the wide type, decided by the call.
template <class IO, class Acc>
struct EitherArray {
  void* data;
  bool wide;

  __device__ __forceinline__ Acc load(int64_t k) const {
    return wide ? static_cast<const Acc*>(data)[k] : Rounding<Acc>::load(static_cast<const IO*>(data)[k]);
  }
  // Where a null array stands for zeros.
  __device__ __forceinline__ Acc load_or_zero(int64_t k) const { return data == nullptr ? Acc{0} : load(k); }
  __device__ __forceinline__ const void* at(int64_t k) const {
    return static_cast<const char*>(data) + k * static_cast<int64_t>(wide ? sizeof(Acc) : sizeof(IO));
  }
  __device__ __forceinline__ void store(int64_t k, Acc x) const {
    if (wide) {
      static_cast<Acc*>(data)[k] = x;
    } else {
      Rounding<Acc>::store(static_cast<IO*>(data)[k], x);
    }
  }
};

}  // namespace fastlstm::cuda

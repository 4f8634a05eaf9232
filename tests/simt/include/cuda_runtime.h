// Stands in for CUDA's header of this name where the .cu files are compiled by a C++ compiler. What is not here, the
// kernels and their host code do not use; __shared__ is left out on purpose: see FASTLSTM_SHARED in
// csrc/cuda/device/ptx.h.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

#include "vector_types.h"

#include "device_functions.h"
#include "runtime_api.h"

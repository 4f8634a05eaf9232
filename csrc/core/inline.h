// Marks functions that are inlined into every compiled backend: compiled for each instruction set, and for GPUs.
#pragma once

#if defined(__CUDACC__)
#define FASTLSTM_INLINE __host__ __device__ __forceinline__
#else
#define FASTLSTM_INLINE inline __attribute__((always_inline))
#endif

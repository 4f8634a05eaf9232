// Marks functions that every compiled backend takes into its own code: they are compiled for each instruction set and
// for GPUs.
#pragma once

#if defined(__CUDACC__)
#define FASTLSTM_INLINE __host__ __device__ __forceinline__
#else
#define FASTLSTM_INLINE inline __attribute__((always_inline))
#endif

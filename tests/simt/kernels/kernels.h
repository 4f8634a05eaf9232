// Host entry points of the small kernels that try the harness. All compile with nvcc too.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// What to leave out of a kernel, or do wrong, so that the harness has something to find.
enum Broken : int {
  kNothing = 0,
  kNoBarrierAfterLoad,    // threads read what others have not written yet
  kNoBarrierBeforeReuse,  // threads write over what others still read
  kNoWait,                // cp.async is not waited for
  kSharedIndex,           // one row too far in shared memory
  kGlobalIndex,           // one element too far in global memory
  kUninitialised,         // a part of shared memory is not filled
  kNoFinalBarrier,        // a block ends while others write to it
  kTooFewArrivals,        // an mbarrier waits for one arrival more than come
  kTooFewBytes,           // an mbarrier expects more bytes than come
  kNoBufferWait,          // data are sent before the receiver is done with the last
  kNoSpin,                // the grid's barrier does not wait
  kNotCoresident,         // a grid's barrier without a cooperative launch
};

enum class Dtype : int { bf16, f16, tf32 };

// c (M, N) float = a (M, K) times the transpose of b (N, K). Rows are padded to multiples of 16 bytes: lda, ldb in
// elements.
cudaError_t launch_gemm(Dtype dtype, const void* a, const void* b, float* c, int M, int N, int K, int lda, int ldb,
                        int broken, cudaStream_t stream);

// `steps` times, every block of the cluster of `size` adds its neighbour's numbers to its own: x (clusters, size, 128)
// int32.
cudaError_t launch_ring(uint32_t* x, int clusters, int size, int steps, int broken, cudaStream_t stream);

// The same with the neighbours in a ring of the whole grid, through global memory: x (2, blocks, 64) int32.
cudaError_t launch_grid_ring(int* x, int* arrived, int blocks, int steps, int broken, cudaStream_t stream);

// One warp: each instruction on the numbers of each lane.
struct InstructionArgs {
  const uint32_t *a, *b;  // (matrices, 32, 4), (matrices, 32, 2): fragments
  float* d;               // (matrices, 32, 4)
  int matrices;
  const uint16_t* tile;                  // (32, 8): four 8 x 8 matrices
  uint32_t* fragments;                   // (2, 32, 4): x4, x2
  const float* floats;                   // (count)
  const uint16_t* halves;                // (count)
  uint32_t *to_bf16, *to_f16, *to_tf32;  // (count)
  float *from_bf16, *from_f16;           // (count)
  int count;
  const int* lanes;  // (32)
  int* shuffled;     // (10, 32)
};
cudaError_t launch_mma(Dtype dtype, const InstructionArgs& args, cudaStream_t stream);
cudaError_t launch_ldmatrix(const InstructionArgs& args, cudaStream_t stream);
cudaError_t launch_conversions(const InstructionArgs& args, cudaStream_t stream);
cudaError_t launch_shuffles(const InstructionArgs& args, cudaStream_t stream);

// A histogram by atomics, a sum by a lock, a maximum: counts (16), total (1), lock (1), most (1).
cudaError_t launch_atomics(const int* values, int n, int* counts, double* total, int* lock, int* most,
                           cudaStream_t stream);

// One wrong thing each; see misuse.cu.
cudaError_t launch_misuse(int which, int* memory, cudaStream_t stream);

// An empty kernel with any shape.
cudaError_t launch_shape(dim3 grid, dim3 block, dim3 cluster, int cooperative, size_t shared_bytes, size_t opt_in);

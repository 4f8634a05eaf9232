// A tiled product: two stages of cp.async, ldmatrix, mma; 32 x 32 outputs a block, four warps of 16 x 16.
#include <cuda_runtime.h>

#include "kernels.h"
#include "launch.h"
#include "cuda/device/ptx.h"

namespace {

namespace ptx = fastlstm::ptx;

constexpr int kTile = 32;       // rows of a, and of b
constexpr int kStepBytes = 64;  // of a row, in a stage
constexpr int kStride = 80;     // of a row in shared memory: ldmatrix then meets no bank twice
constexpr int kStageBytes = 2 * kTile * kStride;

template <Dtype kDtype>
__device__ __forceinline__ void multiply(float (&d)[4], uint32_t (&a)[4], uint32_t (&b)[2]) {
  if constexpr (kDtype == Dtype::bf16) {
    ptx::mma_bf16(d, a, b);
  } else if constexpr (kDtype == Dtype::f16) {
    ptx::mma_f16(d, a, b);
  } else {
    for (uint32_t& word : a) word = ptx::float_to_tf32(__uint_as_float(word));
    for (uint32_t& word : b) word = ptx::float_to_tf32(__uint_as_float(word));
    ptx::mma_tf32(d, a, b);
  }
}

// One 16-byte piece of a row of each operand per thread.
__device__ __forceinline__ void load_stage(unsigned char* stage, const char* a, const char* b, int M, int N,
                                           int row_bytes, int lda_bytes, int ldb_bytes, int from, int broken) {
  const int row = threadIdx.x / 4, piece = threadIdx.x % 4 * 16;
  const int m = blockIdx.y * kTile + row, n = blockIdx.x * kTile + row;
  const bool inside = from + piece < row_bytes;
  const bool a_valid = inside && m < M + (broken == kGlobalIndex), b_valid = inside && n < N;
  unsigned char* to = stage + row * kStride + piece;
  if (broken == kUninitialised && row == 5) return;
  ptx::cp_async_16(to, a_valid ? a + static_cast<size_t>(m) * lda_bytes + from + piece : a, a_valid);
  ptx::cp_async_16(to + kTile * kStride, b_valid ? b + static_cast<size_t>(n) * ldb_bytes + from + piece : b, b_valid);
}

template <Dtype kDtype>
__global__ void __launch_bounds__(128) gemm_kernel(const char* a, const char* b, float* c, int M, int N, int row_bytes,
                                                   int lda_bytes, int ldb_bytes, int broken) {
  FASTLSTM_SHARED(shared);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 2 * 16, warp_n = warp % 2 * 16;
  float d[2][4] = {};
  load_stage(shared, a, b, M, N, row_bytes, lda_bytes, ldb_bytes, 0, broken);
  ptx::cp_async_commit();
  for (int from = 0, parity = 0; from < row_bytes; from += kStepBytes, parity ^= 1) {
    if (broken != kNoBarrierBeforeReuse) __syncthreads();
    load_stage(shared + (parity ^ 1) * kStageBytes, a, b, M, N, row_bytes, lda_bytes, ldb_bytes, from + kStepBytes,
               broken);
    ptx::cp_async_commit();
    if (broken == kNoWait) {
      ptx::cp_async_wait<2>();
    } else {
      ptx::cp_async_wait<1>();
    }
    if (broken != kNoBarrierAfterLoad) __syncthreads();
    const unsigned char* a_rows = shared + parity * kStageBytes + (warp_m + (broken == kSharedIndex)) * kStride;
    const unsigned char* b_rows = shared + parity * kStageBytes + (kTile + warp_n + (broken == kSharedIndex)) * kStride;
    for (int k = 0; k < kStepBytes; k += 32) {
      uint32_t a_fragment[4], b_fragment[2];
      ptx::ldmatrix_x4(a_fragment, a_rows + lane % 16 * kStride + lane / 16 * 16 + k);
      for (int half = 0; half < 2; ++half) {
        ptx::ldmatrix_x2(b_fragment, b_rows + (half * 8 + lane % 8) * kStride + lane / 8 % 2 * 16 + k);
        uint32_t a_copy[4] = {a_fragment[0], a_fragment[1], a_fragment[2], a_fragment[3]};
        multiply<kDtype>(d[half], a_copy, b_fragment);
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 4; ++i) {
      const int m = blockIdx.y * kTile + warp_m + lane / 4 + i / 2 * 8;
      const int n = blockIdx.x * kTile + warp_n + half * 8 + lane % 4 * 2 + i % 2;
      if (m < M && n < N) c[static_cast<size_t>(m) * N + n] = d[half][i];
    }
  }
}

}  // namespace

cudaError_t launch_gemm(Dtype dtype, const void* a, const void* b, float* c, int M, int N, int K, int lda, int ldb,
                        int broken, cudaStream_t stream) {
  const int size = dtype == Dtype::tf32 ? 4 : 2;
  const Shape shape{dim3((N + kTile - 1) / kTile, (M + kTile - 1) / kTile), 128, 2 * kStageBytes};
  const auto kernel = dtype == Dtype::bf16  ? gemm_kernel<Dtype::bf16>
                      : dtype == Dtype::f16 ? gemm_kernel<Dtype::f16>
                                            : gemm_kernel<Dtype::tf32>;
  return launch(shape, stream, kernel, static_cast<const char*>(a), static_cast<const char*>(b), c, M, N, K * size,
                lda * size, ldb * size, broken);
}

// Each instruction alone, on numbers from outside: tests compare with plain mathematics.
#include <cuda_runtime.h>

#include "kernels.h"
#include "launch.h"
#include "cuda/device/ptx.h"

namespace {

namespace ptx = fastlstm::ptx;

template <Dtype kDtype>
__global__ void mma_kernel(InstructionArgs args) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int matrix = warp; matrix < args.matrices; matrix += blockDim.x / 32) {
    const size_t at = static_cast<size_t>(matrix) * 32 + lane;
    uint32_t a[4], b[2];
    float d[4];
    for (int i = 0; i < 4; ++i) a[i] = args.a[at * 4 + i];
    for (int i = 0; i < 2; ++i) b[i] = args.b[at * 2 + i];
    for (int i = 0; i < 4; ++i) d[i] = args.d[at * 4 + i];
    if constexpr (kDtype == Dtype::bf16) {
      ptx::mma_bf16(d, a, b);
    } else if constexpr (kDtype == Dtype::f16) {
      ptx::mma_f16(d, a, b);
    } else {
      ptx::mma_tf32(d, a, b);
    }
    for (int i = 0; i < 4; ++i) args.d[at * 4 + i] = d[i];
  }
}

__global__ void ldmatrix_kernel(InstructionArgs args) {
  FASTLSTM_SHARED(shared);
  auto* tile = reinterpret_cast<uint16_t*>(shared);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) tile[lane * 8 + i] = args.tile[lane * 8 + i];
  __syncwarp();
  uint32_t x4[4], x2[2];
  const auto keep = [&](int which, const uint32_t* words, int n) {
    for (int i = 0; i < n; ++i) args.fragments[(which * 32 + lane) * 4 + i] = words[i];
  };
  ptx::ldmatrix_x4(x4, tile + lane * 8);
  keep(0, x4, 4);
  ptx::ldmatrix_x2(x2, lane < 16 ? tile + lane * 8 : nullptr);
  keep(1, x2, 2);
}

__global__ void conversions_kernel(InstructionArgs args) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= args.count) return;
  args.to_bf16[i] = ptx::float_to_bf16(args.floats[i]);
  args.to_f16[i] = ptx::float_to_f16(args.floats[i]);
  args.to_tf32[i] = ptx::float_to_tf32(args.floats[i]);
  args.from_bf16[i] = ptx::bf16_to_float(args.halves[i]);
  args.from_f16[i] = ptx::f16_to_float(args.halves[i]);
}

__global__ void shuffles_kernel(InstructionArgs args) {
  const int lane = threadIdx.x, value = args.lanes[lane];
  const unsigned all = 0xffffffffu, half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int* out = args.shuffled + lane;
  out[0 * 32] = __shfl_sync(all, value, 5);
  out[1 * 32] = __shfl_sync(all, value, lane * 7 + 3, 8);
  out[2 * 32] = __shfl_xor_sync(all, value, 9);
  out[3 * 32] = __shfl_down_sync(all, value, 3);
  out[4 * 32] = __shfl_up_sync(all, value, 3, 16);
  out[5 * 32] = static_cast<int>(__ballot_sync(all, value & 1));
  out[6 * 32] = __any_sync(all, value == args.lanes[31]) + 2 * __all_sync(all, value > 0);
  out[7 * 32] = __shfl_xor_sync(half, value, lane < 16 ? 1 : 2);
  out[8 * 32] =
      __syncthreads_count(value & 1) + 100 * __syncthreads_or(value == 0) + 200 * __syncthreads_and(value > 0);
  const double wide = __shfl_xor_sync(all, 1e9 * value, 1);
  out[9 * 32] = static_cast<int>(wide / 1e9);
}

__global__ void atomics_kernel(const int* values, int n, int* counts, double* total, int* lock, int* most) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(counts + values[i] % 16, 1);
  atomicMax(most, values[i]);
  while (atomicCAS(lock, 0, 1) != 0) {}
  __threadfence();
  *total += values[i];
  __threadfence();
  atomicExch(lock, 0);
}

}  // namespace

cudaError_t launch_mma(Dtype dtype, const InstructionArgs& args, cudaStream_t stream) {
  const auto kernel = dtype == Dtype::bf16  ? mma_kernel<Dtype::bf16>
                      : dtype == Dtype::f16 ? mma_kernel<Dtype::f16>
                                            : mma_kernel<Dtype::tf32>;
  return launch(Shape{1, 128}, stream, kernel, args);
}

cudaError_t launch_ldmatrix(const InstructionArgs& args, cudaStream_t stream) {
  return launch(Shape{1, 32, 32 * 16}, stream, ldmatrix_kernel, args);
}

cudaError_t launch_conversions(const InstructionArgs& args, cudaStream_t stream) {
  return launch(Shape{static_cast<unsigned>((args.count + 255) / 256), 256}, stream, conversions_kernel, args);
}

cudaError_t launch_shuffles(const InstructionArgs& args, cudaStream_t stream) {
  return launch(Shape{1, 32}, stream, shuffles_kernel, args);
}

cudaError_t launch_atomics(const int* values, int n, int* counts, double* total, int* lock, int* most,
                           cudaStream_t stream) {
  Shape shape{static_cast<unsigned>((n + 63) / 64), 64};
  return launch(shape, stream, atomics_kernel, values, n, counts, total, lock, most);
}

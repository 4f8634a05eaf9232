// Weights as a factor: rows that begin at multiples of 16 bytes, K contiguous.
#pragma once

#include <algorithm>

#include "cuda/device/ptx.h"
#include "cuda/launch.h"

namespace fastlstm::cuda {

// Elements in a row of `count`, padded to a multiple of 16 bytes.
template <class T>
constexpr int64_t padded(int64_t count) {
  constexpr int64_t kUnit = 16 / sizeof(T);
  return (count + kUnit - 1) / kUnit * kUnit;
}

// Whether contiguous rows of `count` elements at `data` can be a factor without a copy.
template <class T>
bool is_factor(const void* data, int64_t count) {
  return padded<T>(count) == count && reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

constexpr int kCopyTile = 32;

// to[d][r][c] = from[d][r][c], or from[d][c][r] if `transposed`, for r < rows and c < columns; zero for columns <= c <
// width. Blocks of kCopyTile x 8 threads: column tiles, row tiles, directions.
template <class T>
__global__ void lstm_kernel_copy_matrix(const T* from, T* to, int64_t rows, int64_t columns, int64_t width,
                                        bool transposed) {
  FASTLSTM_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);  // [kCopyTile][kCopyTile + 1]
  const int64_t column0 = blockIdx.x * int64_t{kCopyTile};
  const int x = threadIdx.x % kCopyTile;
  from += blockIdx.z * rows * columns;
  to += blockIdx.z * rows * width;
  for (int64_t row0 = blockIdx.y * int64_t{kCopyTile}; row0 < rows; row0 += gridDim.y * int64_t{kCopyTile}) {
    // Neighbouring threads read neighbouring numbers, and write neighbouring ones.
    for (int y = threadIdx.x / kCopyTile; y < kCopyTile; y += 8) {
      const int64_t row = row0 + (transposed ? x : y), column = column0 + (transposed ? y : x);
      const bool there = row < rows && column < columns;
      const T value = there ? from[transposed ? column * rows + row : row * columns + column] : T{};
      tile[transposed ? x * (kCopyTile + 1) + y : y * (kCopyTile + 1) + x] = value;
    }
    __syncthreads();
    for (int y = threadIdx.x / kCopyTile; y < kCopyTile; y += 8) {
      const int64_t row = row0 + y, column = column0 + x;
      if (row < rows && column < width) to[row * width + column] = tile[y * (kCopyTile + 1) + x];
    }
    __syncthreads();
  }
}

template <class T>
void launch_copy(Launcher& launch, const T* from, T* to, int64_t D, int64_t rows, int64_t columns, int64_t width,
                 bool transposed) {
  const auto tiles = [](int64_t count) { return (count + kCopyTile - 1) / kCopyTile; };
  const dim3 grid(static_cast<unsigned>(tiles(width)), static_cast<unsigned>(std::min<int64_t>(tiles(rows), 65535)),
                  static_cast<unsigned>(D));
  launch("lstm_kernel_copy_matrix", lstm_kernel_copy_matrix<T>, grid, 8 * kCopyTile,
         kCopyTile * (kCopyTile + 1) * sizeof(T), from, to, rows, columns, width, transposed);
}

}  // namespace fastlstm::cuda

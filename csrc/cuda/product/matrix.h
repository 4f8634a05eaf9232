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

// Whether contiguous rows of `count` elements at both directions' places can be factors without a copy.
template <class T>
bool are_factors(const void* const (&data)[2], int64_t D, int64_t count) {
  bool aligned = true;
  for (int64_t d = 0; d < D; ++d) aligned = aligned && reinterpret_cast<uintptr_t>(data[d]) % 16 == 0;
  return padded<T>(count) == count && aligned;
}

constexpr int kCopyTile = 32;

// to[d][r][c] = from_d[r][c], or from_d[c][r] if `transposed`, for r < rows and c < columns; zero for columns <= c <
// width. Blocks of kCopyTile x 8 threads: column tiles, row tiles, directions.
template <class T>
__global__ void lstm_kernel_copy_matrix(const T* from_0, const T* from_1, T* to, int64_t rows, int64_t columns,
                                        int64_t width, bool transposed) {
  FASTLSTM_SHARED(shared);
  T* tile = reinterpret_cast<T*>(shared);  // [kCopyTile][kCopyTile + 1]
  const int64_t column0 = blockIdx.x * int64_t{kCopyTile};
  const int x = threadIdx.x % kCopyTile;
  const T* from = blockIdx.z == 0 ? from_0 : from_1;
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

// Where the factors of direction 0 lie, and how many bytes on those of direction 1, which may lie before them.
struct DirectionBytes {
  const unsigned char* first;
  int64_t stride;
};

// Each direction's matrix as a factor: itself, or in `copy` with rows padded to `width`, transposed or not.
template <class T>
DirectionBytes as_factors(Launcher& launch, const void* const (&from)[2], T* copy, int64_t D, int64_t rows,
                          int64_t columns, int64_t width, bool transposed) {
  if (copy == nullptr) {
    const auto at = [&](int d) { return reinterpret_cast<intptr_t>(from[d]); };
    return {static_cast<const unsigned char*>(from[0]), D == 2 ? at(1) - at(0) : 0};
  }
  const auto tiles = [](int64_t count) { return (count + kCopyTile - 1) / kCopyTile; };
  const dim3 grid(static_cast<unsigned>(tiles(width)), static_cast<unsigned>(std::min<int64_t>(tiles(rows), 65535)),
                  static_cast<unsigned>(D));
  launch("lstm_kernel_copy_matrix", lstm_kernel_copy_matrix<T>, grid, 8 * kCopyTile,
         kCopyTile * (kCopyTile + 1) * sizeof(T), static_cast<const T*>(from[0]), static_cast<const T*>(from[1]), copy,
         rows, columns, width, transposed);
  return {reinterpret_cast<const unsigned char*>(copy), rows * width * static_cast<int64_t>(sizeof(T))};
}

}  // namespace fastlstm::cuda

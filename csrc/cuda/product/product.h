// The product of a step, for one block: a tile of the state's rows times a tile of the weights' rows, over all of K.
//
// Tiles go through shared memory in stages of kRowBytes along K, copied by cp.async while earlier stages are
// multiplied. The sums end in shared memory, where any thread may take those of one row and unit, all gates together.
#pragma once

#include "cuda/product/matrix.h"
#include "cuda/product/operands.h"

namespace fastlstm::cuda {

// How the warps of a block share its tile: kWarpsM x kWarpsN parts of 16 kTilesM rows by 8 kTilesN columns, with
// kWarpsK warps on each part, which take turns along K. With few rows, only kWarpsK gives a block enough warps to hide
// latency.
template <int kWarpsM_, int kWarpsN_, int kWarpsK_, int kTilesM_, int kTilesN_, int kStages_>
struct Tile {
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_;
  static constexpr int kTilesM = kTilesM_, kTilesN = kTilesN_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kRows = 16 * kTilesM * kWarpsM, kColumns = 8 * kTilesN * kWarpsN;
};

// The factors. Rows of a and columns of b are `a_stride` and `b_stride` bytes apart; strides and addresses are
// multiples of 16. `bytes` of each take part, also a multiple of 16. Padding beyond K must be zero in one factor and
// finite in the other.
struct Factors {
  const unsigned char* a;  // [D] x [rows][K]
  int64_t a_stride_d, a_stride;
  const unsigned char* b;  // [D] x [gates][units][K]
  int64_t b_stride_d, b_stride;
  int64_t rows, units, bytes;
};

// Factors whose rows are adjacent and have `bytes` each: a [D, rows], and a matrix b of each direction.
inline Factors dense_factors(const void* a, int64_t rows, const DirectionBytes& b, int64_t units, int64_t bytes) {
  Factors f{};
  f.a = static_cast<const unsigned char*>(a);
  f.a_stride_d = rows * bytes;
  f.a_stride = bytes;
  f.b = b.first;
  f.b_stride_d = b.stride;
  f.b_stride = bytes;
  f.rows = rows;
  f.units = units;
  f.bytes = bytes;
  return f;
}

// A unit has kGates columns, `units` rows of B apart.
template <class Policy, class Tile, int kGates>
class Product {
 public:
  using Acc = typename Policy::Acc;
  static constexpr int kUnits = Tile::kColumns / kGates;

 private:
  static constexpr int kLines = Tile::kRows + Tile::kColumns;
  static constexpr int kStageBytes = kLines * kStride;
  static constexpr int kSumStride = Tile::kColumns + 2;
  static constexpr size_t kTileBytes = Tile::kStages * kStageBytes;
  static constexpr size_t kSumBytes = Tile::kWarpsK * Tile::kRows * kSumStride * sizeof(Acc);

 public:
  static constexpr size_t kSharedBytes = kTileBytes > kSumBytes ? kTileBytes : kSumBytes;

  __device__ __forceinline__ explicit Product(unsigned char* shared)
      : shared_(shared), sums_(reinterpret_cast<Acc*>(shared)) {}

  // All threads of the block, whose place in the grid (tile_grid) gives its rows and units: makes their sums, then
  // calls use(d, row, unit, sums) with the kGates sums of each.
  template <class Use>
  __device__ __forceinline__ void run(const Factors& f, const Use& use) {
    const int d = static_cast<int>(blockIdx.z);
    const int64_t row0 = blockIdx.x * int64_t{Tile::kRows}, unit0 = blockIdx.y * int64_t{kUnits};
    find_sources(f, d, row0, unit0);
    multiply_all(f);
    for (int place = threadIdx.x; place < Tile::kRows * kUnits; place += Tile::kThreads) {
      const int row = place / kUnits, unit = place % kUnits;
      if (row0 + row >= f.rows || unit0 + unit >= f.units) continue;
      Acc sums[kGates];
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) sums[gate] = sum(row, gate * kUnits + unit);
      use(d, row0 + row, unit0 + unit, sums);
    }
  }

 private:
  static constexpr int kParts = kRowBytes / 16;
  static constexpr int kCopies = (kLines * kParts + Tile::kThreads - 1) / Tile::kThreads;
  static_assert(Tile::kThreads % kParts == 0);
  static_assert(Tile::kColumns % kGates == 0 && Tile::kStages >= 2);
  static_assert(kRowBytes / Policy::kSlabBytes % Tile::kWarpsK == 0);

  __device__ __forceinline__ void multiply_all(const Factors& f) {
    const int count = static_cast<int>((f.bytes + kRowBytes - 1) / kRowBytes);
#pragma unroll
    for (int s = 0; s < Tile::kStages - 1; ++s) copy(f, s, s < count);
    Acc acc[Tile::kTilesM][Tile::kTilesN][4] = {};
    for (int s = 0; s < count; ++s) {
      ptx::cp_async_wait<Tile::kStages - 2>();
      // After this barrier stage s is visible to all threads, and all are done with stage s - 1, which the next copy
      // overwrites.
      __syncthreads();
      copy(f, s + Tile::kStages - 1, s + Tile::kStages - 1 < count);
      multiply(acc, shared_ + s % Tile::kStages * kStageBytes);
    }
    __syncthreads();  // all copies are done; the sums overwrite the tiles
    store(acc);
    __syncthreads();
  }

  // The sums of the warps along K are added in a fixed order, so that results repeat bit by bit.
  __device__ __forceinline__ Acc sum(int row, int column) const {
    const Acc* place = sums_ + row * kSumStride + column;
    Acc total = place[0];
#pragma unroll
    for (int w = 1; w < Tile::kWarpsK; ++w) total += place[w * Tile::kRows * kSumStride];
    return total;
  }

  // This thread copies the same 16-byte part of every kThreads / kParts-th row, first of A, then of B.
  __device__ __forceinline__ void find_sources(const Factors& f, int d, int64_t row0, int64_t unit0) {
    part_ = threadIdx.x % kParts * 16;
    const unsigned char *a = f.a + d * f.a_stride_d, *b = f.b + d * f.b_stride_d;
#pragma unroll
    for (int c = 0; c < kCopies; ++c) {
      const int line = threadIdx.x / kParts + c * (Tile::kThreads / kParts);
      if (line >= kLines) {
        sources_[c] = nullptr;
      } else if (line < Tile::kRows) {
        const int64_t row = row0 + line;
        sources_[c] = row < f.rows ? a + row * f.a_stride : nullptr;
      } else {
        const int column = line - Tile::kRows;
        const int64_t unit = unit0 + column % kUnits;
        sources_[c] = unit < f.units ? b + (column / kUnits * f.units + unit) * f.b_stride : nullptr;
      }
    }
  }

  __device__ __forceinline__ void copy(const Factors& f, int s, bool wanted) {
    if (wanted) {
      unsigned char* stage = shared_ + s % Tile::kStages * kStageBytes;
      const int64_t from = static_cast<int64_t>(s) * kRowBytes + part_;
#pragma unroll
      for (int c = 0; c < kCopies; ++c) {
        const int line = threadIdx.x / kParts + c * (Tile::kThreads / kParts);
        if (line >= kLines) continue;
        const bool there = sources_[c] != nullptr && from < f.bytes;
        ptx::cp_async_16(stage + line * kStride + part_, there ? sources_[c] + from : f.a, there);
      }
    }
    ptx::cp_async_commit();  // an empty group counts too, so that the waits above always refer to the same stage
  }

  __device__ __forceinline__ void multiply(Acc (&acc)[Tile::kTilesM][Tile::kTilesN][4],
                                           const unsigned char* stage) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned char* rows = stage + warp_m(warp) * Tile::kTilesM * 16 * kStride;
    const unsigned char* columns = stage + (Tile::kRows + warp_n(warp) * Tile::kTilesN * 8) * kStride;
// If a slab takes several products, unrolling further would need more registers.
#pragma unroll(Policy::kProductsASlab > 1 ? 2 : kRowBytes / Policy::kSlabBytes)
    for (int slab = 0; slab < kRowBytes / Policy::kSlabBytes / Tile::kWarpsK; ++slab) {
      const int k = (slab * Tile::kWarpsK + warp % Tile::kWarpsK) * Policy::kSlabBytes;
      typename Policy::A a[Tile::kTilesM];
#pragma unroll
      for (int m = 0; m < Tile::kTilesM; ++m) Policy::load(a[m], rows + m * 16 * kStride + k, lane);
#pragma unroll
      for (int n = 0; n < Tile::kTilesN; ++n) {
        typename Policy::B b;
        Policy::load(b, columns + n * 8 * kStride + k, lane);
#pragma unroll
        for (int m = 0; m < Tile::kTilesM; ++m) Policy::multiply(acc[m][n], a[m], b);
      }
    }
  }

  __device__ __forceinline__ void store(const Acc (&acc)[Tile::kTilesM][Tile::kTilesN][4]) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Acc* part = sums_ + warp % Tile::kWarpsK * Tile::kRows * kSumStride;
#pragma unroll
    for (int m = 0; m < Tile::kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < Tile::kTilesN; ++n) {
#pragma unroll
        for (int place = 0; place < 4; ++place) {
          const int row = (warp_m(warp) * Tile::kTilesM + m) * 16 + lane / 4 + place / 2 * 8;
          const int column = (warp_n(warp) * Tile::kTilesN + n) * 8 + lane % 4 * 2 + place % 2;
          part[row * kSumStride + column] = acc[m][n][place];
        }
      }
    }
  }

  static __device__ __forceinline__ int warp_n(int warp) { return warp / Tile::kWarpsK % Tile::kWarpsN; }
  static __device__ __forceinline__ int warp_m(int warp) { return warp / (Tile::kWarpsK * Tile::kWarpsN); }

  unsigned char* shared_;
  Acc* sums_;
  int part_;
  const unsigned char* sources_[kCopies];
};

}  // namespace fastlstm::cuda

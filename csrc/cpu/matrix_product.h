// What the kernels for large products of matrices are asked to do: plain pointers, sizes and strides. They are our own
// and not a BLAS's, whose rate depends on whose processor it is (benchmarks/log.md), and whose sums on the number of
// rows and threads.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cpu/threads.h"

namespace fastlstm {

// Numbers that multiply-adds sum up at once, at most; longer sums are made of slabs.
inline constexpr int64_t kProductSlab = 256;

// A factor of a product as it lies: number k of a line is at data + line * line_stride + k * depth_stride, one of the
// strides being 1. Lines are the rows of the left factor and the columns of the right one; k is what is summed over.
// Numbers are of the type that is accumulated, or bfloat16 where products take that (`MatrixProducts::narrow`). A
// number is taken as a sum of `parts` bfloat16 numbers: three are all of a float32 one, two 16 digits, one 8.
// Multiply-adds take it as it is. Lines may come in equal groups, as the four gates of all units do: workers then share
// each group, so that one worker has all gates of its units. Tiles do not heed that.
struct Factor {
  const void* data;
  DType dtype;
  int64_t lines, line_stride, depth_stride;
  int parts;
  int groups = 1;

  template <class T>
  const T* at(int64_t line, int64_t k) const {
    return static_cast<const T*>(data) + line * line_stride + k * depth_stride;
  }
};

// One of the matrices that the left factor is multiplied by, and where the product goes: out [left lines, right lines].
struct Target {
  Factor right;
  const void* packed;  // the factor as `pack` left it, or null: packed on the way
  void* out;           // in the type that is accumulated
  int64_t out_stride;
  bool add;  // to what `out` holds, which else is not read
};

struct ProductArgs {
  int64_t depth;
  Factor left;
  const Target* targets;
  int target_count;
  int right_shares =
      0;  // workers between whom the lines of the right factors are shared; 0: as is best for the product
};

// Parts of the left and the right factor are those of an exact split (3, 3), or (2, 2), (gradient_parts, 1), (1, 1).
// Results are the same bits for any number of threads, and but on tiles for any number of lines too.
struct MatrixProducts {
  // Whether a product is reckoned to be faster than the one by which it can be replaced: on tiles, that by
  // multiply-adds.
  bool (*worthwhile)(int64_t rows, int64_t columns, int64_t depth, int left_parts, int right_parts);
  int64_t (*packed_bytes)(const Factor& right, int64_t depth);
  void (*pack)(const Factor& right, int64_t depth, void* packed, const Threads&);  // packed: aligned to 64 bytes
  void (*multiply)(const ProductArgs&, const Threads&);
  bool narrow = false;  // whether factors of one part may be bfloat16 as they lie
  int gradient_parts =
      2;  // of a float32 gradient beside values of one part: 1 where a second one would cost what pairs gain
};

}  // namespace fastlstm

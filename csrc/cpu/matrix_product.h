// Arguments of the kernels for large matrix products: plain pointers, sizes and strides. These products do not go to a
// BLAS: the rate of one depends on the processor's vendor (benchmarks/log.md), and its sums on the number of rows and
// threads.
#pragma once

#include <cstdint>

#include "core/types.h"
#include "cpu/threads.h"

namespace fastlstm {

// The largest depth that multiply-adds sum in one go; longer sums are added up slab by slab.
inline constexpr int64_t kProductSlab = 384;
// The same for sums over rows, which are many: the error of one chain of n additions grows with n, and nn.LSTM's gradients
// of weights are sums of a step's rows each.
inline constexpr int64_t kRowsChain = 96;

// A factor where it lies: number k of a line is at data + line * line_stride + k * depth_stride, and one of the strides
// is 1. Lines are the rows of the left factor or the columns of the right one; k is summed over.
//
// Numbers are of the accumulation type, or bfloat16 where a product takes that (`MatrixProducts::narrow`). `parts` is
// the number of bfloat16 numbers that stand for one: three are a whole float32 number, two keep 16 binary digits, one
// 8. Multiply-adds ignore `parts`.
//
// Lines may form `groups` of equal size, such as the four gates. Workers then share every group, so that one worker has
// all gates of its units. Tiles ignore groups.
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

// One matrix that the left factor is multiplied by, and where the product goes: out [left lines, right lines].
struct Target {
  Factor right;
  const void* packed;  // the factor as `pack` left it, or null: the product packs it
  void* out;           // in the accumulation type
  int64_t out_stride;
  bool add;  // to what `out` holds; otherwise `out` is not read
};

struct ProductArgs {
  int64_t depth;
  Factor left;
  const Target* targets;
  int target_count;
  int right_shares = 0;          // workers that share the lines of the right factors; 0: the product chooses
  int64_t chain = kProductSlab;  // the most numbers that are summed before the sum is added to `out`; tiles ignore it
};

// Parts of the left and the right factor are (3, 3), which is exact, or (2, 2), (gradient_parts, 1), (1, 1). Results
// have the same bits for any number of threads, and, except on tiles, for any number of lines.
struct MatrixProducts {
  // Whether this product is expected to be faster than its alternative: for tiles, multiply-adds.
  bool (*worthwhile)(int64_t rows, int64_t columns, int64_t depth, int left_parts, int right_parts);
  int64_t (*packed_bytes)(const Factor& right, int64_t depth);
  void (*pack)(const Factor& right, int64_t depth, void* packed, const Threads&);  // packed: aligned to 64 bytes
  void (*multiply)(const ProductArgs&, const Threads&);
  bool narrow = false;  // whether factors of one part may be bfloat16 tensors
  bool widens = false;  // whether the right factor may be bfloat16 beside a left one in the accumulation type
  int gradient_parts =
      2;  // parts of a float32 gradient beside values of one part: 1 where a second one would cost what pairs gain
};

}  // namespace fastlstm

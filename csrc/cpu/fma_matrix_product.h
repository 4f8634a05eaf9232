// Products of large float32 matrices by fused multiply-adds (matrix_product.h says which). Included inside a namespace of an
// instruction set, after product.h.
//
// The blocking of Goto & van de Geijn (2008): a strip of the right factor, kStrip vectors of its lines by a chunk of depth, stays in the
// first-level cache while blocks of the left factor, packed in the second-level cache, go past it; the sums of six rows by a strip stay
// in registers for the length of a chunk. A sum is made chunk by chunk, k rising, by itself: its bits depend neither on the lines beside
// it nor on threads.

constexpr int kStrip = kRegisters == 32 ? 4 : 2;  // vectors: kMaxRows x kStrip sums, and the strip's vectors beside them

class FmaMatrixProduct {
 public:
  // The depth in chunks of at most kProductChunk, as even as can be. A chunk of a strip is 16 KiB with vectors of 32 bytes, half of a
  // first-level cache of 32 KiB, and 64 KiB with vectors of 64 bytes, which then comes from the second-level cache.
  struct Chunks {
    int64_t depth, count, size;

    explicit Chunks(int64_t total) : depth(total), count((total + kProductChunk - 1) / kProductChunk), size((total + count - 1) / count) {}
    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t numbers(int64_t chunk) const { return std::min(size, depth - begin(chunk)); }
  };

  static constexpr int kWidth = kStrip * lanes<float>;

  static int64_t strips_of(int64_t lines) { return (lines + kWidth - 1) / kWidth; }
  static int64_t packed_numbers(int64_t lines, int64_t depth) {
    const Chunks chunks(depth);
    return chunks.count * strips_of(lines) * chunks.size * kWidth;
  }

  FmaMatrixProduct(const ProductArgs& args, const Threads& threads) : a_(args), threads_(threads), chunks_(args.depth) {
    row_panels_ = (a_.left.lines + kMaxRows - 1) / kMaxRows;
    for (int t = 0; t < a_.target_count; ++t) strips_ += strips_of(a_.targets[t].right.lines);
    // About a quarter of the second-level cache, for strips and sums pass through it too.
    block_panels_ = std::clamp<int64_t>(second_level_bytes() / 4 / (kMaxRows * chunks_.size * sizeof(float)), 1, row_panels_);
    share();
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used(), Workspace::kProduct));
    lay_out(layout);
  }

  void run() {
    for (int t = 0; t < a_.target_count; ++t) {
      if (a_.targets[t].packed == nullptr) pack(a_.targets[t].right, a_.depth, packed_[t], threads_);
    }
    const auto work = [](int64_t begin, int64_t end, void* p) {
      for (int64_t n = begin; n < end; ++n) static_cast<FmaMatrixProduct*>(p)->multiply_share(n);
    };
    if (row_shares_ * strip_shares_ == 1) {
      work(0, 1, this);
    } else {
      threads_.parallel_for(row_shares_ * strip_shares_, work, this);
    }
  }

  // [chunk][strip][k][lane]
  static void pack(const Factor& right, int64_t depth, float* packed, const Threads& threads) {
    const Chunks chunks(depth);
    const int64_t strips = strips_of(right.lines);
    share_out(threads, threads.count, chunks.count * strips, right.lines * depth, [&](int64_t n) {
      const int64_t chunk = n / strips, first = n % strips * kWidth;
      pack_strip(right, first, chunks.begin(chunk), chunks.numbers(chunk), packed + n * chunks.size * kWidth);
    });
  }

 private:
  // Rows or strips are what workers share, whichever leaves the largest share smallest; of equal ones rows, which are packed once then.
  void share() {
    constexpr double kProductsPerThread = 1e6;
    const double all = static_cast<double>(a_.left.lines) * a_.depth * strips_ * kWidth;
    const int64_t workers = std::max<int64_t>(1, static_cast<int64_t>(std::min<double>(threads_.count, all / kProductsPerThread)));
    const auto largest = [](int64_t count, int64_t shares) { return (count + shares - 1) / shares; };
    int64_t best = -1;
    for (int64_t r = std::min(workers, row_panels_); r >= 1; --r) {
      const int64_t s = std::min(workers / r, strips_), cost = largest(row_panels_, r) * largest(strips_, s);
      if (best >= 0 && cost >= best) continue;
      best = cost;
      row_shares_ = r;
      strip_shares_ = s;
    }
    block_panels_ = std::min(block_panels_, largest(row_panels_, row_shares_));
  }

  void lay_out(Layout& layout) {
    for (int t = 0; t < a_.target_count; ++t) {
      const Target& target = a_.targets[t];
      packed_[t] = layout.array<float>(target.packed != nullptr ? 0 : packed_numbers(target.right.lines, a_.depth));
    }
    blocks_ = layout.array<float>(row_shares_ * strip_shares_ * block_panels_ * kMaxRows * chunks_.size);
  }

  static void pack_strip(const Factor& right, int64_t first, int64_t k0, int64_t numbers, float* out) {
    constexpr int L = lanes<float>;
    for (int v = 0; v < kStrip; ++v) {
      const int64_t line = first + v * L, count = std::clamp<int64_t>(right.lines - line, 0, L);
      const float* from = right.data + (count > 0 ? line : 0) * right.line_stride + k0 * right.depth_stride;
      if (right.depth_stride == 1) {
        pack_transposed<float>(from, right.line_stride, count, numbers, out + v * L, kWidth);
      } else if (count == L) {
        for (int64_t k = 0; k < numbers; ++k) store_raw(out + k * kWidth + v * L, load_raw<Vec<float>>(from + k * right.depth_stride));
      } else {
        for (int64_t k = 0; k < numbers; ++k) {
          store_raw(out + k * kWidth + v * L, load_part<float>(from + k * right.depth_stride, count));
        }
      }
    }
  }

  // `rows` (1 to kMaxRows) lines of the left factor: [k][row].
  void pack_rows(int64_t first, int rows, int64_t k0, int64_t numbers, float* out) const {
    const Factor& left = a_.left;
    const float* from = left.data + first * left.line_stride + k0 * left.depth_stride;
    if (left.line_stride == 1) {
      for (int64_t k = 0; k < numbers; ++k) __builtin_memcpy(out + k * rows, from + k * left.depth_stride, rows * sizeof(float));
    } else {
      for (int64_t k = 0; k < numbers; ++k) {
        for (int r = 0; r < rows; ++r) out[k * rows + r] = from[r * left.line_stride + k * left.depth_stride];
      }
    }
  }

  int rows_of(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kMaxRows, a_.left.lines - panel * kMaxRows)); }

  void multiply_share(int64_t n) {
    const int64_t row_share = n / strip_shares_, strip_share = n % strip_shares_;
    const int64_t row_end = row_panels_ * (row_share + 1) / row_shares_;
    const int64_t first_strip = strips_ * strip_share / strip_shares_, last_strip = strips_ * (strip_share + 1) / strip_shares_;
    const int64_t panel_numbers = kMaxRows * chunks_.size;
    float* block = blocks_ + n * block_panels_ * panel_numbers;
    for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) {
      const int64_t numbers = chunks_.numbers(chunk);
      for (int64_t rows = row_panels_ * row_share / row_shares_; rows < row_end; rows += block_panels_) {
        const int64_t rows_end = std::min(rows + block_panels_, row_end);
        for (int64_t p = rows; p < rows_end; ++p) {
          pack_rows(p * kMaxRows, rows_of(p), chunks_.begin(chunk), numbers, block + (p - rows) * panel_numbers);
        }
        int64_t before = 0;
        for (int t = 0; t < a_.target_count; ++t) {
          const Target& target = a_.targets[t];
          const int64_t strips = strips_of(target.right.lines);
          const float* packed = (target.packed != nullptr ? static_cast<const float*>(target.packed) : packed_[t]) +
                                chunk * strips * chunks_.size * kWidth;
          for (int64_t s = std::max(first_strip - before, int64_t{0}); s < std::min(last_strip - before, strips); ++s) {
            const int64_t width = std::min<int64_t>(kWidth, target.right.lines - s * kWidth);
            const bool add = target.add || chunk > 0;
            for (int64_t p = rows; p < rows_end; ++p) {
              float* out = target.out + p * kMaxRows * target.out_stride + s * kWidth;
              multiply(rows_of(p), block + (p - rows) * panel_numbers, packed + s * chunks_.size * kWidth, numbers, out, target.out_stride,
                       width, add);
            }
          }
          before += strips;
        }
      }
    }
  }

  static void multiply(int rows, const float* left, const float* right, int64_t numbers, float* out, int64_t stride, int64_t width,
                       bool add) {
    using Function = void (*)(const float*, const float*, int64_t, float*, int64_t, int64_t, bool);
#define FASTLSTM_WIDTHS(MR) {strip<MR, 1>, strip<MR, 2>, strip<MR, kStrip == 4 ? 3 : 2>, strip<MR, kStrip>}
    static constexpr Function table[kMaxRows][4] = {FASTLSTM_WIDTHS(1), FASTLSTM_WIDTHS(2), FASTLSTM_WIDTHS(3),
                                                    FASTLSTM_WIDTHS(4), FASTLSTM_WIDTHS(5), FASTLSTM_WIDTHS(6)};
#undef FASTLSTM_WIDTHS
    table[rows - 1][(width - 1) / lanes<float>](left, right, numbers, out, stride, width, add);
  }

  // MR rows by the NV vectors of a strip that have lines.
  template <int MR, int NV>
  __attribute__((noinline)) static void strip(const float* left, const float* right, int64_t numbers, float* out, int64_t stride,
                                              int64_t width, bool add) {
    constexpr int L = lanes<float>;
    Vec<float> sum[MR][NV] = {};
    for (int64_t k = 0; k < numbers; ++k) {
      Vec<float> vectors[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) vectors[v] = load_raw<Vec<float>>(right + k * kWidth + v * L);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
        const Vec<float> x = splat(left[k * MR + r]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[r][v] += x * vectors[v];
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* to = out + r * stride + v * L;
        const int64_t count = std::min<int64_t>(L, width - v * L);
        if (count == L) {
          store_raw(to, add ? load_raw<Vec<float>>(to) + sum[r][v] : sum[r][v]);
        } else {
          store_part<float>(to, add ? load_part<float>(to, count) + sum[r][v] : sum[r][v], count);
        }
      }
    }
  }

  static constexpr int kTargets = 2;
  const ProductArgs& a_;
  const Threads& threads_;
  const Chunks chunks_;
  int64_t row_panels_, strips_ = 0;              // of kMaxRows rows; of all targets
  int64_t row_shares_ = 1, strip_shares_ = 1, block_panels_;
  float* packed_[kTargets];                      // right factors that did not come packed
  float* blocks_;                                // [share][panel] of a chunk of rows
};

inline constexpr MatrixProducts fma_products{
    [](int64_t rows, int64_t columns, int64_t depth, int, int) { return rows > 0 && columns > 0 && depth > 0; },
    [](const Factor& right, int64_t depth) {
      return FmaMatrixProduct::packed_numbers(right.lines, depth) * static_cast<int64_t>(sizeof(float));
    },
    [](const Factor& right, int64_t depth, void* packed, const Threads& threads) {
      FmaMatrixProduct::pack(right, depth, static_cast<float*>(packed), threads);
    },
    [](const ProductArgs& args, const Threads& threads) { FmaMatrixProduct(args, threads).run(); }};

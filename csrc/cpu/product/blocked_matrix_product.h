// Products of large matrices (matrix_product.h says which), blocked for the caches. Included inside a namespace of an instruction set,
// after product.h.
//
// The blocking of Goto & van de Geijn (2008): a strip of the right factor, kStrip vectors of its lines by a chunk of depth, stays in the
// first-level cache while blocks of the left factor, packed in the second-level cache, go past it; the sums of six rows by a strip stay
// in registers for the length of a chunk. A sum is made chunk by chunk, k rising, by itself: its bits depend neither on the lines beside
// it nor on threads.

constexpr int kStrip = kRegisters == 32 ? 4 : 2;  // vectors: kMaxRows x kStrip sums, and the strip's vectors beside them
template <class Sum>
constexpr int kStripLines = kStrip * lanes<Sum>;

// How numbers are packed and multiplied is the Kind (fma_matrix_product.h, pair_matrix_product.h):
//   Sum: what is accumulated. Left, Right: a packed element, of kNumbers consecutive numbers of a line. kChunk: numbers summed at once.
//   pack_strip: numbers of kStripLines lines of the right factor, [element][line], zeros where there is none.
//   pack_rows: of consecutive lines of the left factor, panels of up to kMaxRows [element][line of the panel], `panel` elements apart.
//   add: the products of one element of MR rows and of NV vectors of lines to their sums.
template <class Kind>
class BlockedProduct {
  using Sum = typename Kind::Sum;
  using Left = typename Kind::Left;
  using Right = typename Kind::Right;

 public:
  // The depth in chunks of at most kChunk numbers, as even as can be.
  struct Chunks {
    int64_t depth, count, size;

    explicit Chunks(int64_t total) : depth(total) {
      const int64_t wanted = (total + Kind::kChunk - 1) / Kind::kChunk, even = (total + wanted - 1) / wanted;
      size = (even + Kind::kNumbers - 1) / Kind::kNumbers * Kind::kNumbers;
      count = (total + size - 1) / size;
    }
    int64_t begin(int64_t chunk) const { return chunk * size; }
    int64_t numbers(int64_t chunk) const { return std::min(size, depth - begin(chunk)); }
    int64_t elements() const { return size / Kind::kNumbers; }
    int64_t elements(int64_t chunk) const { return (numbers(chunk) + Kind::kNumbers - 1) / Kind::kNumbers; }
  };

  static constexpr int kWidth = kStripLines<Sum>;

  static int64_t strips_of(int64_t lines) { return (lines + kWidth - 1) / kWidth; }
  static int64_t packed_elements(int64_t lines, int64_t depth) {
    const Chunks chunks(depth);
    return chunks.count * strips_of(lines) * chunks.elements() * kWidth;
  }

  BlockedProduct(const ProductArgs& args, const Threads& threads) : a_(args), threads_(threads), chunks_(args.depth) {
    row_panels_ = (a_.left.lines + kMaxRows - 1) / kMaxRows;
    for (int t = 0; t < a_.target_count; ++t) strips_ += strips_of(a_.targets[t].right.lines);
    // About a quarter of the second-level cache, for strips and sums pass through it too.
    block_panels_ = std::clamp<int64_t>(second_level_bytes() / 4 / (panel_elements() * sizeof(Left)), 1, row_panels_);
    share();
    fleeting_ = row_shares_ == 1 && row_panels_ <= block_panels_;
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used(), Workspace::kProduct));
    lay_out(layout);
  }

  void run() {
    for (int t = 0; t < a_.target_count; ++t) {
      if (a_.targets[t].packed == nullptr && !fleeting_) pack(a_.targets[t].right, a_.depth, packed_[t], threads_);
    }
    const auto work = [](int64_t begin, int64_t end, void* p) {
      for (int64_t n = begin; n < end; ++n) static_cast<BlockedProduct*>(p)->multiply_share(n);
    };
    if (row_shares_ * strip_shares_ == 1) {
      work(0, 1, this);
    } else {
      threads_.parallel_for(row_shares_ * strip_shares_, work, this);
    }
  }

  // [chunk][strip][element][line]
  static void pack(const Factor& right, int64_t depth, Right* packed, const Threads& threads) {
    const Chunks chunks(depth);
    const int64_t strips = strips_of(right.lines);
    share_out(threads, threads.count, chunks.count * strips, right.lines * depth, [&](int64_t n) {
      const int64_t chunk = n / strips, first = n % strips * kWidth;
      Kind::pack_strip(right, first, chunks.begin(chunk), chunks.numbers(chunk), packed + n * chunks.elements() * kWidth);
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
      packed_[t] = layout.array<Right>(target.packed != nullptr || fleeting_ ? 0 : packed_elements(target.right.lines, a_.depth));
    }
    strips_packed_ = layout.array<Right>(fleeting_ ? strip_shares_ * strip_elements() : 0);
    blocks_ = layout.array<Left>(row_shares_ * strip_shares_ * block_panels_ * panel_elements());
  }

  int64_t panel_elements() const { return kMaxRows * chunks_.elements(); }
  int64_t strip_elements() const { return chunks_.elements() * kWidth; }
  int rows_of(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kMaxRows, a_.left.lines - panel * kMaxRows)); }

  void multiply_share(int64_t n) {
    const int64_t row_share = n / strip_shares_, strip_share = n % strip_shares_;
    const int64_t row_end = row_panels_ * (row_share + 1) / row_shares_;
    const int64_t first_strip = strips_ * strip_share / strip_shares_, last_strip = strips_ * (strip_share + 1) / strip_shares_;
    Left* block = blocks_ + n * block_panels_ * panel_elements();
    for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) {
      for (int64_t rows = row_panels_ * row_share / row_shares_; rows < row_end; rows += block_panels_) {
        const int64_t rows_end = std::min(rows + block_panels_, row_end), first = rows * kMaxRows;
        Kind::pack_rows(a_.left, first, std::min(rows_end * kMaxRows, a_.left.lines) - first, chunks_.begin(chunk), chunks_.numbers(chunk),
                        block, panel_elements());
        int64_t before = 0;
        for (int t = 0; t < a_.target_count; ++t) {
          const Target& target = a_.targets[t];
          const int64_t strips = strips_of(target.right.lines);
          const bool fleeting = target.packed == nullptr && fleeting_;
          const Right* packed = (target.packed != nullptr ? static_cast<const Right*>(target.packed) : packed_[t]) +
                                (fleeting ? 0 : chunk * strips * strip_elements());
          for (int64_t s = std::max(first_strip - before, int64_t{0}); s < std::min(last_strip - before, strips); ++s) {
            const int64_t width = std::min<int64_t>(kWidth, target.right.lines - s * kWidth);
            const bool add = target.add || chunk > 0;
            const Right* strip = fleeting ? strips_packed_ + n * strip_elements() : packed + s * strip_elements();
            if (fleeting) {
              Kind::pack_strip(target.right, s * kWidth, chunks_.begin(chunk), chunks_.numbers(chunk), const_cast<Right*>(strip));
            }
            for (int64_t p = rows; p < rows_end; ++p) {
              Sum* out = static_cast<Sum*>(target.out) + p * kMaxRows * target.out_stride + s * kWidth;
              multiply(rows_of(p), block + (p - rows) * panel_elements(), strip, chunks_.elements(chunk), out, target.out_stride, width,
                       add);
            }
          }
          before += strips;
        }
      }
    }
  }

  static void multiply(int rows, const Left* left, const Right* right, int64_t elements, Sum* out, int64_t stride, int64_t width,
                       bool add) {
    using Function = void (*)(const Left*, const Right*, int64_t, Sum*, int64_t, int64_t, bool);
#define FASTLSTM_WIDTHS(MR) {strip<MR, 1>, strip<MR, 2>, strip<MR, kStrip == 4 ? 3 : 2>, strip<MR, kStrip>}
    static constexpr Function table[kMaxRows][4] = {FASTLSTM_WIDTHS(1), FASTLSTM_WIDTHS(2), FASTLSTM_WIDTHS(3),
                                                    FASTLSTM_WIDTHS(4), FASTLSTM_WIDTHS(5), FASTLSTM_WIDTHS(6)};
#undef FASTLSTM_WIDTHS
    table[rows - 1][(width - 1) / lanes<Sum>](left, right, elements, out, stride, width, add);
  }

  // MR rows by the NV vectors of a strip that have lines.
  template <int MR, int NV>
  __attribute__((noinline)) static void strip(const Left* left, const Right* right, int64_t elements, Sum* out, int64_t stride,
                                              int64_t width, bool add) {
    constexpr int L = lanes<Sum>;
    // Where the sums go was last seen a chunk ago, and comes from a far cache while they are made.
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV; v += kLine) __builtin_prefetch(out + r * stride + v * L, 1);
    }
    Vec<Sum> sum[MR][NV] = {};
    for (int64_t k = 0; k < elements; ++k) Kind::template add<MR, NV>(left + k * MR, right + k * kWidth, sum);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        Sum* to = out + r * stride + v * L;
        const int64_t count = std::min<int64_t>(L, width - v * L);
        if (count == L) {
          store_raw(to, add ? load_raw<Vec<Sum>>(to) + sum[r][v] : sum[r][v]);
        } else {
          store_part<Sum>(to, add ? load_part<Sum>(to, count) + sum[r][v] : sum[r][v], count);
        }
      }
    }
  }

  static constexpr int kTargets = 2;
  static constexpr int kLine = std::max<int>(1, 64 / FASTLSTM_SIMD_BYTES);  // vectors of a cache line
  const ProductArgs& a_;
  const Threads& threads_;
  const Chunks chunks_;
  int64_t row_panels_, strips_ = 0;              // of kMaxRows rows; of all targets
  int64_t row_shares_ = 1, strip_shares_ = 1, block_panels_;
  bool fleeting_;                                // rows are one block: a strip is used up once it is packed, and only one is kept
  Right* packed_[kTargets];                      // right factors that did not come packed
  Right* strips_packed_;                         // [share], fleeting
  Left* blocks_;                                 // [share][panel] of a chunk of rows
};

// Products of large matrices (matrix_product.h), blocked for the caches. Included inside a namespace of an instruction
// set, after product.h.
//
// The blocking of Goto & van de Geijn (2008). A strip of the right factor, kStrip vectors of its lines by a slab of
// depth, stays in the first-level cache; blocks of the left factor, packed in the second-level cache, are multiplied by
// it; the sums of six rows by a strip stay in registers for the length of a slab. A sum is made slab by slab with
// rising k, independent of others: its bits depend neither on other lines nor on threads.

// Vectors of a strip: registers hold kMaxRows x kStrip sums and the strip's vectors.
constexpr int kStrip = kRegisters == 32 ? 4 : 2;
template <class Sum>
constexpr int kStripLines = kStrip * lanes<Sum>;

// Kind (fma_matrix_product.h, pair_matrix_product.h) is how numbers are packed and multiplied:
//   Sum: the accumulation type. Left, Right: packed elements, each of kNumbers consecutive numbers of a line.
//   kSlab: numbers summed in one go.
//   pack_strip: kStripLines lines of the right factor as [element][line], zeros for lines that do not exist.
//   pack_rows: consecutive lines of the left factor in panels of up to kMaxRows, [element][line of the panel],
//   `panel` elements apart.
//   add: adds the products of one element of MR rows and of NV vectors of lines to their sums.
template <class Kind>
class BlockedProduct {
  using Sum = typename Kind::Sum;
  using Left = typename Kind::Left;
  using Right = typename Kind::Right;

 public:
  // The depth in slabs of at most kSlab numbers, as even as possible.
  struct Slabs {
    int64_t depth, count, size;

    explicit Slabs(int64_t total) : depth(total) {
      const int64_t wanted = (total + Kind::kSlab - 1) / Kind::kSlab, even = (total + wanted - 1) / wanted;
      size = (even + Kind::kNumbers - 1) / Kind::kNumbers * Kind::kNumbers;
      count = (total + size - 1) / size;
    }
    int64_t begin(int64_t slab) const { return slab * size; }
    int64_t numbers(int64_t slab) const { return std::min(size, depth - begin(slab)); }
    int64_t elements() const { return size / Kind::kNumbers; }
    int64_t elements(int64_t slab) const { return (numbers(slab) + Kind::kNumbers - 1) / Kind::kNumbers; }
  };

  static constexpr int kWidth = kStripLines<Sum>;

  // The lines of a factor in ranges of at most `most` lines, each within one group.
  struct LineRanges {
    int64_t most, group_lines, per_group, count;

    LineRanges(const Factor& f, int64_t most)
        : most(most),
          group_lines(f.lines / f.groups),
          per_group((group_lines + most - 1) / most),
          count(per_group * f.groups) {}
    int64_t first_line(int64_t range) const { return range / per_group * group_lines + range % per_group * most; }
    int64_t lines(int64_t range) const { return std::min(most, group_lines - range % per_group * most); }

    // visit(begin, end) for the ranges of one share, in each group.
    template <class Visit>
    void for_share(int64_t share, int64_t shares, const Visit& visit) const {
      for (int64_t group = 0; group < count; group += per_group) {
        visit(group + per_group * share / shares, group + per_group * (share + 1) / shares);
      }
    }
  };

  static LineRanges strips_of(const Factor& right) { return {right, kWidth}; }
  static int64_t packed_elements(const Factor& right, int64_t depth) {
    const Slabs slabs(depth);
    return slabs.count * strips_of(right).count * slabs.elements() * kWidth;
  }

  BlockedProduct(const ProductArgs& args, const Threads& threads)
      : a_(args), threads_(threads), slabs_(args.depth), panels_(args.left, kMaxRows) {
    for (int t = 0; t < a_.target_count; ++t) strips_ += strips_of(a_.targets[t].right).count;
    // About a quarter of the second-level cache: strips and sums pass through it too.
    block_panels_ =
        std::clamp<int64_t>(second_level_bytes() / 4 / (panel_elements() * sizeof(Left)), 1, panels_.per_group);
    share();
    fleeting_ = row_shares_ == 1 && panels_.count <= block_panels_;
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used(), Workspace::kProduct));
    lay_out(layout);
  }

  void run() {
    if (!fleeting_) pack_targets();
    const auto work = [](int64_t begin, int64_t end, void* p) {
      for (int64_t n = begin; n < end; ++n) static_cast<BlockedProduct*>(p)->multiply_share(n);
    };
    if (row_shares_ * strip_shares_ == 1) {
      work(0, 1, this);
    } else {
      threads_.parallel_for(row_shares_ * strip_shares_, work, this);
    }
  }

  // [slab][strip][element][line]
  static void pack(const Factor& right, int64_t depth, Right* packed, const Threads& threads) {
    const Slabs slabs(depth);
    const LineRanges strips = strips_of(right);
    share_out(threads, threads.count, slabs.count * strips.count, right.lines * depth, [&](int64_t n) {
      pack_strip(right, strips, n % strips.count, slabs, n / strips.count, packed + n * slabs.elements() * kWidth);
    });
  }

 private:
  // Right factors that did not come packed, all at once: threads meet once.
  void pack_targets() {
    int64_t end[kTargets + 1] = {}, lines = 0;
    for (int t = 0; t < a_.target_count; ++t) {
      const bool packed = a_.targets[t].packed != nullptr;
      end[t + 1] = end[t] + (packed ? 0 : slabs_.count * strips_of(a_.targets[t].right).count);
      if (!packed) lines += a_.targets[t].right.lines;
    }
    if (lines == 0) return;
    share_out(threads_, threads_.count, end[a_.target_count], lines * a_.depth, [&](int64_t n) {
      int t = 0;
      while (n >= end[t + 1]) ++t;
      const LineRanges strips = strips_of(a_.targets[t].right);
      const int64_t k = n - end[t];
      pack_strip(a_.targets[t].right, strips, k % strips.count, slabs_, k / strips.count,
                 packed_[t] + k * strip_elements());
    });
  }

  static void pack_strip(const Factor& right, const LineRanges& strips, int64_t strip, const Slabs& slabs, int64_t slab,
                         Right* packed) {
    Factor group = right;
    group.lines = strips.first_line(strip) + strips.lines(strip);  // later lines belong to another group
    Kind::pack_strip(group, strips.first_line(strip), slabs.begin(slab), slabs.numbers(slab), packed);
  }

  // Workers share rows or strips, whichever makes the largest share smaller; if equal, rows, which are then packed
  // once.
  void share() {
    constexpr double kProductsPerThread = 1e6;
    const double all = static_cast<double>(a_.left.lines) * a_.depth * strips_ * kWidth;
    const int64_t workers =
        std::max<int64_t>(1, static_cast<int64_t>(std::min<double>(threads_.count, all / kProductsPerThread)));
    const auto largest = [](int64_t count, int64_t shares) { return (count + shares - 1) / shares; };
    if (a_.right_shares > 0) {
      strip_shares_ = std::min<int64_t>(a_.right_shares, workers);
      row_shares_ = std::min(workers / strip_shares_, panels_.count);
    } else {
      int64_t best = -1;
      for (int64_t r = std::min(workers, panels_.count); r >= 1; --r) {
        const int64_t s = std::min(workers / r, strips_), cost = largest(panels_.count, r) * largest(strips_, s);
        if (best >= 0 && cost >= best) continue;
        best = cost;
        row_shares_ = r;
        strip_shares_ = s;
      }
    }
    block_panels_ = std::min(block_panels_, largest(panels_.per_group, row_shares_));
  }

  void lay_out(Layout& layout) {
    for (int t = 0; t < a_.target_count; ++t) {
      const Target& target = a_.targets[t];
      packed_[t] =
          layout.array<Right>(target.packed != nullptr || fleeting_ ? 0 : packed_elements(target.right, a_.depth));
    }
    strips_packed_ = layout.array<Right>(fleeting_ ? strip_shares_ * strip_elements() : 0);
    blocks_ = layout.array<Left>(row_shares_ * strip_shares_ * block_panels_ * panel_elements());
  }

  int64_t panel_elements() const { return kMaxRows * slabs_.elements(); }
  int64_t strip_elements() const { return slabs_.elements() * kWidth; }

  void multiply_share(int64_t n) {
    const int64_t row_share = n / strip_shares_, strip_share = n % strip_shares_;
    Left* block = blocks_ + n * block_panels_ * panel_elements();
    for (int64_t slab = 0; slab < slabs_.count; ++slab) {
      panels_.for_share(row_share, row_shares_, [&](int64_t begin, int64_t end) {
        for (int64_t first = begin; first < end; first += block_panels_) {
          const int64_t last = std::min(first + block_panels_, end), line = panels_.first_line(first);
          Kind::pack_rows(a_.left, line, panels_.first_line(last - 1) + panels_.lines(last - 1) - line,
                          slabs_.begin(slab), slabs_.numbers(slab), block, panel_elements());
          for (int t = 0; t < a_.target_count; ++t) {
            const LineRanges strips = strips_of(a_.targets[t].right);
            strips.for_share(strip_share, strip_shares_, [&](int64_t s, int64_t s_end) {
              for (; s < s_end; ++s) multiply_block(n, slab, first, last, block, t, strips, s);
            });
          }
        }
      });
    }
  }

  // Rows [first, last) of a block by one strip.
  FASTLSTM_INLINE void multiply_block(int64_t n, int64_t slab, int64_t first, int64_t last, const Left* block, int t,
                                      const LineRanges& strips, int64_t s) {
    const Target& target = a_.targets[t];
    const Right* strip;
    if (target.packed == nullptr && fleeting_) {
      pack_strip(target.right, strips, s, slabs_, slab, strips_packed_ + n * strip_elements());
      strip = strips_packed_ + n * strip_elements();
    } else {
      const Right* packed = target.packed != nullptr ? static_cast<const Right*>(target.packed) : packed_[t];
      strip = packed + (slab * strips.count + s) * strip_elements();
    }
    for (int64_t p = first; p < last; ++p) {
      Sum* out = static_cast<Sum*>(target.out) + panels_.first_line(p) * target.out_stride + strips.first_line(s);
      multiply(static_cast<int>(panels_.lines(p)), block + (p - first) * panel_elements(), strip, slabs_.elements(slab),
               out, target.out_stride, strips.lines(s), target.add || slab > 0);
    }
  }

  void multiply(int rows, const Left* left, const Right* right, int64_t elements, Sum* out, int64_t stride,
                int64_t width, bool add) const {
    using Function = void (*)(const Left*, const Right*, int64_t, Sum*, int64_t, int64_t, bool);
#define FASTLSTM_WIDTHS(MR) \
  { strip<MR, 1>, strip<MR, 2>, strip<MR, kStrip == 4 ? 3 : 2>, strip<MR, kStrip> }
    static constexpr Function table[kMaxRows][4] = {FASTLSTM_WIDTHS(1), FASTLSTM_WIDTHS(2), FASTLSTM_WIDTHS(3),
                                                    FASTLSTM_WIDTHS(4), FASTLSTM_WIDTHS(5), FASTLSTM_WIDTHS(6)};
#undef FASTLSTM_WIDTHS
    const Function strip_of = table[rows - 1][(width - 1) / lanes<Sum>];
    const int64_t most = a_.chain / Kind::kNumbers;
    for (int64_t k = 0; k < elements; k += most) {
      strip_of(left + k * rows, right + k * kWidth, std::min(most, elements - k), out, stride, width, add || k > 0);
    }
  }

  // MR rows by the NV vectors of a strip that hold lines.
  template <int MR, int NV>
  __attribute__((noinline)) static void strip(const Left* left, const Right* right, int64_t elements, Sum* out,
                                              int64_t stride, int64_t width, bool add) {
    constexpr int L = lanes<Sum>;
    // The sums' destination was last used a slab ago. It comes from a far cache, while the sums are made.
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV; v += kLine) __builtin_prefetch(out + r * stride + v * L, 1);
    }
    Vec<Sum> sum[MR][NV] = {};
    const auto sum_at = [&](int64_t k) FASTLSTM_INLINE_LAMBDA {
      Kind::template add<MR, NV>(left + k * MR, right + k * kWidth, sum);
    };
    int64_t k = 0;
    if constexpr (kSpelledOut && NV == 2) {
      for (; k + 4 <= elements; k += 4) {
        sum_at(k);
        sum_at(k + 1);
        sum_at(k + 2);
        sum_at(k + 3);
      }
    }
    for (; k < elements; ++k) sum_at(k);
    if (width == NV * L) return keep<MR, NV>(sum, out, stride, add);
    // No call while sums are in registers: the compiler would leave them in memory throughout.
    alignas(64) Sum all[MR * NV * L];
    keep<MR, NV>(sum, all, NV * L, false);
    for (int r = 0; r < MR; ++r) {
      for (int64_t j = 0; j < width; ++j) {
        Sum& to = out[r * stride + j];
        to = add ? to + all[r * NV * L + j] : all[r * NV * L + j];
      }
    }
  }

  template <int MR, int NV>
  static FASTLSTM_INLINE void keep(const Vec<Sum> (&sum)[MR][NV], Sum* out, int64_t stride, bool add) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        Sum* to = out + r * stride + v * lanes<Sum>;
        store_raw(to, add ? load_raw<Vec<Sum>>(to) + sum[r][v] : sum[r][v]);
      }
    }
  }

  static constexpr int kTargets = 2;
  static constexpr int kLine = std::max<int>(1, 64 / FASTLSTM_SIMD_BYTES);  // vectors of a cache line
  const ProductArgs& a_;
  const Threads& threads_;
  const Slabs slabs_;
  const LineRanges panels_;  // of kMaxRows rows
  int64_t strips_ = 0;       // of all targets
  int64_t row_shares_ = 1, strip_shares_ = 1, block_panels_;
  bool fleeting_;  // rows are one block: each strip is used once, right after it is packed, and only one is kept
  Right* packed_[kTargets];  // right factors that did not come packed
  Right* strips_packed_;     // [share], fleeting
  Left* blocks_;             // [share][panel] of a block's rows in one slab
};

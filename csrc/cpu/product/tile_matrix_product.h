// Products of large float32 matrices on AMX tiles (matrix_product.h). Included inside the namespace of the AMX kernels,
// after tile_panels.h.
//
// A worker packs as many panels of its rows as half of the second-level cache holds, and multiplies them by all of its
// columns. Four tiles of sums, two panels of rows by two of columns, stay in tile registers for the length of a slab. A
// slab's sum is made again from the numbers themselves, by multiply-adds, if it is not finite or if what tiles drop may
// matter. One case is left: a sum of products that are all below 2^-126, beside sums that are not, may be zero.

template <int A, int B>
class TileMatrixProduct {
 public:
  TileMatrixProduct(const ProductArgs& args, const Threads& threads) : a_(args), threads_(threads), slabs_(args.depth) {
    for (int t = 0; t < a_.target_count; ++t) column_pairs_ += pairs_of(a_.targets[t].right.lines);
    row_pairs_ = pairs_of(a_.left.lines);
    choose_shares(useful_workers());
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used(), Workspace::kProduct));
    lay_out(layout);
  }

  void run() {
    for (int64_t slab = 0; slab < slabs_.count; ++slab) {
      for (int t = 0; t < a_.target_count; ++t) {
        const Target& target = a_.targets[t];
        if (target.packed == nullptr) pack_slab<B>(target.right, slabs_, slab, packed_[t], threads_);
      }
      const auto work = [](int64_t begin, int64_t end, void* p) {
        auto& c = *static_cast<std::pair<TileMatrixProduct*, int64_t>*>(p);
        for (int64_t share = begin; share < end; ++share) c.first->multiply_share(c.second, share);
      };
      std::pair<TileMatrixProduct*, int64_t> context{this, slab};
      if (row_shares_ * column_shares_ == 1) {
        work(0, 1, &context);
      } else {
        threads_.parallel_for(row_shares_ * column_shares_, work, &context);
      }
    }
  }

  // Clocks on one core: 16 for a product of tiles; one for two multiply-adds of 16 lanes.
  static bool worthwhile(int64_t rows, int64_t columns, int64_t depth) {
    const int64_t blocks = (depth + kTileDepth - 1) / kTileDepth, m = panels_of(rows), n = panels_of(columns);
    return blocks * (16 * kProducts * m * n + kPackClocks * (A * m + B * n)) < rows * columns * depth / 32;
  }

 private:
  static constexpr int64_t kBlockBytes = int64_t{3} << 18;
  static constexpr int64_t kPackClocks = 100;  // estimate, to split and pack the numbers of one tile
  // The products of parts, ordered so that each shares a part with the one before it.
  static constexpr int kOrder[6][2] = {{1, 1}, {0, 1}, {0, 2}, {0, 0}, {1, 0}, {2, 0}};
  static constexpr int kProducts = Tiled<A, B>::kProducts, kParts = Tiled<A, B>::kParts;

  static int64_t pairs_of(int64_t lines) { return (panels_of(lines) + 1) / 2; }

  int64_t useful_workers() const {
    constexpr double kProductsPerThread = 2e6;
    double all = static_cast<double>(a_.left.lines) * a_.depth * column_pairs_ * 2 * kPanelLines;
    return std::max<int64_t>(1, static_cast<int64_t>(std::min<double>(threads_.count, all / kProductsPerThread)));
  }

  // Shares of the rows times shares of the columns, chosen so that a worker is done soonest. For each 32 numbers of a
  // sum it counts the products, the packing of the rows, and reading the columns from the third-level cache, at 8 bytes
  // a clock, once for each block of rows.
  void choose_shares(int64_t workers) {
    const auto share = [](int64_t pairs, int64_t shares) { return (pairs + shares - 1) / shares; };
    const int64_t most = std::max<int64_t>(1, kBlockBytes / (2 * slabs_.panel_bytes(A)));
    int64_t best = -1;
    for (int64_t r = 1; r <= std::min(workers, row_pairs_); ++r) {
      const int64_t c = std::min(workers / r, column_pairs_), rows = share(row_pairs_, r),
                    columns = share(column_pairs_, c);
      const int64_t clocks = 4 * 16 * kProducts * rows * columns + 2 * kPackClocks * A * rows +
                             2 * (kTileElements * sizeof(BFloat16) / 8) * B * columns * share(rows, most);
      if (best >= 0 && clocks >= best) continue;
      best = clocks;
      row_shares_ = r;
      column_shares_ = c;
      block_pairs_ = std::min(most, rows);
    }
  }

  void lay_out(Layout& layout) {
    for (int t = 0; t < a_.target_count; ++t) {
      const Target& target = a_.targets[t];
      packed_[t] =
          layout.array<char>(target.packed != nullptr ? 0 : panels_of(target.right.lines) * slabs_.panel_bytes(B));
    }
    blocks_ = layout.array<char>(row_shares_ * column_shares_ * 2 * block_pairs_ * slabs_.panel_bytes(A));
  }

  void multiply_share(int64_t slab, int64_t share) {
    const int64_t row_share = share / column_shares_, column_share = share % column_shares_;
    const int64_t row_end = row_pairs_ * (row_share + 1) / row_shares_;
    const int64_t first_pair = column_pairs_ * column_share / column_shares_;
    const int64_t last_pair = column_pairs_ * (column_share + 1) / column_shares_;
    char* block = blocks_ + share * 2 * block_pairs_ * slabs_.panel_bytes(A);
    Tiles tiles;
    tiles.configure(16, 16);
    for (int64_t rows = row_pairs_ * row_share / row_shares_; rows < row_end; rows += block_pairs_) {
      const int64_t rows_end = std::min(rows + block_pairs_, row_end);
      for (int64_t panel = 2 * rows; panel < std::min(2 * rows_end, panels_of(a_.left.lines)); ++panel) {
        pack_panel<A, false>(a_.left, panel, slabs_.begin(slab), slabs_.numbers(slab),
                             block + (panel - 2 * rows) * slabs_.panel_bytes(A));
      }
      int64_t before = 0;
      for (int t = 0; t < a_.target_count; ++t) {
        const int64_t pairs = pairs_of(a_.targets[t].right.lines);
        for (int64_t pair = std::max(first_pair - before, int64_t{0}); pair < std::min(last_pair - before, pairs);
             ++pair) {
          for (int64_t r = rows; r < rows_end; ++r) {
            multiply_pairs(tiles, slab, r, block + 2 * (r - rows) * slabs_.panel_bytes(A), t, pair);
          }
        }
        before += pairs;
      }
    }
  }

  // A slab's sums for up to 32 rows and 32 columns.
  void multiply_pairs(Tiles& tiles, int64_t slab, int64_t row_pair, const char* rows, int t, int64_t column_pair) {
    const Target& target = a_.targets[t];
    const int64_t bytes = slabs_.panel_bytes(B), panels = panels_of(target.right.lines);
    const char* slab_packed =
        target.packed != nullptr ? static_cast<const char*>(target.packed) + slab * panels * bytes : packed_[t];
    const char* columns = slab_packed + 2 * column_pair * bytes;
    const bool two_rows = 2 * row_pair + 1 < panels_of(a_.left.lines), two_columns = 2 * column_pair + 1 < panels;
    alignas(64) float sums[32][32];
    if (two_rows) {
      two_columns ? tile_sums<2, 2>(tiles, slab, rows, columns, sums)
                  : tile_sums<2, 1>(tiles, slab, rows, columns, sums);
    } else {
      two_columns ? tile_sums<1, 2>(tiles, slab, rows, columns, sums)
                  : tile_sums<1, 1>(tiles, slab, rows, columns, sums);
    }
    for (int i = 0; i <= two_rows; ++i) {
      const PanelHead& left = *reinterpret_cast<const PanelHead*>(rows + i * slabs_.panel_bytes(A));
      for (int j = 0; j <= two_columns; ++j) {
        const Doubt doubt(left, *reinterpret_cast<const PanelHead*>(columns + j * bytes));
        finish(target, slab, (2 * row_pair + i) * kPanelLines, (2 * column_pair + j) * kPanelLines,
               &sums[16 * i][16 * j], doubt);
      }
    }
  }

  template <int Rows, int Columns>
  void tile_sums(Tiles& tiles, int64_t slab, const char* rows, const char* columns, float (&sums)[32][32]) {
    const auto* left = reinterpret_cast<const BFloat16*>(rows + sizeof(PanelHead));
    const auto* right = reinterpret_cast<const BFloat16*>(columns + sizeof(PanelHead));
    const int64_t next_left = slabs_.panel_bytes(A) / sizeof(BFloat16),
                  next_right = slabs_.panel_bytes(B) / sizeof(BFloat16);
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.zero<3>();
    for (int64_t k = 0; k < slabs_.numbers(slab);
         k += kTileDepth, left += A * kTileElements, right += B * kTileElements) {
      int loaded_left = -1, loaded_right = -1;
#pragma GCC unroll 6
      for (const auto& [a, b] : kOrder) {
        if (a >= A || b >= B || a + b >= kParts) continue;
        if (a != loaded_left) {
          tiles.load<4>(left + a * kTileElements, 64);
          if (Rows == 2) tiles.load<5>(left + a * kTileElements + next_left, 64);
        }
        if (b != loaded_right) {
          tiles.load<6>(right + b * kTileElements, 64);
          if (Columns == 2) tiles.load<7>(right + b * kTileElements + next_right, 64);
        }
        loaded_left = a;
        loaded_right = b;
        tiles.multiply<0, 4, 6>();
        if (Columns == 2) tiles.multiply<1, 4, 7>();
        if (Rows == 2) tiles.multiply<2, 5, 6>();
        if (Rows == 2 && Columns == 2) tiles.multiply<3, 5, 7>();
      }
    }
    tiles.store<0>(&sums[0][0], sizeof(sums[0]));
    if (Columns == 2) tiles.store<1>(&sums[0][16], sizeof(sums[0]));
    if (Rows == 2) tiles.store<2>(&sums[16][0], sizeof(sums[0]));
    if (Rows == 2 && Columns == 2) tiles.store<3>(&sums[16][16], sizeof(sums[0]));
  }

  // Writes, or adds, one tile of a slab's sums to the result.
  void finish(const Target& target, int64_t slab, int64_t row, int64_t column, const float* sums, const Doubt& doubt) {
    const int64_t rows = std::min(kPanelLines, a_.left.lines - row),
                  columns = std::min(kPanelLines, target.right.lines - column);
    const bool add = target.add || slab > 0;
    for (int64_t r = 0; r < rows; ++r) {
      Vec<float> sum = load_raw<Vec<float>>(sums + r * 32);
      if (any_doubtful(sum, doubt.below, doubt.zeros)) sum = sum_again(target.right, slab, row + r, column, columns);
      float* out = static_cast<float*>(target.out) + (row + r) * target.out_stride + column;
      if (columns == kPanelLines) {
        store<float, true>(out, add ? load<float, true>(out, columns) + sum : sum, columns);
      } else {
        store<float, false>(out, add ? load<float, false>(out, columns) + sum : sum, columns);
      }
    }
  }

  __attribute__((noinline)) Vec<float> sum_again(const Factor& right, int64_t slab, int64_t row, int64_t column,
                                                 int64_t columns) {
    Vec<float> sum = {};
    for (int64_t k = slabs_.begin(slab), end = k + slabs_.numbers(slab); k < end; ++k) {
      const float* from = right.at<float>(column, k);
      Vec<float> numbers = {};
      if (right.line_stride == 1) {
        numbers = load<float, false>(from, columns);
      } else {
        for (int64_t j = 0; j < columns; ++j) numbers[j] = from[j * right.line_stride];
      }
      sum += splat(*a_.left.at<float>(row, k)) * numbers;
    }
    return sum;
  }

  const ProductArgs& a_;
  const Threads& threads_;
  const Slabs slabs_;
  int64_t row_pairs_, column_pairs_ = 0;  // of panels; columns of all targets
  int64_t row_shares_ = 1, column_shares_ = 1, block_pairs_ = 1;
  static constexpr int kTargets = 2;
  char* packed_[kTargets];  // [panel] of a slab of each right factor that did not come packed
  char* blocks_;            // [share][panel] of a block's rows in one slab
};

// visit(left, right), std::integral_constants, for parts that tiles serve.
template <class Visit>
auto visit_parts(int left, int right, const Visit& visit) {
  using std::integral_constant;
  if (left == 3) return visit(integral_constant<int, 3>{}, integral_constant<int, 3>{});
  if (right == 2) return visit(integral_constant<int, 2>{}, integral_constant<int, 2>{});
  if (left == 2) return visit(integral_constant<int, 2>{}, integral_constant<int, 1>{});
  return visit(integral_constant<int, 1>{}, integral_constant<int, 1>{});
}

bool worthwhile_product(int64_t rows, int64_t columns, int64_t depth, int left_parts, int right_parts) {
  return visit_parts(left_parts, right_parts, [&](auto a, auto b) {
    return TileMatrixProduct<a.value, b.value>::worthwhile(rows, columns, depth);
  });
}

// The packing of a right factor depends on its parts alone.
int64_t packed_product_bytes(const Factor& right, int64_t depth) {
  return visit_parts(right.parts, right.parts,
                     [&](auto, auto parts) { return packed_bytes<parts.value>(right, depth); });
}

void pack_product(const Factor& right, int64_t depth, void* packed, const Threads& threads) {
  visit_parts(right.parts, right.parts,
              [&](auto, auto parts) { pack_whole<parts.value>(right, depth, packed, threads); });
}

void multiply_matrices(const ProductArgs& args, const Threads& threads) {
  visit_parts(args.left.parts, args.targets[0].right.parts,
              [&](auto a, auto b) { TileMatrixProduct<a.value, b.value>(args, threads).run(); });
}

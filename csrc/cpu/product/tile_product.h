// The step's matrix product on AMX tiles. Included inside the namespace of the AMX kernels, after product.h, tiles.h
// and parts.h.
//
// Tiles read denormal numbers as zeros, so numbers below 2^-103 lose parts, and a sum has an error of about 2^-126 for
// each term. Sums that are not finite, or below 2^-90 and not zero, are therefore made again from the numbers
// themselves (`doubtful`). A sum of products that are all below 2^-126 may still come out as zero.

template <int A, int B>
struct Tiled {
  using Packed = BFloat16;
  using Engine = Tiles;
  static constexpr bool kTiled = true;
  static constexpr int kRows = 32;  // two tiles
  static constexpr int kParts = A > B ? A : B;
  static constexpr int kProducts = kParts == 1 ? 1 : A == 1 || B == 1 ? kParts : kParts == 2 ? 3 : 6;

  using States = PartRows<A, kTileDepth>;

  // Packed numbers of each output column.
  static int64_t packed_depth(int64_t K) { return States::depth_of(K) * B; }

  // Panels whose vectors are gates i, f, g, o of the same units, from weight [4H, K]: [k block][part][vector][tile].
  template <class IO>
  static void pack_forward(const Panel& panel, const IO* weight, int64_t H, int64_t K, BFloat16* packed) {
    const int64_t first = panel.vector * 16, units = std::min<int64_t>(16, H - first);
    Unseen unseen;
    for (int64_t k = 0; k < K; k += kTileDepth) {
      BFloat16* block = packed + panel.offset + k / kTileDepth * B * 4 * kTileElements;
      for (int64_t g = 0; g < 4; ++g) {
        pack_lines<B, true>(weight + (g * H + first) * K + k, K, units, std::min(kTileDepth, K - k),
                            block + g * kTileElements, 4 * kTileElements, unseen);
      }
    }
  }

  // Panels of consecutive columns of weight [K, columns].
  template <class IO>
  static void pack_backward(const Panel& panel, const IO* weight, int64_t K, int64_t columns, BFloat16* packed) {
    Unseen unseen;
    for (int64_t k = 0; k < K; k += kTileDepth) {
      BFloat16* block = packed + panel.offset + k / kTileDepth * B * panel.vectors * kTileElements;
      for (int v = 0; v < panel.vectors; ++v) {
        const int64_t first = (panel.vector + v) * 16, count = std::min<int64_t>(16, columns - first);
        pack_numbers<B, true>(weight + k * columns + first, columns, count, std::min(kTileDepth, K - k),
                              block + v * kTileElements, panel.vectors * kTileElements, unseen);
      }
    }
  }

  // Whether any of these sums is not finite, or so small that dropped numbers matter.
  static FASTLSTM_INLINE bool doubtful(Vec<float> sums) { return any_doubtful(sums, splat(0x1p-90f), 0); }

  // out[r][v] = the sum over k of states[r][k] * packed[k][v], for `rows` (1 to 32) rows and 1 to 4 vectors.
  static void multiply(Tiles& tiles, int rows, int vectors, const States& states, int64_t row, const BFloat16* packed,
                       float* out) {
    if (rows <= 16) {
      tiles.configure(rows, rows);
      multiply_rows<1>(tiles, vectors, states, row, packed, out);
    } else {
      tiles.configure(16, rows - 16);
      multiply_rows<2>(tiles, vectors, states, row, packed, out);
    }
  }

 private:
  // Four columns of tiles at a time for one tile of rows, two for two: four sums, for which five or four tiles are
  // loaded.
  template <int RowTiles>
  static void multiply_rows(Tiles& tiles, int vectors, const States& states, int64_t row, const BFloat16* packed,
                            float* out) {
    constexpr int kColumns = 4 / RowTiles;
    const int64_t stride = states.stride() * sizeof(BFloat16), out_stride = vectors * 64;
    const BFloat16* rows = states.row(row);
    const BFloat16* lower = RowTiles == 2 ? states.row(row + 16) : nullptr;
    for (int v = 0; v < vectors; v += kColumns) {
      const int columns = std::min(kColumns, vectors - v);
      tiles.zero<0>();
      tiles.zero<1>();
      tiles.zero<2>();
      tiles.zero<3>();
      for (int64_t k = 0; k < states.depth(); k += kTileDepth) {
        for (int a = 0; a < A; ++a) {
          tiles.load<4>(rows + a * states.depth() + k, stride);
          if (RowTiles == 2) tiles.load<5>(lower + a * states.depth() + k, stride);
          for (int b = 0; b < B && a + b < kParts; ++b) {
            const BFloat16* tile = packed + ((k / kTileDepth * B + b) * vectors + v) * kTileElements;
            tiles.load<6>(tile, 64);
            tiles.multiply<0, 4, 6>();
            if (RowTiles == 2) tiles.multiply<2, 5, 6>();
            if (columns == 1) continue;
            tiles.load<7>(tile + kTileElements, 64);
            tiles.multiply<1, 4, 7>();
            if (RowTiles == 2) tiles.multiply<3, 5, 7>();
            if (columns == 2) continue;
            tiles.load<6>(tile + 2 * kTileElements, 64);
            tiles.multiply<2, 4, 6>();
            if (columns == 3) continue;
            tiles.load<7>(tile + 3 * kTileElements, 64);
            tiles.multiply<3, 4, 7>();
          }
        }
      }
      float* first = out + v * 16;
      tiles.store<0>(first, out_stride);
      if (columns > 1) tiles.store<1>(first + 16, out_stride);
      if constexpr (RowTiles == 2) {
        float* second = first + 16 * vectors * 16;
        tiles.store<2>(second, out_stride);
        if (columns > 1) tiles.store<3>(second + 16, out_stride);
      } else {
        if (columns > 2) tiles.store<2>(first + 32, out_stride);
        if (columns > 3) tiles.store<3>(first + 48, out_stride);
      }
    }
  }
};

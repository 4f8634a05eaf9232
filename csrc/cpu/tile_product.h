// The step's matrix product on AMX tiles. Included inside the namespace of the AMX kernels, after product.h and tiles.h.
//
// A float32 number is the sum of three bfloat16 numbers: its first 8 digits, the next 8, the last 8, each cut off, so that none
// overflows. A product of two numbers is then nine products of parts, of which those of parts i and j with i + j < 3 matter: what
// is left out is below 2^-24 of the product of the magnitudes.
//
// Tiles take denormal numbers for zero, so numbers below 2^-110 lose parts, and a sum is off by about 2^-126 for each term. Parts of
// infinities and NaN mean nothing, and leave NaN in the sum. Sums that are NaN, or below 2^-90 and not zero, are therefore made again
// from the numbers themselves (`doubtful`); what remains is that a sum of products that are all below 2^-126 may come out as zero.

template <int A, int B>
struct Tiled {
  using Packed = BFloat16;
  using Engine = Tiles;
  static constexpr bool kTiled = true;
  static constexpr int kRows = 32;  // two tiles
  static constexpr int kParts = A > B ? A : B;
  static constexpr int kProducts = kParts == 1 ? 1 : A == 1 || B == 1 ? kParts : kParts == 2 ? 3 : 6;
  static constexpr int64_t kDepth = 32, kTileElements = 16 * kDepth;

  static int64_t depth_of(int64_t K) { return (K + kDepth - 1) / kDepth * kDepth; }
  // Packed numbers for each output column.
  static int64_t packed_depth(int64_t K) { return depth_of(K) * B; }

  // The parts of 16 numbers, one vector of 32 bits each, a bfloat16 in the upper half. The last part is rounded.
  template <int Parts>
  static FASTLSTM_INLINE void split(Vec<float> x, VectorOf<float>::bits (&parts)[Parts]) {
    using Bits = VectorOf<float>::bits;
    for (int p = 0; p < Parts - 1; ++p) {
      parts[p] = bit_cast<Bits>(x) & 0xffff0000u;
      x -= bit_cast<Vec<float>>(parts[p]);
    }
    uint16_t rounded[16];
    Storage<float, BFloat16>::store(reinterpret_cast<BFloat16*>(rounded), x);
    parts[Parts - 1] = widen_bits(rounded) << 16;
  }

  // The states of all rows in parts: [row][part][depth].
  class States {
   public:
    void lay_out(Layout& layout, int64_t rows, int64_t K) {
      depth_ = depth_of(K);
      data_ = layout.array<BFloat16>(rows * A * depth_);
    }
    const BFloat16* row(int64_t row) const { return data_ + row * A * depth_; }
    int64_t stride_bytes() const { return A * depth_ * sizeof(BFloat16); }
    int64_t depth() const { return depth_; }
    void clear(int64_t row) { __builtin_memset(data_ + row * A * depth_, 0, A * depth_ * sizeof(BFloat16)); }
    void copy(int64_t to, int64_t from) { __builtin_memcpy(data_ + to * A * depth_, row(from), A * depth_ * sizeof(BFloat16)); }

    // Numbers [first, first + count) of a row.
    FASTLSTM_INLINE void store(int64_t row, int64_t first, int64_t count, Vec<float> x) {
      VectorOf<float>::bits parts[A];
      split<A>(x, parts);
      BFloat16* out = data_ + row * A * depth_ + first;
      for (int p = 0; p < A; ++p) {
        BFloat16 whole[16];
        store_low_bits(whole, parts[p] >> 16);
        __builtin_memcpy(out + p * depth_, whole, count * sizeof(BFloat16));
      }
    }

   private:
    BFloat16* data_;
    int64_t depth_;
  };

  // Panels whose vectors are gates i, f, g, o of the same units, from the weight [4H, K]: [k block][part][vector][tile].
  template <class IO>
  static void pack_forward(const Panel& panel, const IO* weight, int64_t H, int64_t K, BFloat16* packed) {
    using Bits = VectorOf<float>::bits;
    const int64_t first = panel.vector * 16, units = std::min<int64_t>(16, H - first);
    for (int64_t k = 0; k < K; k += kDepth) {
      for (int64_t g = 0; g < 4; ++g) {
        Vec<float> pairs[B][16] = {};  // of each unit, the 16 pairs of the block
        for (int64_t j = 0; j < units; ++j) {
          const IO* row = weight + (g * H + first + j) * K + k;
          BFloat16 parts[B][32];
          for (int half = 0; half < 2; ++half) {
            Bits bits[B];
            const int64_t count = std::clamp<int64_t>(K - k - half * 16, 0, 16);
            split<B>(load_part<float>(row + (count > 0 ? half * 16 : 0), count), bits);
            for (int p = 0; p < B; ++p) store_low_bits(parts[p] + half * 16, bits[p] >> 16);
          }
          for (int p = 0; p < B; ++p) pairs[p][j] = load_raw<Vec<float>>(parts[p]);
        }
        for (int p = 0; p < B; ++p) {
          transpose<float>(pairs[p]);
          BFloat16* out = packed + panel.offset + (k / kDepth * B + p) * 4 * kTileElements + g * kTileElements;
          for (int r = 0; r < 16; ++r) store_raw(out + r * 32, pairs[p][r]);
        }
      }
    }
  }

  // Panels of consecutive columns of the weight [K, columns].
  template <class IO>
  static void pack_backward(const Panel& panel, const IO* weight, int64_t K, int64_t columns, BFloat16* packed) {
    using Bits = VectorOf<float>::bits;
    for (int64_t k = 0; k < depth_of(K); k += 2) {
      for (int v = 0; v < panel.vectors; ++v) {
        const int64_t first = (panel.vector + v) * 16, count = std::min<int64_t>(16, columns - first);
        Bits even[B], odd[B];
        split<B>(k < K ? load_part<float>(weight + k * columns + first, count) : Vec<float>{}, even);
        split<B>(k + 1 < K ? load_part<float>(weight + (k + 1) * columns + first, count) : Vec<float>{}, odd);
        for (int p = 0; p < B; ++p) {
          BFloat16* tile = packed + panel.offset + ((k / kDepth * B + p) * panel.vectors + v) * kTileElements;
          store_raw(tile + k % kDepth * 16, (even[p] >> 16) | odd[p]);
        }
      }
    }
  }

  // Whether any of these sums is NaN, or so small that what was taken for zero matters.
  static FASTLSTM_INLINE bool doubtful(Vec<float> sums) {
    const __m512 x = bit_cast<__m512>(sums), magnitude = _mm512_abs_ps(x), zero = _mm512_setzero_ps();
    const __mmask16 small = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0x1p-90f), _CMP_LT_OQ);
    return (_mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) | (small & _mm512_cmp_ps_mask(x, zero, _CMP_NEQ_OQ))) != 0;
  }

  // out[r][v] = the sum over k of states[r][k] * packed[k][v], for `rows` (1 to 32) rows and 1 to 4 vectors.
  static void multiply(Tiles& tiles, int rows, int vectors, const States& states, int64_t row, const BFloat16* packed, float* out) {
    if (rows <= 16) {
      tiles.configure(rows, rows);
      multiply_rows<1>(tiles, vectors, states, row, packed, out);
    } else {
      tiles.configure(16, rows - 16);
      multiply_rows<2>(tiles, vectors, states, row, packed, out);
    }
  }

 private:
  // With one tile of rows four columns of tiles at a time, with two tiles two: four sums, for which five or four tiles are loaded.
  template <int RowTiles>
  static void multiply_rows(Tiles& tiles, int vectors, const States& states, int64_t row, const BFloat16* packed, float* out) {
    constexpr int kColumns = 4 / RowTiles;
    const int64_t stride = states.stride_bytes(), out_stride = vectors * 64;
    const BFloat16* rows = states.row(row);
    const BFloat16* lower = RowTiles == 2 ? states.row(row + 16) : nullptr;
    for (int v = 0; v < vectors; v += kColumns) {
      const int columns = std::min(kColumns, vectors - v);
      tiles.zero<0>();
      tiles.zero<1>();
      tiles.zero<2>();
      tiles.zero<3>();
      for (int64_t k = 0; k < states.depth(); k += kDepth) {
        for (int a = 0; a < A; ++a) {
          tiles.load<4>(rows + a * states.depth() + k, stride);
          if (RowTiles == 2) tiles.load<5>(lower + a * states.depth() + k, stride);
          for (int b = 0; b < B && a + b < kParts; ++b) {
            const BFloat16* tile = packed + ((k / kDepth * B + b) * vectors + v) * kTileElements;
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

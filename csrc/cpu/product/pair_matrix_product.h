// Products of large matrices by VDPBF16PS: bfloat16 numbers in pairs, added in float32. Included inside the namespace
// of the AVX512-BF16 kernels, after parts.h and blocked_matrix_product.h.
//
// Numbers of both factors are one bfloat16 number each: values of bfloat16 tensors as they are, their float32 gradients
// rounded to nearest, as nn.LSTM rounds them too. The instruction reads denormal numbers as zeros, as all bfloat16
// products of oneDNN and torch do here.

struct PairProducts {
  using Sum = float;
  using Left = BFloat16Pair;
  using Right = BFloat16Pair;
  static constexpr int kNumbers = 2, kWidth = kStripLines<float>;
  static constexpr int64_t kSlab = 512;  // a slab of a strip has 64 KiB

  static void pack_strip(const Factor& right, int64_t first, int64_t k0, int64_t numbers, BFloat16Pair* out) {
    for (int v = 0; v < kStrip; ++v) {
      const int64_t line = first + v * 16, lines = std::clamp<int64_t>(right.lines - line, 0, 16);
      for_tiles(right, lines > 0 ? line : 0, lines, k0, numbers,
                [&](int64_t k, int64_t pairs, const BFloat16Pair* tile) {
                  for (int64_t p = 0; p < pairs; ++p)
                    __builtin_memcpy(out + (k / 2 + p) * kWidth + v * 16, tile + p * 16, 64);
                });
    }
  }

  static void pack_rows(const Factor& left, int64_t first, int64_t lines, int64_t k0, int64_t numbers,
                        BFloat16Pair* out, int64_t panel) {
    for (int64_t line = 0; line < lines; line += 16) {
      const int64_t count = std::min<int64_t>(16, lines - line);
      for_tiles(left, first + line, count, k0, numbers, [&](int64_t k, int64_t pairs, const BFloat16Pair* tile) {
        for (int64_t j = 0; j < count; ++j) {
          const int64_t p = (line + j) / kMaxRows, row = (line + j) % kMaxRows,
                        rows = std::min<int64_t>(kMaxRows, lines - p * kMaxRows);
          BFloat16Pair* to = out + p * panel + k / 2 * rows + row;
          for (int64_t pair = 0; pair < pairs; ++pair) to[pair * rows] = tile[pair * 16 + j];
        }
      });
    }
  }

  template <int MR, int NV>
  static FASTLSTM_INLINE void add(const BFloat16Pair* left, const BFloat16Pair* right, Vec<float> (&sum)[MR][NV]) {
    __m512bh vectors[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vectors[v] = load_raw<__m512bh>(right + v * 16);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      const auto x = bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(left[r].bits)));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        sum[r][v] = bit_cast<Vec<float>>(_mm512_dpbf16_ps(bit_cast<__m512>(sum[r][v]), x, vectors[v]));
    }
  }

 private:
  // visit(k, pairs, [pair][line]) for up to 16 lines, up to 16 pairs at a time from number k of the slab on; lines that
  // do not exist are zeros.
  template <class Visit>
  static void for_tiles(const Factor& f, int64_t first, int64_t lines, int64_t k0, int64_t numbers,
                        const Visit& visit) {
    const auto run = [&](auto number) {
      using T = decltype(number);
      for (int64_t k = 0; k < numbers; k += kTileDepth) {
        alignas(64) BFloat16 tile[kTileElements];
        const int64_t count = std::min(kTileDepth, numbers - k);
        const T* from = f.at<T>(first, k0 + k);
        Unseen unseen;
        if (f.depth_stride == 1) {
          pack_lines<1, true>(from, f.line_stride, lines, count, tile, kTileElements, unseen);
        } else {
          pack_numbers<1, true>(from, f.depth_stride, lines, count, tile, kTileElements, unseen);
        }
        visit(k, (count + 1) / 2, reinterpret_cast<const BFloat16Pair*>(tile));
      }
    };
    f.dtype == DType::kBFloat16 ? run(BFloat16{}) : run(float{});
  }
};

// Factors of one part in pairs, others by multiply-adds. The packing of a right factor depends on its parts alone.
inline constexpr MatrixProducts pair_products = [] {
  MatrixProducts p = fma_products<float>;
  p.packed_bytes = [](const Factor& right, int64_t depth) {
    if (right.parts != 1) return fma_products<float>.packed_bytes(right, depth);
    return BlockedProduct<PairProducts>::packed_elements(right, depth) * static_cast<int64_t>(sizeof(BFloat16Pair));
  };
  p.pack = [](const Factor& right, int64_t depth, void* packed, const Threads& threads) {
    if (right.parts != 1) return fma_products<float>.pack(right, depth, packed, threads);
    BlockedProduct<PairProducts>::pack(right, depth, static_cast<BFloat16Pair*>(packed), threads);
  };
  p.multiply = [](const ProductArgs& args, const Threads& threads) {
    if (args.targets[0].right.parts != 1) return fma_products<float>.multiply(args, threads);
    BlockedProduct<PairProducts>(args, threads).run();
  };
  p.narrow = true;
  p.gradient_parts = 1;
  return p;
}();

// The step's matrix product by VDPBF16PS: two bfloat16 products for each lane, added in float32. Included inside the
// namespace of the AVX512-BF16 kernels, after product.h and parts.h.
//
// A bfloat16 state and bfloat16 weights are multiplied as they are. Gradients are float32 and taken as sums of two
// bfloat16 numbers, so each weight is multiplied twice. The instruction reads and writes denormal numbers as zeros, and
// rounds after each of its two additions to nearest even, whatever the rounding mode: as many roundings as
// multiply-adds make. Sums that are not finite, or so small that denormal numbers matter, are made again from the
// numbers themselves, as with tiles.

template <int A>
struct Pairs {
  using Packed = BFloat16;
  struct Engine {};
  static constexpr bool kTiled = true;
  static constexpr int kRows = kMaxRows;

  using States = PartRows<A, 2>;

  // Packed numbers of each output column.
  static int64_t packed_depth(int64_t K) { return States::depth_of(K); }

  // Panels whose vectors are gates i, f, g, o of the same units, from weight [4H, K]: [pair][vector][lane].
  static void pack_forward(const Panel& panel, const BFloat16* weight, int64_t H, int64_t K, BFloat16* packed) {
    const int64_t first = panel.vector * 16, units = std::min<int64_t>(16, H - first);
    for (int64_t g = 0; g < 4; ++g) {
      for (int64_t k = 0; k < K; k += kTileDepth) {
        alignas(64) BFloat16 tile[kTileElements];
        const int64_t count = std::min(kTileDepth, K - k);
        Unseen unseen;
        pack_lines<1, true>(weight + (g * H + first) * K + k, K, units, count, tile, kTileElements, unseen);
        place(tile, count, packed + panel.offset + (k / 2 * 4 + g) * 32, 4);
      }
    }
  }

  // Panels of consecutive columns of weight [K, columns].
  static void pack_backward(const Panel& panel, const BFloat16* weight, int64_t K, int64_t columns, BFloat16* packed) {
    for (int v = 0; v < panel.vectors; ++v) {
      const int64_t first = (panel.vector + v) * 16, there = std::min<int64_t>(16, columns - first);
      for (int64_t k = 0; k < K; k += kTileDepth) {
        alignas(64) BFloat16 tile[kTileElements];
        const int64_t count = std::min(kTileDepth, K - k);
        Unseen unseen;
        pack_numbers<1, true>(weight + k * columns + first, columns, there, count, tile, kTileElements, unseen);
        place(tile, count, packed + panel.offset + (k / 2 * panel.vectors + v) * 32, panel.vectors);
      }
    }
  }

  static FASTLSTM_INLINE bool doubtful(Vec<float> sums) { return any_doubtful(sums, splat(0x1p-90f), 0); }

  // out[r][v] = the sum over k of states[r][k] * packed[k][v], for 1 to kRows rows and 1 to 4 vectors.
  static void multiply(Engine&, int rows, int vectors, const States& states, int64_t row, const BFloat16* packed,
                       float* out) {
#define FASTLSTM_ROWS(MR) \
  { multiply_rows<MR, 1>, multiply_rows<MR, 2>, multiply_rows<MR, 3>, multiply_rows<MR, 4> }
    using Function = void (*)(const States&, int64_t, const BFloat16*, float*);
    static constexpr Function table[kRows][kPanel] = {FASTLSTM_ROWS(1), FASTLSTM_ROWS(2), FASTLSTM_ROWS(3),
                                                      FASTLSTM_ROWS(4), FASTLSTM_ROWS(5), FASTLSTM_ROWS(6)};
#undef FASTLSTM_ROWS
    table[rows - 1][vectors - 1](states, row, packed, out);
  }

 private:
  static void place(const BFloat16* tile, int64_t count, BFloat16* out, int64_t vectors) {
    for (int64_t pair = 0; 2 * pair < count; ++pair) __builtin_memcpy(out + pair * vectors * 32, tile + pair * 32, 64);
  }

  template <int MR, int NV>
  __attribute__((noinline)) static void multiply_rows(const States& states, int64_t row, const BFloat16* packed,
                                                      float* out) {
    // With few rows there are two sums, over every other pair, so that additions do not wait for each other.
    constexpr int kSums = MR * NV * 2 <= kRegisters / 2 ? 2 : 1;
    const int64_t pairs = states.depth() / 2;
    __m512 sums[kSums][MR][NV];
    for (auto& part : sums) {
      for (auto& of_row : part) {
        for (auto& sum : of_row) sum = _mm512_setzero_ps();
      }
    }
    const auto add = [&](int64_t pair, int s) FASTLSTM_INLINE_LAMBDA {
      __m512bh weights[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) weights[v] = load_raw<__m512bh>(packed + (pair * NV + v) * 32);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 2
        for (int a = 0; a < A; ++a) {
          int32_t both;
          __builtin_memcpy(&both, states.row(row + r) + a * states.depth() + 2 * pair, 4);
          const auto state = bit_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sums[s][r][v] = _mm512_dpbf16_ps(sums[s][r][v], state, weights[v]);
        }
      }
    };
    int64_t pair = 0;
    for (; pair + kSums <= pairs; pair += kSums) {
      add(pair, 0);
      if constexpr (kSums == 2) add(pair + 1, 1);
    }
    if (pair < pairs) add(pair, 0);
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV; ++v) {
        const __m512 sum = kSums == 2 ? _mm512_add_ps(sums[0][r][v], sums[kSums - 1][r][v]) : sums[0][r][v];
        store_raw(out + (r * NV + v) * 16, sum);
      }
    }
  }
};

// Products of quantised rows with a block of 16 units by AVX2's pairwise multiply-adds. Included inside a namespace of
// an instruction set with 256-bit vectors.
//
// One or two rows, which read weights as fast as these come, multiply bytes: |a| times the weight with a's sign.
// Neither is above 127, so that a pair is at most 2 * 127 * 127 = 32258 and never saturates. More rows multiply 16-bit
// numbers: two products fewer on the ports that multiply, and weights are widened once for all rows. A row is therefore
// kept in 16 bits; four of its numbers as bytes are an instruction away.

struct MaddubsDot {
  using Activation = int16_t;
  using Sum = int32_t;
  struct Engine {};
  static constexpr int kRows = 6;
  static constexpr bool kQuantised = true;

  template <int G>
  static void sums(Engine&, int rows, const int16_t* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    switch (rows) {
      case 1:
        return bytes<1, G, 2 * G>(a, stride, weights, depth, out);
      case 2:
        return bytes<2, G, G == 1 ? 2 : 4>(a, stride, weights, depth, out);
      case 3:
        return wide<3, G>(a, stride, weights, depth, out);
      case 4:
        return wide<4, G>(a, stride, weights, depth, out);
      case 5:
        return wide<5, G>(a, stride, weights, depth, out);
      default:
        return wide<6, G>(a, stride, weights, depth, out);
    }
  }

 private:
  static FASTLSTM_INLINE __m256i four(const int16_t* a) {
    int64_t bits;
    __builtin_memcpy(&bits, a, sizeof(bits));
    return _mm256_set1_epi64x(bits);
  }

  // V vectors of 8 units at once.
  template <int MR, int G, int V>
  static __attribute__((noinline)) void bytes(const int16_t* a, int64_t stride, const int8_t* weights, int64_t depth,
                                              int32_t* out) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int first = 0; first < 2 * G; first += V) {
      __m256i sum[MR][V] = {};
      const int8_t* w = weights + first * 32;
      for (int64_t k = 0; k < depth; ++k, w += G * 64) {
        __m256i x[MR], magnitude[MR];
#pragma GCC unroll 2
        for (int r = 0; r < MR; ++r) {
          const __m256i q = four(a + r * stride + k * kInt8Depth);
          x[r] = _mm256_packs_epi16(q, q);
          magnitude[r] = _mm256_abs_epi8(x[r]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const __m256i vector = load_raw<__m256i>(w + v * 32);
#pragma GCC unroll 2
          for (int r = 0; r < MR; ++r) {
            const __m256i pairs = _mm256_maddubs_epi16(magnitude[r], _mm256_sign_epi8(vector, x[r]));
            sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, ones));
          }
        }
      }
      for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < V; ++v) store_raw(out + r * G * kInt8Units + (first + v) * 8, sum[r][v]);
      }
    }
  }

  // 8 units at once, as two vectors of 4 units with two sums of each.
  template <int MR, int G>
  static __attribute__((noinline)) void wide(const int16_t* a, int64_t stride, const int8_t* weights, int64_t depth,
                                             int32_t* out) {
    for (int part = 0; part < 2 * G; ++part) {
      __m256i sum[MR][2] = {};
      const int8_t* w = weights + part * 32;
      for (int64_t k = 0; k < depth; ++k, w += G * 64) {
        const __m256i low = _mm256_cvtepi8_epi16(load_raw<__m128i>(w)),
                      high = _mm256_cvtepi8_epi16(load_raw<__m128i>(w + 16));
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) {
          const __m256i q = four(a + r * stride + k * kInt8Depth);
          sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(low, q));
          sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(high, q));
          // Row after row: with all rows' loads first, as the compiler has it, sums do not fit the registers.
          __asm__ volatile("" : "+x"(sum[r][0]), "+x"(sum[r][1]));
        }
      }
      for (int r = 0; r < MR; ++r) {
        // Sums of neighbours come by halves of both: units 0, 1, 4, 5, 2, 3, 6, 7.
        const __m256i mixed = _mm256_hadd_epi32(sum[r][0], sum[r][1]);
        store_raw(out + r * G * kInt8Units + part * 8, _mm256_permute4x64_epi64(mixed, 0xd8));
      }
    }
  }
};

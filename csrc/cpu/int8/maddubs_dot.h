// Products of quantised rows with a block of 16 units by AVX2's pairwise multiply-adds. Included inside a namespace of
// an instruction set with 256-bit vectors.
//
// VPMADDUBSW multiplies unsigned bytes by signed ones, and its sums of pairs saturate: |x| is the unsigned one, and x's
// sign goes to the weight. Its bits are flipped where x < 0, ~w = -w - 1: so every such x adds -|x| to all sums, which
// a row therefore starts with. A pair is at most 2 * 127 * 128 = 32512. (VPSIGNB needs no such start, but goes to the
// two ports that multiply, which are the limit here; any port flips bits.)
//
// A row lies as two: its magnitudes, and then its signs, 0 or -1.

struct MaddubsDot : QuantisedRows {
  struct Engine {};
  static constexpr int kRows = 6, kPlanes = 2;

  // The sum of a row is what its sums start with.
  static ActivationRow take_row(const float* row, int64_t n, int8_t* to, int64_t stride) {
    ActivationRow of = quantise(row, n, to, stride / 2);
    of.sum = take_signs(to, stride / 2);
    return of;
  }

  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    constexpr int kVectors = 2 * G, kHalf = G == 1 ? kVectors : 4;
    for (int r = 0; r < rows;) {
      const auto at = [&](auto taken, auto vectors) FASTLSTM_INLINE_LAMBDA {
        block<decltype(taken)::value, G, decltype(vectors)::value>(a + r * stride, stride, of + r, weights, depth,
                                                                   out + r * G * kInt8Units);
        r += decltype(taken)::value;
      };
      const int left = rows - r;
      if (left == 1) {
        at(std::integral_constant<int, 1>{}, std::integral_constant<int, kVectors>{});
      } else if (left == 2 || left == 4) {
        at(std::integral_constant<int, 2>{}, std::integral_constant<int, kHalf>{});
      } else {
        at(std::integral_constant<int, 3>{}, std::integral_constant<int, kHalf>{});
      }
    }
  }

 private:
  // row [2][stride]: numbers, which become their magnitudes, and their signs. Returns the sum of the magnitudes of
  // those below 0.
  static int32_t take_signs(int8_t* row, int64_t stride) {
    __m256i negative{};
    for (int64_t k = 0; k < stride; k += 32) {
      const __m256i x = load_raw<__m256i>(row + k), sign = _mm256_cmpgt_epi8(__m256i{}, x),
                    magnitude = _mm256_abs_epi8(x);
      store_raw(row + k, magnitude);
      store_raw(row + stride + k, sign);
      negative = _mm256_add_epi64(negative, _mm256_sad_epu8(_mm256_and_si256(magnitude, sign), __m256i{}));
    }
    int64_t sums[4];
    store_raw(sums, negative);
    return static_cast<int32_t>(sums[0] + sums[1] + sums[2] + sums[3]);
  }

  static FASTLSTM_INLINE __m256i four(const int8_t* a) { return _mm256_set1_epi32(load_raw<int32_t>(a)); }

  // V vectors of 8 units at once.
  template <int MR, int G, int V>
  static __attribute__((noinline)) void block(const int8_t* a, int64_t stride, const ActivationRow* of,
                                              const int8_t* weights, int64_t depth, int32_t* out) {
    // One row reads weights at the pace of the caches, which the processor's own prefetching does not keep up.
    constexpr int64_t kAhead = 1024;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int first = 0; first < 2 * G; first += V) {
      // Unrolled wherever sums are named: otherwise compilers keep them in memory.
      __m256i sum[MR][V];
#pragma GCC unroll 3
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = _mm256_set1_epi32(of[r].sum);
      }
      const int8_t* w = weights + first * 32;
      for (int64_t k = 0; k < depth; ++k, w += G * 64) {
#pragma GCC unroll 3
        for (int r = 0; r < MR; ++r) {
          const int8_t* row = a + r * stride + k * kInt8Depth;
          const __m256i magnitude = four(row), sign = four(row + stride / 2);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            if (MR == 1 && v % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(w + v * 32 + kAhead), _MM_HINT_T0);
            const __m256i weight = _mm256_xor_si256(load_raw<__m256i>(w + v * 32), sign);
            const __m256i pairs = _mm256_maddubs_epi16(magnitude, weight);
            sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, ones));
            // One after the other: with all loads first, as the compiler has it, sums do not fit the registers.
            __asm__ volatile("" : "+x"(sum[r][v]));
          }
        }
      }
#pragma GCC unroll 3
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) store_raw(out + r * G * kInt8Units + (first + v) * 8, sum[r][v]);
      }
    }
  }
};

// Products of quantised rows with a block of 16 units by AVX2's pairwise multiply-adds. Included inside a namespace of
// an instruction set with 256-bit vectors.
//
// VPMADDUBSW multiplies unsigned bytes by signed ones, and its sums of pairs saturate. |x| is the unsigned one, and x's
// sign goes to the weight: its bits are flipped where x < 0, ~w = -w - 1, so that every such x adds -|x| to all sums,
// which a row therefore starts with. A pair is at most 2 * 127 * 128 = 32512. (VPSIGNB needs no such start, but goes to
// the two ports that multiply, which are the limit here; any port flips bits.)

struct MaddubsDot : QuantisedRows {
  struct Engine {};
  // A row lies as two: its magnitudes, and its signs, 0 or -1.
  static constexpr int kRows = 6, kPlanes = 2;

  // The sum of a row is what its sums start with.
  static ActivationRow take_row(const float* row, int64_t n, int8_t* to, int64_t stride) {
    ActivationRow of = quantise(row, n, to, stride / 2);
    of.sum = split(to, stride / 2);
    return of;
  }

  // Row after row: a block is small enough to be read again, and one row's sums of 64 units fit the registers.
  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    for (int r = 0; r < rows; ++r) {
      one_row<2 * G, 1>(a + r * stride, stride / 2, of[r].sum, weights, depth, out + r * G * kInt8Units);
    }
  }

  // The same of the first 8 units of each gate alone; other sums are left as they are.
  static constexpr bool kHalves = true;
  static void half_sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of,
                        const int8_t* weights, int64_t depth, int32_t* out) {
    for (int r = 0; r < rows; ++r) {
      one_row<4, 2>(a + r * stride, stride / 2, of[r].sum, weights, depth, out + r * 4 * kInt8Units);
    }
  }

 private:
  // row [2][stride]: numbers, which become their magnitudes, and their signs. Returns the sum of the magnitudes of
  // those below 0.
  static int32_t split(int8_t* row, int64_t stride) {
    __m256i negative{};
    for (int64_t k = 0; k < stride; k += 32) {
      const __m256i x = load_raw<__m256i>(row + k), sign = _mm256_cmpgt_epi8(__m256i{}, x);
      const __m256i magnitude = _mm256_abs_epi8(x);
      store_raw(row + k, magnitude);
      store_raw(row + stride + k, sign);
      negative = _mm256_add_epi64(negative, _mm256_sad_epu8(_mm256_and_si256(magnitude, sign), __m256i{}));
    }
    int64_t sums[4];
    store_raw(sums, negative);
    return static_cast<int32_t>(sums[0] + sums[1] + sums[2] + sums[3]);
  }

  static FASTLSTM_INLINE __m256i four(const int8_t* a) { return _mm256_set1_epi32(load_raw<int32_t>(a)); }

  // Sums of V vectors of 8 units, every S-th of those that lie there.
  template <int V, int S>
  static __attribute__((noinline)) void one_row(const int8_t* row, int64_t stride, int32_t start, const int8_t* weights,
                                                int64_t depth, int32_t* out) {
    // Weights are read at the pace of the caches, which the processor's own prefetching does not keep up.
    constexpr int64_t kAhead = 1024;
    const __m256i ones = _mm256_set1_epi16(1);
    // Unrolled wherever sums are named: otherwise compilers keep them in memory.
    __m256i sum[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = _mm256_set1_epi32(start);
    const int8_t* w = weights;
    for (int64_t k = 0; k < depth; ++k, w += V * S * 32) {
      const __m256i magnitude = four(row + k * kInt8Depth), sign = four(row + stride + k * kInt8Depth);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        if (v * S % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(w + v * S * 32 + kAhead), _MM_HINT_T0);
        const __m256i weight = _mm256_xor_si256(load_raw<__m256i>(w + v * S * 32), sign);
        sum[v] = _mm256_add_epi32(sum[v], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, weight), ones));
        // One after the other: with all loads first, as the compiler has it, sums do not fit the registers.
        __asm__ volatile("" : "+x"(sum[v]));
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_raw(out + v * S * 8, sum[v]);
  }
};

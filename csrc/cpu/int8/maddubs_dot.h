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

  // The sum of a row is what its sums start with: that of the magnitudes of those below 0.
  static ActivationRow take_row(const float* row, int64_t n, int8_t* to, int64_t stride) {
    const RowScale of = scale_of(row, n);
    if (of.inverse == 0) {
      __builtin_memset(to, 0, stride);
      return {of.scale, 0};
    }
    const int64_t plane = stride / 2;
    const __m256 inverse = _mm256_set1_ps(of.inverse);
    __m256i negative{};
    const auto take = [&](int64_t k, const auto& load) FASTLSTM_INLINE_LAMBDA {
      const auto whole = [&](int64_t j) FASTLSTM_INLINE_LAMBDA {
        // The nearest, ties to even, as elsewhere.
        return _mm256_cvtps_epi32(_mm256_mul_ps(bit_cast<__m256>(load(k + j)), inverse));
      };
      const __m256i low = _mm256_packs_epi32(whole(0), whole(8)), high = _mm256_packs_epi32(whole(16), whole(24));
      // Packing goes by the halves of a register.
      const __m256i q =
          _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      const __m256i magnitude = _mm256_abs_epi8(q), sign = _mm256_cmpgt_epi8(__m256i{}, q);
      store_raw(to + k, magnitude);
      store_raw(to + plane + k, sign);
      negative = _mm256_add_epi64(negative, _mm256_sad_epu8(_mm256_and_si256(magnitude, sign), __m256i{}));
    };
    int64_t k = 0;
    for (; k + 32 <= n; k += 32) {
      take(k, [&](int64_t at) FASTLSTM_INLINE_LAMBDA { return load_raw<Vec<float>>(row + at); });
    }
    if (k < n) {
      take(k, [&](int64_t at) FASTLSTM_INLINE_LAMBDA { return load_rest(row + at, n - at); });
      k += 32;
    }
    for (; k < plane; k += 32) {
      store_raw(to + k, __m256i{});
      store_raw(to + plane + k, __m256i{});
    }
    int64_t sums[4];
    store_raw(sums, negative);
    return {of.scale, static_cast<int32_t>(sums[0] + sums[1] + sums[2] + sums[3])};
  }

  // Row after row: one row's sums of 64 units fit the registers. Of a block that the nearest cache does not hold beside
  // the rest, all rows take one piece after the other.
  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    by_pieces<2 * G, 1>(rows, a, stride, of, weights, depth, out, G * kInt8Units);
  }

  // The same of the first 8 units of each gate alone; other sums are left as they are.
  static constexpr bool kHalves = true;
  static void half_sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of,
                        const int8_t* weights, int64_t depth, int32_t* out) {
    by_pieces<4, 2>(rows, a, stride, of, weights, depth, out, 4 * kInt8Units);
  }

 private:
  static FASTLSTM_INLINE __m256i four(const int8_t* a) { return _mm256_set1_epi32(load_raw<int32_t>(a)); }

  template <int V, int S>
  static FASTLSTM_INLINE void by_pieces(int rows, const int8_t* a, int64_t stride, const ActivationRow* of,
                                        const int8_t* weights, int64_t depth, int32_t* out, int64_t out_stride) {
    constexpr int64_t kNear = 16384 / (V * S * 32);  // steps of k
    const int64_t pieces = rows == 1 ? 1 : (depth + kNear - 1) / kNear;
    for (int64_t n = 0; n < pieces; ++n) {
      const int64_t begin = depth * n / pieces, steps = depth * (n + 1) / pieces - begin;
      for (int r = 0; r < rows; ++r) {
        const Piece piece{a + r * stride + begin * kInt8Depth, stride / 2,          weights + begin * V * S * 32, steps,
                          n == 0 ? &of[r].sum : nullptr,       out + r * out_stride};
        if (r == 0) {
          one_row<V, S, true>(piece);
        } else {
          one_row<V, S, false>(piece);
        }
      }
    }
  }

  struct Piece {
    const int8_t* row;
    int64_t signs;  // where they are, from the magnitudes
    const int8_t* weights;
    int64_t steps;
    const int32_t* start;  // null: goes on with what `out` holds
    int32_t* out;
  };

  // sum += the products of a row's four k with 8 units' weights. Left to itself the compiler adds in another register
  // and copies, an instruction more; with all of it spelled out prefetches came elsewhere: up to a twentieth slower.
  static FASTLSTM_INLINE void add_products(__m256i& sum, __m256i magnitude, __m256i sign, const int8_t* weights,
                                           __m256i ones) {
    const __m256i weight = _mm256_xor_si256(load_raw<__m256i>(weights), sign);
    const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, weight), ones);
    __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
  }

  // Sums of V vectors of 8 units, every S-th of those that lie there. Ahead: the weights are not near yet.
  template <int V, int S, bool Ahead>
  static __attribute__((noinline)) void one_row(const Piece& piece) {
    // Weights are read at the pace of the caches, which the processor's own prefetching does not keep up.
    constexpr int64_t kAhead = 1024;
    constexpr int kAtOnce = 2;
    const __m256i ones = _mm256_set1_epi16(1);
    // Unrolled wherever sums are named: otherwise compilers keep them in memory.
    __m256i sum[V];
    if (piece.start != nullptr) {
      const __m256i start = _mm256_set1_epi32(*piece.start);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] = start;
    } else {
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] = load_raw<__m256i>(piece.out + v * S * 8);
    }
    const int8_t *magnitudes = piece.row, *signs = piece.row + piece.signs, *w = piece.weights;
    const auto add = [&](int k) FASTLSTM_INLINE_LAMBDA {
      const __m256i magnitude = four(magnitudes + k * kInt8Depth), sign = four(signs + k * kInt8Depth);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const int8_t* vector = w + (k * V + v) * S * 32;
        if (Ahead && v * S % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(vector + kAhead), _MM_HINT_T0);
        add_products(sum[v], magnitude, sign, vector, ones);
      }
    };
    int64_t k = piece.steps;
    const auto advance = [&](int steps) FASTLSTM_INLINE_LAMBDA {
      magnitudes += steps * kInt8Depth, signs += steps * kInt8Depth, w += steps * V * S * 32, k -= steps;
      __asm__("" : "+r"(magnitudes), "+r"(signs), "+r"(w));
    };
    while (k >= kAtOnce) {
#pragma GCC unroll 4
      for (int n = 0; n < kAtOnce; ++n) add(n);
      advance(kAtOnce);
    }
    while (k > 0) {
      add(0);
      advance(1);
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store_raw(piece.out + v * S * 8, sum[v]);
  }
};

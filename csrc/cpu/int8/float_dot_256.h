// Products of float32 rows with a block of 16 units of 8-bit weights, for `weight_only`, in vectors of 256 bits: in the
// place of float_dot.h where AVX2 is. Included inside a namespace of an instruction set, after simd.h.
//
// 8 bytes of weights, four k of two units, become a vector of numbers by two instructions, where single k of 8 units
// take three. So a lane sums every fourth k, and four lanes, added at the end, are a unit's sum: in the same order for
// any number of rows.

struct FloatDot {
  using Activation = float;
  using Sum = float;
  struct Engine {};
  static constexpr int kRows = 6;
  static constexpr bool kQuantised = false, kHalves = true;
  static constexpr int kPlanes = 1;

  static ActivationRow take_row(const float* row, int64_t n, float* to, int64_t stride) {
    __builtin_memcpy(to, row, n * sizeof(float));
    __builtin_memset(to + n, 0, (stride - n) * sizeof(float));
    return {1.f, 0};
  }

  // As PlainDot's. The last numbers of a row are zeros, up to a multiple of 4.
  template <int G>
  static void sums(Engine&, int rows, const float* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                   int64_t depth, float* out) {
    by_tiles<G, false>(rows, a, stride, weights, depth, out);
  }

  // The same of the first 8 units of each gate alone; other sums are left as they are.
  static void half_sums(Engine&, int rows, const float* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                        int64_t depth, float* out) {
    by_tiles<4, true>(rows, a, stride, weights, depth, out);
  }

 private:
  static constexpr int64_t kDepthBytes = kInt8Units * kInt8Depth;  // of a gate's four k

  static FASTLSTM_INLINE __m256 repeated(const float* four) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(four));
  }

  static FASTLSTM_INLINE __m256 widened(const int8_t* eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_raw<int64_t>(eight))));
  }

  // The sums of every four lanes, (0 + 1) + (2 + 3), of V vectors: two units of each, in their order.
  template <int V>
  static FASTLSTM_INLINE void store_folded(float* to, const __m256* of) {
    if constexpr (V == 2) {
      const __m256 pairs = _mm256_hadd_ps(of[0], of[1]), units = _mm256_hadd_ps(pairs, pairs);
      store_raw(to, _mm_unpacklo_ps(_mm256_castps256_ps128(units), _mm256_extractf128_ps(units, 1)));
    } else {
#pragma GCC unroll 2
      for (int v = 0; v < V; v += 4) {
        const __m256 pairs = _mm256_hadd_ps(of[v], of[v + 1]), more = _mm256_hadd_ps(of[v + 2], of[v + 3]);
        // Each half of a register by itself: the first units of the four vectors, then the second ones.
        const __m256 units = _mm256_hadd_ps(pairs, more);
        store_raw(to + v * 2, _mm256_permutevar8x32_ps(units, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
      }
    }
  }

  // As many sums as the registers hold beside what they are made of: one row by eight vectors, six rows by two.
  template <int G, bool Half>
  static void by_tiles(int rows, const float* a, int64_t stride, const int8_t* weights, int64_t depth, float* out) {
    switch (rows) {
      case 1:
        return tile<1, Half ? 4 : 8, G, Half>(a, stride, weights, depth, out);
      case 2:
        return tile<2, 4, G, Half>(a, stride, weights, depth, out);
      case 3:
        return tile<3, 4, G, Half>(a, stride, weights, depth, out);
      case 4:
        return tile<4, 2, G, Half>(a, stride, weights, depth, out);
      case 5:
        return tile<5, 2, G, Half>(a, stride, weights, depth, out);
      default:
        return tile<6, 2, G, Half>(a, stride, weights, depth, out);
    }
  }

  // Sums of R rows, V vectors of two units at a time; Half: of the first 8 units of each gate.
  template <int R, int V, int G, bool Half>
  static __attribute__((noinline)) void tile(const float* a, int64_t stride, const int8_t* weights, int64_t depth,
                                             float* out) {
    constexpr int64_t kPiece = V * 8, kPieces = kDepthBytes / (Half ? 2 : 1) / kPiece;
    constexpr int64_t kAhead = 4096;  // the passes read short pieces far apart, which the processor does not expect
    for (int64_t pass = 0; pass < G * kPieces; ++pass) {
      const int64_t first = pass / kPieces * kDepthBytes + pass % kPieces * kPiece;
      // Unrolled wherever sums are named: otherwise compilers keep them in memory.
      __m256 sum[R][V];
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = __m256{};
      }
      const int8_t* w = weights + first;
      for (int64_t k = 0; k < depth; ++k, w += G * kDepthBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
        // Of two vectors these are kept, of more the rows' numbers.
        __m256 weight[V], x[R];
        if constexpr (V == 2) {
          weight[0] = widened(w), weight[1] = widened(w + 8);
        } else {
#pragma GCC unroll 3
          for (int r = 0; r < R; ++r) x[r] = repeated(a + r * stride + k * kInt8Depth);
        }
#pragma GCC unroll 8
        for (int j = 0; j < (V == 2 ? R : V); ++j) {
          if constexpr (V == 2) {
            x[j] = repeated(a + j * stride + k * kInt8Depth);
            sum[j][0] = _mm256_fmadd_ps(weight[0], x[j], sum[j][0]);
            sum[j][1] = _mm256_fmadd_ps(weight[1], x[j], sum[j][1]);
            // One row after the other: with all loads first, as compilers have it, the registers do not suffice.
            __asm__ volatile("" : "+x"(sum[j][0]), "+x"(sum[j][1]));
          } else {
            weight[j] = widened(w + j * 8);
#pragma GCC unroll 3
            for (int r = 0; r < R; ++r) sum[r][j] = _mm256_fmadd_ps(weight[j], x[r], sum[r][j]);
          }
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) store_folded<V>(out + r * G * kInt8Units + first / kInt8Depth, sum[r]);
    }
  }
};

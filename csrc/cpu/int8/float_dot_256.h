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
    by_tiles<G, 8, 1>(rows, a, stride, weights, depth, out);
  }

  // The same of the first 8 units of each gate alone; other sums are left as they are.
  static void half_sums(Engine&, int rows, const float* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                        int64_t depth, float* out) {
    by_tiles<4, 4, 2>(rows, a, stride, weights, depth, out);
  }

 private:
  static constexpr int64_t kDepthBytes = kInt8Units * kInt8Depth;  // of a gate's four k

  static FASTLSTM_INLINE __m256 widened(const int8_t* eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(load_raw<int64_t>(eight))));
  }

  // The sums of every four lanes, (0 + 1) + (2 + 3), of four vectors: of 8 units in their order.
  static FASTLSTM_INLINE __m256 folded(const __m256* of) {
    const __m256 pairs = _mm256_hadd_ps(of[0], of[1]), more = _mm256_hadd_ps(of[2], of[3]);
    // Each half of a register by itself: the first units of the four vectors, then the second ones.
    return _mm256_permutevar8x32_ps(_mm256_hadd_ps(pairs, more), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }

  // One row by Alone vectors, several by four, of every S-th such group.
  template <int G, int Alone, int S>
  static void by_tiles(int rows, const float* a, int64_t stride, const int8_t* weights, int64_t depth, float* out) {
    int r = 0;
    for (; rows - r >= 3; r += 3) tile<3, 4, S, G>(a + r * stride, stride, weights, depth, out + r * G * kInt8Units);
    if (rows - r == 2) tile<2, 4, S, G>(a + r * stride, stride, weights, depth, out + r * G * kInt8Units);
    if (rows - r == 1) tile<1, Alone, S, G>(a + r * stride, stride, weights, depth, out + r * G * kInt8Units);
  }

  // Sums of R rows, V vectors of two units at a time.
  template <int R, int V, int S, int G>
  static __attribute__((noinline)) void tile(const float* a, int64_t stride, const int8_t* weights, int64_t depth,
                                             float* out) {
    constexpr int64_t kAhead = 4096;  // the passes read short pieces far apart, which the processor does not expect
    for (int64_t first = 0; first < G * kDepthBytes; first += S * V * 8) {
      // Unrolled wherever sums are named: otherwise compilers keep them in memory.
      __m256 sum[R][V];
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = __m256{};
      }
      const int8_t* w = weights + first;
      for (int64_t k = 0; k < depth; ++k, w += G * kDepthBytes) {
        _mm_prefetch(reinterpret_cast<const char*>(w + kAhead), _MM_HINT_T0);
        __m256 x[R];
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          x[r] = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(a + r * stride + k * kInt8Depth));
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          const __m256 weight = widened(w + v * 8);
#pragma GCC unroll 3
          for (int r = 0; r < R; ++r) sum[r][v] = _mm256_fmadd_ps(weight, x[r], sum[r][v]);
        }
      }
#pragma GCC unroll 3
      for (int r = 0; r < R; ++r) {
        float* to = out + r * G * kInt8Units + first / kInt8Depth;
#pragma GCC unroll 2
        for (int v = 0; v < V; v += 4) store_raw(to + v * 2, folded(sum[r] + v));
      }
    }
  }
};

// Products of float32 rows with a block of 16 units of 8-bit weights, for `weight_only`: weights are widened in
// registers. Included inside a namespace of an instruction set, after simd.h.

struct FloatDot {
  using Activation = float;
  using Sum = float;
  struct Engine {};
  static constexpr int kRows = kRegisters == 32 ? 8 : 4;
  static constexpr bool kQuantised = false, kHalves = false;
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
    for (int r = 0; r < rows;) {
      const auto at = [&](auto taken) FASTLSTM_INLINE_LAMBDA {
        constexpr int MR = decltype(taken)::value;
        // One row takes all gates at once, so that weights are read in one stream.
        constexpr int kAtOnce = MR == 1 ? G : 1;
        block<MR, G, kAtOnce>(a + r * stride, stride, weights, depth, out + r * G * kInt8Units);
        r += MR;
      };
      if (kRows == 8 && rows - r >= 8) {
        at(std::integral_constant<int, 8>{});
      } else if (rows - r >= 4) {
        at(std::integral_constant<int, 4>{});
      } else if (rows - r >= 2) {
        at(std::integral_constant<int, 2>{});
      } else {
        at(std::integral_constant<int, 1>{});
      }
    }
  }

 private:
  static constexpr int L = lanes<float>, kVectors = kInt8Units / L;

  template <int MR, int G, int GatesAtOnce>
  static void block(const float* a, int64_t stride, const int8_t* weights, int64_t depth, float* out) {
    constexpr int V = GatesAtOnce * kVectors;
    for (int first = 0; first < G; first += GatesAtOnce) {
      Vec<float> sum[MR][V] = {};
      for (int64_t k = 0; k < depth; ++k) {
        const int8_t* w = weights + (k * G + first) * kInt8Units * kInt8Depth;
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
          const IntVec four = load_raw<IntVec>(w + v * L * kInt8Depth);
#pragma GCC unroll 4
          for (int j = 0; j < kInt8Depth; ++j) {
            // Byte j of each lane, its sign taken along.
            const Vec<float> weight = __builtin_convertvector((four << (24 - 8 * j)) >> 24, Vec<float>);
#pragma GCC unroll 8
            for (int r = 0; r < MR; ++r) sum[r][v] += weight * splat(a[r * stride + k * kInt8Depth + j]);
          }
        }
      }
      for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < V; ++v) store_raw(out + (r * G + first) * kInt8Units + v * L, sum[r][v]);
      }
    }
  }
};

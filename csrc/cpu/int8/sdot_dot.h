// Products of quantised rows with a block of 16 units by SDOT, signed bytes by signed, on aarch64. Included inside the
// namespace of an instruction set that has it, with 128-bit vectors.

struct SdotDot : QuantisedRows {
  struct Engine {};
  static constexpr int kRows = 4;

  // As PlainDot's. Of the 32 registers 16 hold sums, of any number of rows.
  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    switch (rows) {
      case 1:
        return block<1, G, 4 * G>(a, stride, weights, depth, out);
      case 2:
        return block<2, G, G == 1 ? 4 : 8>(a, stride, weights, depth, out);
      case 3:
        return block<3, G, 4>(a, stride, weights, depth, out);
      default:
        return block<4, G, 4>(a, stride, weights, depth, out);
    }
  }

 private:
  // V vectors of 4 units at once.
  template <int MR, int G, int V>
  static void block(const int8_t* a, int64_t stride, const int8_t* weights, int64_t depth, int32_t* out) {
    for (int first = 0; first < 4 * G; first += V) {
      int32x4_t sum[MR][V];
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[r][v] = vdupq_n_s32(0);
      }
      const int8_t* w = weights + first * 16;
      for (int64_t k = 0; k < depth; ++k, w += G * 64) {
        int8x16_t x[MR];
#pragma GCC unroll 4
        for (int r = 0; r < MR; ++r) {
          x[r] = vreinterpretq_s8_s32(vdupq_n_s32(load_raw<int32_t>(a + r * stride + k * kInt8Depth)));
        }
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
          const int8x16_t weight = vld1q_s8(w + v * 16);
#pragma GCC unroll 4
          for (int r = 0; r < MR; ++r) sum[r][v] = vdotq_s32(sum[r][v], weight, x[r]);
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store_raw(out + r * G * kInt8Units + (first + v) * 4, sum[r][v]);
      }
    }
  }
};

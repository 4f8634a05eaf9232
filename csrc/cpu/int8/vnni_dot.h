// Products of quantised rows with a block of 16 units by VPDPBUSD, of AVX-VNNI or AVX512-VNNI by the vector's width.
// Included inside a namespace of such an instruction set.
//
// The instruction multiplies unsigned bytes by signed ones. Weights are made the unsigned ones, w + 128 by flipping a
// bit, once for all rows; what that adds, 128 times the sum of the row, is known from quantising it.

#if FASTLSTM_SIMD_BYTES == 32 && defined(FASTLSTM_EMULATE_AVX512)
#include "cpu/simd/emulated_vnni.h"
#endif

struct VnniDot : QuantisedRows {
  struct Engine {};
  static constexpr int kRows = kRegisters == 32 ? 6 : 3;

  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow* of, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    // Of one vector, or few, the sums of every other k are kept apart: they would wait for each other.
    constexpr int kApart = G == 1 ? 4 : kRegisters == 32 ? 2 : 1;
    switch (rows) {
      case 1:
        return block<1, G, kApart>(a, stride, of, weights, depth, out);
      case 2:
        return block<2, G, 1>(a, stride, of, weights, depth, out);
      case 3:
        return block<3, G, 1>(a, stride, of, weights, depth, out);
      case 4:
        if constexpr (kRows > 3) return block<4, G, 1>(a, stride, of, weights, depth, out);
        break;
      case 5:
        if constexpr (kRows > 3) return block<5, G, 1>(a, stride, of, weights, depth, out);
        break;
      default:
        if constexpr (kRows > 3) return block<6, G, 1>(a, stride, of, weights, depth, out);
        break;
    }
  }

 private:
  static constexpr int kVectorBytes = FASTLSTM_SIMD_BYTES, kOfSixteen = 64 / kVectorBytes;

  static FASTLSTM_INLINE IntVec add_products(IntVec sum, IntVec unsigned_bytes, IntVec signed_bytes) {
#if FASTLSTM_SIMD_BYTES == 64
    return bit_cast<IntVec>(_mm512_dpbusd_epi32(bit_cast<__m512i>(sum), bit_cast<__m512i>(unsigned_bytes),
                                                bit_cast<__m512i>(signed_bytes)));
#else
    return bit_cast<IntVec>(_mm256_dpbusd_avx_epi32(bit_cast<__m256i>(sum), bit_cast<__m256i>(unsigned_bytes),
                                                    bit_cast<__m256i>(signed_bytes)));
#endif
  }

  template <int MR, int G, int kApart>
  static __attribute__((noinline)) void block(const int8_t* a, int64_t stride, const ActivationRow* of,
                                              const int8_t* weights, int64_t depth, int32_t* out) {
    // With 16 registers, two or three rows take half of the vectors at a time.
    constexpr int kAll = G * kOfSixteen, V = kRegisters == 32 || MR == 1 ? kAll : kAll < 4 ? kAll : 4;
    constexpr int32_t kFlip = static_cast<int32_t>(0x80808080u);
    const int8_t* row[MR];
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
      row[r] = a + r * stride;
      __asm__("" : "+r"(row[r]));  // a register each: else addresses are worked out again for every k
    }
    for (int first = 0; first < kAll; first += V) {
      IntVec sum[kApart][MR][V] = {};
      const auto add = [&](int64_t k, int apart) FASTLSTM_INLINE_LAMBDA {
        const int8_t* w = weights + k * G * 64 + first * kVectorBytes;
        // Kept are the vectors or, where they would not leave registers enough, the rows' numbers.
        constexpr bool kKeepVectors = kRegisters == 32 || MR < 3;
        IntVec flipped[V], x[MR];
        const auto flip = [&](int v)
                              FASTLSTM_INLINE_LAMBDA { flipped[v] = load_raw<IntVec>(w + v * kVectorBytes) ^ kFlip; };
        const auto repeat = [&](int r) FASTLSTM_INLINE_LAMBDA {
          x[r] = IntVec{} + load_raw<int32_t>(row[r] + k * kInt8Depth);
        };
        if constexpr (kKeepVectors) {
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) flip(v);
#pragma GCC unroll 6
          for (int r = 0; r < MR; ++r) {
            repeat(r);
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[apart][r][v] = add_products(sum[apart][r][v], flipped[v], x[r]);
          }
        } else {
#pragma GCC unroll 6
          for (int r = 0; r < MR; ++r) repeat(r);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            flip(v);
#pragma GCC unroll 6
            for (int r = 0; r < MR; ++r) {
              sum[apart][r][v] = add_products(sum[apart][r][v], flipped[v], x[r]);
              __asm__ volatile("" : "+x"(sum[apart][r][v]));  // else the compiler flips all vectors first
            }
          }
        }
      };
      int64_t k = 0;
      for (; k + kApart <= depth; k += kApart) {
#pragma GCC unroll 4
        for (int apart = 0; apart < kApart; ++apart) add(k + apart, apart);
      }
      for (; k < depth; ++k) add(k, 0);
      for (int r = 0; r < MR; ++r) {
        for (int v = 0; v < V; ++v) {
          IntVec all = sum[0][r][v] - 128 * of[r].sum;
          for (int apart = 1; apart < kApart; ++apart) all += sum[apart][r][v];
          store_raw(out + r * G * kInt8Units + (first + v) * lanes<float>, all);
        }
      }
    }
  }
};

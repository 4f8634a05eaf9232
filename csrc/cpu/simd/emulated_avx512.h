// Stand-ins for AVX-512 on a machine with AVX2 only: one for each instruction that the kernels name, in 256-bit halves,
// with the semantics of Intel's Software Developer's Manual. Slow, in test builds only (FASTLSTM_EMULATE_AVX512, see
// setup.py). The compiler lowers all other vector code, which uses its vector extension, to AVX2. Included by simd.h.

#if defined(__clang__)
#error "FASTLSTM_EMULATE_AVX512 is for GCC: the targets of its sources are set by GCC's pragma"
#endif

#include "cpu/simd/emulated_vnni.h"

namespace emulated {

// Half `high` of a vector; a vector of two halves.
template <class Half, class Whole>
FASTLSTM_INLINE Half half(const Whole& whole, bool high) {
  static_assert(sizeof(Whole) == 2 * sizeof(Half));
  Half part;
  __builtin_memcpy(&part, reinterpret_cast<const char*>(&whole) + (high ? sizeof(Half) : 0), sizeof(Half));
  return part;
}

template <class Whole, class Half>
FASTLSTM_INLINE Whole whole(const Half& low, const Half& high) {
  static_assert(sizeof(Whole) == 2 * sizeof(Half));
  Whole both;
  __builtin_memcpy(&both, &low, sizeof(Half));
  __builtin_memcpy(reinterpret_cast<char*>(&both) + sizeof(Half), &high, sizeof(Half));
  return both;
}

// The lanes of type Lane whose mask bit is set; zeros in the others.
template <class Lane, class V>
FASTLSTM_INLINE V masked(uint32_t mask, const V& v) {
  constexpr int kLanes = sizeof(V) / sizeof(Lane);
  Lane lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof(V));
#pragma GCC unroll 16
  for (int j = 0; j < kLanes; ++j) {
    if ((mask >> j & 1) == 0) lanes[j] = 0;
  }
  V kept;
  __builtin_memcpy(&kept, lanes, sizeof(V));
  return kept;
}

// operation(half of a, half of b, ...) for both halves.
template <class Half, class Operation, class... Vectors>
FASTLSTM_INLINE auto by_halves(const Operation& operation, const Vectors&... v) {
  return whole<std::common_type_t<Vectors...>>(operation(half<Half>(v, false)...), operation(half<Half>(v, true)...));
}

FASTLSTM_INLINE __m512 setzero_ps() { return __m512{}; }

FASTLSTM_INLINE __m512i set1_epi32(int32_t x) {
  const __m256i all = _mm256_set1_epi32(x);
  return whole<__m512i>(all, all);
}

FASTLSTM_INLINE __m512 add_ps(__m512 a, __m512 b) { return a + b; }

FASTLSTM_INLINE __m512 fmadd_ps(__m512 a, __m512 b, __m512 c) {
  const auto fused = [](__m256 x, __m256 y, __m256 z) FASTLSTM_INLINE_LAMBDA { return _mm256_fmadd_ps(x, y, z); };
  return by_halves<__m256>(fused, a, b, c);
}

FASTLSTM_INLINE __m512 abs_ps(__m512 x) {
  const auto without_sign = [](__m256 part)
                                FASTLSTM_INLINE_LAMBDA { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), part); };
  return by_halves<__m256>(without_sign, x);
}

// If one of two numbers is NaN, or both are zeros, the result is the second.
FASTLSTM_INLINE __m512 maskz_min_ps(__mmask16 mask, __m512 a, __m512 b) {
  const auto least = [](__m256 x, __m256 y) FASTLSTM_INLINE_LAMBDA { return _mm256_min_ps(x, y); };
  return masked<uint32_t>(mask, by_halves<__m256>(least, a, b));
}

FASTLSTM_INLINE __m512 maskz_max_ps(__mmask16 mask, __m512 a, __m512 b) {
  const auto largest = [](__m256 x, __m256 y) FASTLSTM_INLINE_LAMBDA { return _mm256_max_ps(x, y); };
  return masked<uint32_t>(mask, by_halves<__m256>(largest, a, b));
}

// 1 / x with the largest error that the instruction may have, just below 2^-14: rounded to 13 binary digits. Zeros,
// infinities, NaN and powers of two give exact results; results below 2^-126 and above 2^127 are not rounded.
FASTLSTM_INLINE __m512 maskz_rcp14_ps(__mmask16 mask, __m512 x) {
  const auto rounded = [](__m256 part) FASTLSTM_INLINE_LAMBDA {
    const __m256 exact = _mm256_div_ps(_mm256_set1_ps(1.f), part);
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.f), exact);
    const __m256 normal = _mm256_and_ps(_mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-126f), _CMP_GE_OQ),
                                        _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p127f), _CMP_LE_OQ));
    const __m256i nearest = _mm256_add_epi32(_mm256_castps_si256(exact), _mm256_set1_epi32(1 << 9));
    const __m256 short_one = _mm256_castsi256_ps(_mm256_and_si256(nearest, _mm256_set1_epi32(~0x3ff)));
    return _mm256_blendv_ps(exact, short_one, normal);
  };
  return masked<uint32_t>(mask, by_halves<__m256>(rounded, x));
}

// 64-bit products of the even 32-bit lanes.
FASTLSTM_INLINE __m512i maskz_mul_epu32(__mmask8 mask, __m512i a, __m512i b) {
  const auto multiply = [](__m256i x, __m256i y) FASTLSTM_INLINE_LAMBDA { return _mm256_mul_epu32(x, y); };
  return masked<uint64_t>(mask, by_halves<__m256i>(multiply, a, b));
}

FASTLSTM_INLINE __m512i maskz_cvtepu16_epi32(__mmask16 mask, __m256i x) {
  const __m256i low = _mm256_cvtepu16_epi32(half<__m128i>(x, false)),
                high = _mm256_cvtepu16_epi32(half<__m128i>(x, true));
  return masked<uint32_t>(mask, whole<__m512i>(low, high));
}

// The lower 16 bits of each lane.
FASTLSTM_INLINE __m256i maskz_cvtepi32_epi16(__mmask16 mask, __m512i x) {
  const __m256i lower = _mm256_set1_epi32(0xffff);
  const __m256i low = _mm256_and_si256(half<__m256i>(x, false), lower),
                high = _mm256_and_si256(half<__m256i>(x, true), lower);
  // Packing takes 128 bits of both in turn: the quarters of 64 bits come in the order 0, 2, 1, 3.
  return masked<uint16_t>(mask, _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
}

FASTLSTM_INLINE __m512 maskz_cvtph_ps(__mmask16 mask, __m256i x) {
  const __m256 low = _mm256_cvtph_ps(half<__m128i>(x, false)), high = _mm256_cvtph_ps(half<__m128i>(x, true));
  return masked<uint32_t>(mask, whole<__m512>(low, high));
}

template <int kRounding>
FASTLSTM_INLINE __m256i maskz_cvtps_ph(__mmask16 mask, __m512 x) {
  constexpr int kWithoutSuppression =
      kRounding & ~_MM_FROUND_NO_EXC;  // 256-bit conversions have no such bit; exceptions are masked
  const __m128i low = _mm256_cvtps_ph(half<__m256>(x, false), kWithoutSuppression);
  const __m128i high = _mm256_cvtps_ph(half<__m256>(x, true), kWithoutSuppression);
  return masked<uint16_t>(mask, whole<__m256i>(low, high));
}

template <int kPredicate>
FASTLSTM_INLINE __mmask16 cmp_ps_mask(__m512 a, __m512 b) {
  const int low = _mm256_movemask_ps(_mm256_cmp_ps(half<__m256>(a, false), half<__m256>(b, false), kPredicate));
  const int high = _mm256_movemask_ps(_mm256_cmp_ps(half<__m256>(a, true), half<__m256>(b, true), kPredicate));
  return static_cast<__mmask16>(low | high << 8);
}

// The instruction's classes quiet NaN (0x01), signalling NaN (0x80) and infinities (0x08, 0x10): all that is not below
// infinity.
template <int kKinds>
FASTLSTM_INLINE __mmask16 fpclass_ps_mask(__m512 x) {
  static_assert(kKinds == (0x01 | 0x80 | 0x08 | 0x10), "no other kinds are asked for");
  return cmp_ps_mask<_CMP_NLT_UQ>(abs_ps(x), __m512{} + __builtin_inff());
}

FASTLSTM_INLINE __m256 flushed(__m256 x) {
  const __m256 sign = _mm256_set1_ps(-0.f), magnitude = _mm256_andnot_ps(sign, x);
  const __m256 denormal = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0x1p-126f), _CMP_LT_OQ);
  return _mm256_blendv_ps(x, _mm256_and_ps(x, sign), denormal);
}

// sum + the product of the odd bfloat16 numbers, then + that of the even ones: two fused multiply-adds that read and
// write denormal numbers as zeros. Which of several NaN results is not emulated.
FASTLSTM_INLINE __m512 dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  const auto add = [](__m256 sum, __m256i x, __m256i y) FASTLSTM_INLINE_LAMBDA {
    const auto odd = [](__m256i pairs) FASTLSTM_INLINE_LAMBDA {
      return flushed(_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(~0xffff))));
    };
    const auto even = [](__m256i pairs)
                          FASTLSTM_INLINE_LAMBDA { return flushed(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16))); };
    const __m256 first = flushed(_mm256_fmadd_ps(odd(x), odd(y), flushed(sum)));
    return flushed(_mm256_fmadd_ps(even(x), even(y), first));
  };
  const __m256 low = add(half<__m256>(sums, false), half<__m256i>(a, false), half<__m256i>(b, false));
  const __m256 high = add(half<__m256>(sums, true), half<__m256i>(a, true), half<__m256i>(b, true));
  return whole<__m512>(low, high);
}

FASTLSTM_INLINE __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  const auto add = [](__m256i s, __m256i x, __m256i y) FASTLSTM_INLINE_LAMBDA { return dpbusd_avx_epi32(s, x, y); };
  return by_halves<__m256i>(add, sum, a, b);
}

}  // namespace emulated

#define _mm512_setzero_ps emulated::setzero_ps
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_add_ps emulated::add_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#define _mm512_abs_ps emulated::abs_ps
#define _mm512_maskz_min_ps emulated::maskz_min_ps
#define _mm512_maskz_max_ps emulated::maskz_max_ps
#define _mm512_maskz_rcp14_ps emulated::maskz_rcp14_ps
#define _mm512_maskz_mul_epu32 emulated::maskz_mul_epu32
#define _mm512_maskz_cvtepu16_epi32 emulated::maskz_cvtepu16_epi32
#define _mm512_maskz_cvtepi32_epi16 emulated::maskz_cvtepi32_epi16
#define _mm512_maskz_cvtph_ps emulated::maskz_cvtph_ps
#undef _mm512_maskz_cvtps_ph
#define _mm512_maskz_cvtps_ph(mask, x, rounding) emulated::maskz_cvtps_ph<(rounding)>(mask, x)
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, predicate) emulated::cmp_ps_mask<(predicate)>(a, b)
#undef _mm512_fpclass_ps_mask
#define _mm512_fpclass_ps_mask(x, kinds) emulated::fpclass_ps_mask<(kinds)>(x)
#define _mm512_dpbf16_ps emulated::dpbf16_ps
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32

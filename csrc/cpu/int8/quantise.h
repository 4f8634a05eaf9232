// A row of float32 numbers as 8-bit multiples of a scale of its own: scale = max |v| / 127, q = v * (1 / scale) rounded
// half to even. Included inside a namespace of an instruction set, after simd.h.
//
// A row that holds NaN or an infinity gets the scale NaN, with which all that is made of it is NaN. A row whose largest
// number is below kLeast counts as zeros: 1 / scale would leave the range of float32.

// What a quantised row needs beside its numbers. A class that multiplies may give `sum` a meaning of its own.
struct ActivationRow {
  float scale;
  int32_t sum;  // of its numbers
};

using IntVec = VectorOf<float>::integer;
typedef int8_t ByteVec __attribute__((vector_size(FASTLSTM_SIMD_BYTES / 4)));

// Numbers within a byte, as bytes. Of a conversion GCC makes scalar code for vectors of 256 bits.
FASTLSTM_INLINE void store_bytes(int8_t* to, IntVec q) {
#if FASTLSTM_SIMD_BYTES == 32
  const __m256i v = bit_cast<__m256i>(q);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  store_raw(to, _mm_cvtsi128_si64(_mm_packs_epi16(words, words)));
#else
  store_raw(to, __builtin_convertvector(q, ByteVec));
#endif
}

// take(a, b) over the lanes of a vector, its halves first.
template <class Take>
FASTLSTM_INLINE int32_t reduced(IntVec v, const Take& take) {
  typedef int32_t Half __attribute__((vector_size(FASTLSTM_SIMD_BYTES / 2)));
  Half halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  const Half half = take(halves[0], halves[1]);
  int32_t all = half[0];
  for (int j = 1; j < lanes<float> / 2; ++j) all = take(all, half[j]);
  return all;
}

// The nearest integers, ties to even, of |v| < 2^22: adding the shifter leaves them in the low bits. The product before
// it must not be fused with the sum: it is rounded to float32 first.
FASTLSTM_INLINE IntVec nearest(Vec<float> v) {
#if defined(__x86_64__)
#if FASTLSTM_SIMD_BYTES == 64 && defined(FASTLSTM_EMULATE_AVX512)
  __asm__("" : "+m"(v));
#elif FASTLSTM_SIMD_BYTES == 64
  __asm__("" : "+v"(v));
#else
  __asm__("" : "+x"(v));
#endif
#else
  __asm__("" : "+m"(v));
#endif
  constexpr float kShifter = 0x1.8p23f;
  return bit_cast<IntVec>(v + kShifter) - bit_cast<int32_t>(kShifter);
}

// n numbers, fewer than a vector, and zeros.
FASTLSTM_INLINE Vec<float> load_rest(const float* from, int64_t n) {
#if FASTLSTM_SIMD_BYTES == 32
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), lane);
  return bit_cast<Vec<float>>(_mm256_maskload_ps(from, mask));
#else
  return load_part<float>(from, n);
#endif
}

// What the numbers of a row are multiples of, and 1 / scale, which is 0 where all are to be zeros.
struct RowScale {
  float scale, inverse;
};

FASTLSTM_INLINE RowScale scale_of(const float* row, int64_t n) {
  constexpr int L = lanes<float>;
  constexpr float kLeast = 0x1p-100f;
  constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
  // Magnitudes in order are their bits in order, and NaN is above all.
  IntVec most{};
  const auto take = [&](Vec<float> v) FASTLSTM_INLINE_LAMBDA {
    const IntVec magnitude = bit_cast<IntVec>(v) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  };
  int64_t k = 0;
#pragma GCC unroll 4
  for (; k + L <= n; k += L) take(load_raw<Vec<float>>(row + k));
  if (k < n) take(load_rest(row + k, n - k));
  const int32_t bits = reduced(most, [](auto a, auto b) { return a > b ? a : b; });
  const float largest = bit_cast<float>(bits);
  if (bits >= kInfinity) return {__builtin_nanf(""), 0.f};
  if (largest < kLeast) return {0.f, 0.f};
  const float scale = largest / 127.f;
  return {scale, 1.f / scale};
}

// q [stride] = row [n] quantised, zeros after it.
FASTLSTM_INLINE ActivationRow quantise(const float* row, int64_t n, int8_t* q, int64_t stride) {
  constexpr int L = lanes<float>;
  const RowScale of = scale_of(row, n);
  if (of.inverse == 0) {
    __builtin_memset(q, 0, stride);
    return {of.scale, 0};
  }
  const Vec<float> inverse = splat(of.inverse);
  IntVec sums{};
  int64_t k = 0;
  for (; k + L <= n; k += L) {
    const IntVec whole = nearest(load_raw<Vec<float>>(row + k) * inverse);
    sums += whole;
    store_bytes(q + k, whole);
  }
  if (k < n) {
    const IntVec whole = nearest(load_rest(row + k, n - k) * inverse);
    sums += whole;
    store_bytes(q + k, whole);
    k += L;
  }
  if (k < stride) __builtin_memset(q + k, 0, stride - k);
  return {of.scale, reduced(sums, [](auto a, auto b) { return a + b; })};
}

// What the classes have in common that multiply such rows as they are. kPlanes: how many rows of bytes one takes.
// kHalves: whether there is half_sums, for a last block with no more than half of its units.
struct QuantisedRows {
  using Activation = int8_t;
  using Sum = int32_t;
  static constexpr bool kQuantised = true, kHalves = false;
  static constexpr int kPlanes = 1;

  static ActivationRow take_row(const float* row, int64_t n, int8_t* to, int64_t stride) {
    return quantise(row, n, to, stride);
  }
};

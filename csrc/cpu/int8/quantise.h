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

FASTLSTM_INLINE int32_t largest_lane(IntVec v) {
  int32_t most = v[0];
  for (int j = 1; j < lanes<float>; ++j) most = v[j] > most ? v[j] : most;
  return most;
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

// q [stride] = row [n] quantised, zeros after it.
inline ActivationRow quantise(const float* row, int64_t n, int8_t* q, int64_t stride) {
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
  for (; k + L <= n; k += L) take(load_raw<Vec<float>>(row + k));
  if (k < n) take(load_part<float>(row + k, n - k));
  const int32_t bits = largest_lane(most);
  const float largest = bit_cast<float>(bits);
  if (bits >= kInfinity || largest < kLeast) {
    __builtin_memset(q, 0, stride);
    return {bits >= kInfinity ? __builtin_nanf("") : 0.f, 0};
  }
  const float scale = largest / 127.f;
  const Vec<float> inverse = splat(1.f / scale);
  IntVec sums{};
  for (k = 0; k + L <= n; k += L) {
    const IntVec whole = nearest(load_raw<Vec<float>>(row + k) * inverse);
    sums += whole;
    store_raw(q + k, __builtin_convertvector(whole, ByteVec));
  }
  if (k < n) {
    const IntVec whole = nearest(load_part<float>(row + k, n - k) * inverse);
    sums += whole;
    store_raw(q + k, __builtin_convertvector(whole, ByteVec));
    k += L;
  }
  if (k < stride) __builtin_memset(q + k, 0, stride - k);
  int32_t sum = 0;
  for (int j = 0; j < L; ++j) sum += sums[j];
  return {scale, sum};
}

// What the classes have in common that multiply such rows as they are. kPlanes: how many rows of bytes one takes.
struct QuantisedRows {
  using Activation = int8_t;
  using Sum = int32_t;
  static constexpr bool kQuantised = true;
  static constexpr int kPlanes = 1;

  static ActivationRow take_row(const float* row, int64_t n, int8_t* to, int64_t stride) {
    return quantise(row, n, to, stride);
  }
};

// Each instruction of AVX-512 that the kernels name, against the same in plain C++, on numbers of every kind. Built
// with FASTLSTM_EMULATE_AVX512, the stand-ins of csrc/cpu/simd/emulated_avx512.h are what is checked; without it, the
// instructions themselves, and so what is written here. Prints a line for each that differs; exit status 77 where the
// machine lacks them.

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>

#if defined(FASTLSTM_EMULATE_AVX512)
#pragma GCC target("avx2,fma,f16c")
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")
#endif
#include "core/inline.h"

#define FASTLSTM_INLINE_LAMBDA __attribute__((always_inline))
#if defined(FASTLSTM_EMULATE_AVX512)
#include "cpu/simd/emulated_avx512.h"
#endif

template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

template <class Lane, int N>
struct Lanes {
  Lane at[N];

  template <class V>
  static Lanes of(const V& v) {
    return bits<Lanes>(v);
  }
  template <class V>
  V as() const {
    return bits<V>(*this);
  }
};
using Floats = Lanes<float, 16>;
using Words = Lanes<uint32_t, 16>;
using Longs = Lanes<uint64_t, 8>;
using Halves = Lanes<uint16_t, 16>;

int failures = 0;

template <class Lane>
bool same(Lane a, Lane b) {
  if constexpr (std::is_same_v<Lane, float>) {
    if (std::isnan(a) && std::isnan(b)) return true;
  }
  return std::memcmp(&a, &b, sizeof(Lane)) == 0;
}

// expected(j) of lanes j whose bit is in the mask, 0 of the others.
template <class Lane, int N, class Expected>
void check(const char* name, const Lanes<Lane, N>& got, const Expected& expected, uint32_t mask = 0xffff) {
  for (int j = 0; j < N; ++j) {
    if (same(got.at[j], (mask >> j & 1) != 0 ? static_cast<Lane>(expected(j)) : Lane{0})) continue;
    ++failures;
    std::printf("%s: lane %d\n", name, j);
    return;
  }
}

void check(const char* name, bool holds) {
  if (holds) return;
  ++failures;
  std::printf("%s\n", name);
}

std::mt19937_64 generator(1);

// Any bits; or a number of the middle of the range; or one of those that are hard.
uint32_t any_bits() {
  static const float hard[] = {0.f,       -0.f,       1.f,          -2.f,       INFINITY,   -INFINITY,      NAN,
                               0x1p-126f, -0x1p-127f, 0x1p-149f,    65504.f,    65519.99f,  65520.f,        0x1p-14f,
                               0x1p-24f,  0x1p-25f,   0x1.004p-25f, 0x1.002p0f, 0x1.006p0f, 0x1.fffffep127f};
  const uint64_t random = generator();
  const uint32_t low = static_cast<uint32_t>(random);
  switch (random >> 62) {
    case 0:
      return low;
    case 1:
      return bits<uint32_t>(hard[low % (sizeof(hard) / sizeof(float))]);
    default:
      return (low & 0x87ffffffu) + (60u << 24);  // 2^-7 to 2^9, of both signs
  }
}

template <class L>
L draw() {
  uint32_t words[sizeof(L) / 4];
  for (auto& word : words) word = any_bits();
  return bits<L>(words);
}

float of_bfloat16(uint16_t x) { return bits<float>(uint32_t{x} << 16); }

float flushed_to_zero(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x; }

float of_float16(uint16_t x) {
  const int exponent = x >> 10 & 31, fraction = x & 1023;
  const float sign = x >> 15 ? -1.f : 1.f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign *
         (exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(static_cast<float>(fraction), -24));
}

// To nearest even; of NaN, what is left of its digits, quiet.
uint16_t to_float16(float x) {
  const uint16_t sign = bits<uint32_t>(x) >> 16 & 0x8000;
  if (std::isnan(x)) return sign | 0x7e00 | (bits<uint32_t>(x) >> 13 & 0x1ff);
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.f) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const double units = std::nearbyint(std::ldexp(static_cast<double>(magnitude), 10 - exponent));
  // A magnitude below 2^-14 has the exponent field 0 and no leading digit; a carry moves into the field by itself.
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + static_cast<int>(units));
}

void check_reciprocal(const Floats& x, __mmask16 mask) {
  const auto got = Floats::of(_mm512_maskz_rcp14_ps(mask, x.as<__m512>()));
  for (int j = 0; j < 16; ++j) {
    const float number = x.at[j], found = got.at[j], magnitude = std::fabs(number);
    if ((mask >> j & 1) == 0) {
      check("rcp14: masked", same(found, 0.f));
    } else if (std::isnan(number) || magnitude == 0 || std::isinf(number)) {
      check("rcp14: special", same(found, 1 / number));
    } else if (magnitude >= 0x1p-126f && magnitude <= 0x1p126f) {
      check("rcp14: error", std::fabs(static_cast<double>(found) * number - 1) < 0x1p-14);
      if ((bits<uint32_t>(number) & 0x7fffff) == 0) check("rcp14: power of two", found == 1 / number);
    }
  }
}

void check_numbers(const Floats& a, const Floats& b, const Floats& c, __mmask16 mask) {
  const auto x = a.as<__m512>(), y = b.as<__m512>(), z = c.as<__m512>();
  const auto min = [&](int j) { return a.at[j] < b.at[j] ? a.at[j] : b.at[j]; };
  const auto max = [&](int j) { return a.at[j] > b.at[j] ? a.at[j] : b.at[j]; };
  check("add", Floats::of(_mm512_add_ps(x, y)), [&](int j) { return a.at[j] + b.at[j]; });
  check("fmadd", Floats::of(_mm512_fmadd_ps(x, y, z)), [&](int j) { return std::fma(a.at[j], b.at[j], c.at[j]); });
  check("abs", Floats::of(_mm512_abs_ps(x)), [&](int j) { return std::fabs(a.at[j]); });
  check("min", Floats::of(_mm512_maskz_min_ps(mask, x, y)), min, mask);
  check("max", Floats::of(_mm512_maskz_max_ps(mask, x, y)), max, mask);
  check_reciprocal(a, mask);

  uint32_t less = 0, unequal = 0, not_finite = 0;
  for (int j = 0; j < 16; ++j) {
    less |= static_cast<uint32_t>(a.at[j] < b.at[j]) << j;
    unequal |= static_cast<uint32_t>(!(a.at[j] == b.at[j])) << j;
    not_finite |= static_cast<uint32_t>(!std::isfinite(a.at[j])) << j;
  }
  check("cmp LT_OQ", _mm512_cmp_ps_mask(x, y, _CMP_LT_OQ) == less);
  check("cmp NEQ_UQ", _mm512_cmp_ps_mask(x, y, _CMP_NEQ_UQ) == unequal);
  check("fpclass", _mm512_fpclass_ps_mask(x, 0x01 | 0x80 | 0x08 | 0x10) == not_finite);
}

void check_conversions(const Floats& a, const Halves& h, __mmask16 mask) {
  const Words w = Words::of(a);
  const auto widened = Words::of(_mm512_maskz_cvtepu16_epi32(mask, h.as<__m256i>()));
  const auto narrowed = Halves::of(_mm512_maskz_cvtepi32_epi16(mask, w.as<__m512i>()));
  const auto wide = Floats::of(_mm512_maskz_cvtph_ps(mask, h.as<__m256i>()));
  const auto half =
      Halves::of(_mm512_maskz_cvtps_ph(mask, a.as<__m512>(), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  check("cvtepu16_epi32", widened, [&](int j) { return h.at[j]; }, mask);
  check("cvtepi32_epi16", narrowed, [&](int j) { return w.at[j]; }, mask);
  check("cvtph_ps", wide, [&](int j) { return of_float16(h.at[j]); }, mask);
  check("cvtps_ph", half, [&](int j) { return to_float16(a.at[j]); }, mask);
}

void check_integers(const Words& a, const Words& b, __mmask8 mask) {
  const auto products = Longs::of(_mm512_maskz_mul_epu32(mask, a.as<__m512i>(), b.as<__m512i>()));
  check("mul_epu32", products, [&](int j) { return uint64_t{a.at[2 * j]} * b.at[2 * j]; }, mask);
  check("set1_epi32", Words::of(_mm512_set1_epi32(static_cast<int>(a.at[0]))), [&](int) { return a.at[0]; });
}

void check_pairs(const Floats& sums, const Lanes<uint16_t, 32>& a, const Lanes<uint16_t, 32>& b) {
  const auto number = [](uint16_t x) { return flushed_to_zero(of_bfloat16(x)); };
  const auto got = Floats::of(_mm512_dpbf16_ps(sums.as<__m512>(), a.as<__m512bh>(), b.as<__m512bh>()));
  check("dpbf16", got, [&](int j) {
    float sum = flushed_to_zero(sums.at[j]);
    for (int k : {2 * j + 1, 2 * j}) sum = flushed_to_zero(std::fma(number(a.at[k]), number(b.at[k]), sum));
    return sum;
  });
}

void check_bytes(const Words& sums, const Lanes<uint8_t, 64>& a, const Lanes<int8_t, 64>& b) {
  const auto expected = [&](int j) {
    uint32_t sum = sums.at[j];
    for (int k = 4 * j; k < 4 * j + 4; ++k) sum += static_cast<uint32_t>(a.at[k] * b.at[k]);
    return sum;
  };
  check("dpbusd", Words::of(_mm512_dpbusd_epi32(sums.as<__m512i>(), a.as<__m512i>(), b.as<__m512i>())), expected);
}

// Whether this machine runs what was compiled.
bool runs_here() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(FASTLSTM_EMULATE_AVX512)
  return avx2;
#else
  return avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vnni");
#endif
}

int main() {
  if (!runs_here()) return 77;
  check("setzero", Floats::of(_mm512_setzero_ps()), [](int) { return 0.f; });
  for (int round = 0; round < 20000; ++round) {
    const auto mask = static_cast<__mmask16>(round % 2 == 0 ? 0xffff : generator());
    check_numbers(draw<Floats>(), draw<Floats>(), draw<Floats>(), mask);
    check_conversions(draw<Floats>(), draw<Halves>(), mask);
    check_integers(draw<Words>(), draw<Words>(), static_cast<__mmask8>(mask));
    check_pairs(draw<Floats>(), draw<Lanes<uint16_t, 32>>(), draw<Lanes<uint16_t, 32>>());
    check_bytes(draw<Words>(), draw<Lanes<uint8_t, 64>>(), draw<Lanes<int8_t, 64>>());
    if (failures > 20) break;
  }
  if (failures == 0) std::printf("all as they should be\n");
  return failures == 0 ? 0 : 1;
}

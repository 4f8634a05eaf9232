// Vectors of one instruction set, through the compilers' vector extension: FASTLSTM_SIMD_BYTES wide, so that one source
// compiles to SSE2 or NEON (16), AVX2 (32) and AVX-512 (64). Included inside the namespace of that instruction set,
// after isa/begin.h.
//
// Storage types are float, double, and the 16-bit types below; all arithmetic is on float or double vectors.

template <class Acc>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
  typedef int32_t integer __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
  typedef uint16_t half_bits __attribute__((vector_size(FASTLSTM_SIMD_BYTES / 2)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
  typedef int64_t integer __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(FASTLSTM_SIMD_BYTES)));
};

template <class Acc>
using Vec = typename VectorOf<Acc>::type;

template <class Acc>
constexpr int lanes = FASTLSTM_SIMD_BYTES / sizeof(Acc);

// The number of registers limits how many rows of sums a product holds.
#if FASTLSTM_SIMD_BYTES == 64 || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

#define FASTLSTM_INLINE_LAMBDA __attribute__((always_inline))

#if FASTLSTM_SIMD_BYTES == 64 && defined(FASTLSTM_EMULATE_AVX512)
#include "cpu/simd/emulated_avx512.h"
#endif

// The same number, of which the compiler does not know how it was made, so that it is kept and not made again from its
// parts at every use.
template <class T>
FASTLSTM_INLINE T opaque(T number) {
  asm("" : "+r"(number));
  return number;
}

// The compiler has to take a function with this for one that writes to memory.
FASTLSTM_INLINE void has_effects() { asm volatile("" ::: "memory"); }

template <class To, class From>
FASTLSTM_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V, class T>
FASTLSTM_INLINE V load_raw(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
FASTLSTM_INLINE void store_raw(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// A vector of equal lanes. Subtracting zero is exact for every number, so the compiler emits a plain broadcast.
template <class Acc>
FASTLSTM_INLINE Vec<Acc> splat(Acc x) {
  return x - Vec<Acc>{};
}

// Conversion from and to storage: load(p) reads one vector of storage elements, store(p, v) rounds to nearest even.
template <class Acc, class T>
struct Storage;

template <class Acc>
struct Storage<Acc, Acc> {
  static FASTLSTM_INLINE Vec<Acc> load(const Acc* p) { return load_raw<Vec<Acc>>(p); }
  static FASTLSTM_INLINE void store(Acc* p, Vec<Acc> v) { store_raw(p, v); }
};

// 16-bit lanes to 32 bits and back. For a vector conversion compilers emit up to five instructions here.
FASTLSTM_INLINE VectorOf<float>::bits widen_bits(const void* p) {
  using Bits = VectorOf<float>::bits;
#if FASTLSTM_SIMD_BYTES == 64
  return bit_cast<Bits>(_mm512_maskz_cvtepu16_epi32(0xffff, load_raw<__m256i>(p)));
#elif FASTLSTM_SIMD_BYTES == 32
  return bit_cast<Bits>(_mm256_cvtepu16_epi32(load_raw<__m128i>(p)));
#else
  return __builtin_convertvector(load_raw<VectorOf<float>::half_bits>(p), Bits);
#endif
}

FASTLSTM_INLINE void store_low_bits(void* p, VectorOf<float>::bits bits) {
#if FASTLSTM_SIMD_BYTES == 64
  store_raw(p, _mm512_maskz_cvtepi32_epi16(0xffff, bit_cast<__m512i>(bits)));
#elif FASTLSTM_SIMD_BYTES == 32
  const __m256i v = bit_cast<__m256i>(bits);
  store_raw(p, _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
#else
  store_raw(p, __builtin_convertvector(bits, VectorOf<float>::half_bits));
#endif
}

template <>
struct Storage<float, BFloat16> {
  using V = Vec<float>;
  using Bits = VectorOf<float>::bits;
  static FASTLSTM_INLINE V load(const BFloat16* p) { return bit_cast<V>(widen_bits(p) << 16); }
  static FASTLSTM_INLINE void store(BFloat16* p, V v) {
    const Bits bits = bit_cast<Bits>(v);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Bits quiet_nan = (bits >> 16) | 0x0040;
    store_low_bits(p, v != v ? quiet_nan : rounded);
  }
};

template <>
struct Storage<float, Float16> {
  using V = Vec<float>;
  using Bits = VectorOf<float>::bits;
#if FASTLSTM_SIMD_BYTES == 64
  static FASTLSTM_INLINE V load(const Float16* p) {
    return bit_cast<V>(_mm512_maskz_cvtph_ps(0xffff, load_raw<__m256i>(p)));
  }
  static FASTLSTM_INLINE void store(Float16* p, V v) {
    store_raw(p, _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#elif FASTLSTM_SIMD_BYTES == 32
  static FASTLSTM_INLINE V load(const Float16* p) { return bit_cast<V>(_mm256_cvtph_ps(load_raw<__m128i>(p))); }
  static FASTLSTM_INLINE void store(Float16* p, V v) {
    store_raw(p, _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(__aarch64__)
  static FASTLSTM_INLINE V load(const Float16* p) { return bit_cast<V>(vcvt_f32_f16(load_raw<float16x4_t>(p))); }
  static FASTLSTM_INLINE void store(Float16* p, V v) { store_raw(p, vcvt_f16_f32(bit_cast<float32x4_t>(v))); }
#else
  // The exponent is shifted by a product with a power of two, which also normalises subnormal numbers, or makes them.
  static FASTLSTM_INLINE V load(const Float16* p) {
    const Bits h = widen_bits(p);
    const Bits magnitude = h & 0x7fff;
    const Bits scaled = bit_cast<Bits>(bit_cast<V>(magnitude << 13) * 0x1p112f);
    const Bits special = (magnitude << 13) | 0x7f800000;
    return bit_cast<V>((magnitude >= 0x7c00 ? special : scaled) | ((h & 0x8000) << 16));
  }
  static FASTLSTM_INLINE void store(Float16* p, V v) {
    const Bits bits = bit_cast<Bits>(v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    const Bits normal = (magnitude - ((127 - 15) << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Adding 0.5 aligns the last kept bit of a subnormal result with the last bit of the sum.
    const Bits subnormal = bit_cast<Bits>(bit_cast<V>(magnitude) + 0.5f) - 0x3f000000;
    const Bits nan_or_inf = magnitude > 0x7f800000 ? (((magnitude >> 13) & 0x3ff) | 0x7e00) : (Bits{} + 0x7c00);
    const Bits finite = magnitude < 0x38800000 ? subnormal : normal;
    store_low_bits(p, (magnitude >= 0x47800000 ? nan_or_inf : finite) | sign);
  }
#endif
};

// One element, for packing.
template <class To, class From>
FASTLSTM_INLINE To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<From, BFloat16>) {
    return bit_cast<float>(uint32_t{x.bits} << 16);
  } else {
    const uint32_t magnitude = x.bits & 0x7fffu;
    const uint32_t bits = magnitude >= 0x7c00 ? (magnitude << 13) | 0x7f800000
                                              : bit_cast<uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f);
    return bit_cast<float>(bits | (uint32_t{x.bits} & 0x8000u) << 16);
  }
}

// n elements, fewer than a vector: a load fills the other lanes with 0, a store leaves out what they hold.
template <class Acc, class T>
FASTLSTM_INLINE Vec<Acc> load_part(const T* p, int64_t n) {
  T whole[lanes<Acc>] = {};
  __builtin_memcpy(whole, p, n * sizeof(T));
  return Storage<Acc, T>::load(whole);
}

template <class Acc, class T>
FASTLSTM_INLINE void store_part(T* p, Vec<Acc> v, int64_t n) {
  T whole[lanes<Acc>];
  Storage<Acc, T>::store(whole, v);
  __builtin_memcpy(p, whole, n * sizeof(T));
}

// One vector of a row at `p`, of which `n` lanes exist; Whole says at compile time that all do.
template <class Acc, bool Whole, class T>
FASTLSTM_INLINE Vec<Acc> load(const T* p, int64_t n) {
  if constexpr (Whole) return Storage<Acc, T>::load(p);
  return load_part<Acc>(p, n);
}

template <class Acc, bool Whole, class T>
FASTLSTM_INLINE void store(T* p, Vec<Acc> v, int64_t n) {
  if constexpr (Whole) {
    Storage<Acc, T>::store(p, v);
  } else {
    store_part<Acc>(p, v, n);
  }
}

// The same at element k of an array of IO, or of Acc if it is wide.
template <class Acc, bool Whole, class IO>
FASTLSTM_INLINE Vec<Acc> load_either(const void* array, bool wide, int64_t k, int64_t n) {
  if (wide) return load<Acc, Whole>(static_cast<const Acc*>(array) + k, n);
  return load<Acc, Whole>(static_cast<const IO*>(array) + k, n);
}

template <class Acc, bool Whole, class IO>
FASTLSTM_INLINE void store_either(void* array, bool wide, int64_t k, Vec<Acc> v, int64_t n) {
  if (wide) return store<Acc, Whole>(static_cast<Acc*>(array) + k, v, n);
  store<Acc, Whole>(static_cast<IO*>(array) + k, v, n);
}

template <class Acc, class IO>
FASTLSTM_INLINE Acc convert_either(const void* array, bool wide, int64_t k) {
  return wide ? static_cast<const Acc*>(array)[k] : convert<Acc>(static_cast<const IO*>(array)[k]);
}

// v rounded to the storage type T and back: the next step multiplies what the output holds.
template <class Acc, class T>
FASTLSTM_INLINE Vec<Acc> rounded_to(Vec<Acc> v) {
  if constexpr (std::is_same_v<Acc, T>) return v;
  T stored[lanes<Acc>];
  Storage<Acc, T>::store(stored, v);
  return Storage<Acc, T>::load(stored);
}

// Interleaves the lanes of a and b, a first: of the lower halves, with High of the upper ones.
template <class Acc, bool High, size_t... I>
FASTLSTM_INLINE Vec<Acc> interleave(Vec<Acc> a, Vec<Acc> b, std::index_sequence<I...>) {
  constexpr int L = lanes<Acc>;
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (I % 2 * L + I / 2 + (High ? L / 2 : 0))...);
#else
  using Index = typename VectorOf<Acc>::integer;
  return __builtin_shuffle(a, b, Index{(I % 2 * L + I / 2 + (High ? L / 2 : 0))...});
#endif
}

// The even lanes of a followed by those of b; with First = 1 the odd ones.
template <class Acc, int First, size_t... I>
FASTLSTM_INLINE Vec<Acc> every_other(Vec<Acc> a, Vec<Acc> b, std::index_sequence<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (2 * I + First)...);
#else
  using Index = typename VectorOf<Acc>::integer;
  return __builtin_shuffle(a, b, Index{(2 * I + First)...});
#endif
}

// Transposes rows[j][k] in log2(L) rounds, which interleave the upper half of the rows with the lower.
template <class Acc>
FASTLSTM_INLINE void transpose(Vec<Acc> (&rows)[lanes<Acc>]) {
  constexpr int L = lanes<Acc>;
#if FASTLSTM_SIMD_BYTES == 32
  // Interleaving across the halves of a register takes two instructions. Here only the last round crosses them.
  if constexpr (std::is_same_v<Acc, float>) {
    __m256 pairs[L], fours[L];
    for (int j = 0; j < L; j += 2) {
      const __m256 a = bit_cast<__m256>(rows[j]), b = bit_cast<__m256>(rows[j + 1]);
      pairs[j] = _mm256_unpacklo_ps(a, b);
      pairs[j + 1] = _mm256_unpackhi_ps(a, b);
    }
    for (int j = 0; j < L; j += 4) {
      for (int k = 0; k < 2; ++k) {
        fours[j + 2 * k] = _mm256_shuffle_ps(pairs[j + k], pairs[j + k + 2], 0x44);
        fours[j + 2 * k + 1] = _mm256_shuffle_ps(pairs[j + k], pairs[j + k + 2], 0xee);
      }
    }
    for (int j = 0; j < L / 2; ++j) {
      rows[j] = bit_cast<Vec<Acc>>(_mm256_permute2f128_ps(fours[j], fours[j + L / 2], 0x20));
      rows[j + L / 2] = bit_cast<Vec<Acc>>(_mm256_permute2f128_ps(fours[j], fours[j + L / 2], 0x31));
    }
    return;
  }
#endif
  constexpr auto indices = std::make_index_sequence<L>{};
  for (int round = 1; round < L; round *= 2) {
    Vec<Acc> mixed[L];
    for (int j = 0; j < L / 2; ++j) {
      mixed[2 * j] = interleave<Acc, false>(rows[j], rows[j + L / 2], indices);
      mixed[2 * j + 1] = interleave<Acc, true>(rows[j], rows[j + L / 2], indices);
    }
    for (int j = 0; j < L; ++j) rows[j] = mixed[j];
  }
}

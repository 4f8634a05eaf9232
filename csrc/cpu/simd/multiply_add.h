// Multiply-adds of a block of sums: rows x vectors. Included inside a namespace of an instruction set, after simd.h.
//
// A product's loop over k is unrolled, and a block needs nearly all of the 16 registers of 32 bytes. Left to itself the
// compiler then loads numbers long before they are used, so that sums have to leave the registers. There the
// instructions are spelled out, which leaves to the compiler the addresses and the registers. That the loop is unrolled
// matters most where another hyperthread is busy: a core's threads take turns at decoding, and the time of a product
// becomes its number of instructions (benchmarks/log.md).

#if FASTLSTM_SIMD_BYTES == 32 && defined(__x86_64__)
constexpr bool kSpelledOut = true;
#else
constexpr bool kSpelledOut = false;
#endif

#define FASTLSTM_EITHER(Acc, TEXT)  \
  if constexpr (sizeof(Acc) == 4) { \
    TEXT("ss", "ps");               \
  } else {                          \
    TEXT("sd", "pd");               \
  }

// sums[v] += *x * vectors[v].
template <class Acc, int NV>
FASTLSTM_INLINE void add_row(Vec<Acc> (&sums)[NV], const Acc* x, const Vec<Acc> (&vectors)[NV]) {
  if constexpr (kSpelledOut && NV == 2) {
    Vec<Acc> all;
#define FASTLSTM_TEXT(s, p)                                                              \
  asm("vbroadcast" s " %5, %2\n\tvfmadd231" p " %3, %2, %0\n\tvfmadd231" p " %4, %2, %1" \
      : "+x"(sums[0]), "+x"(sums[1]), "=&x"(all)                                         \
      : "x"(vectors[0]), "x"(vectors[1]), "m"(*x))
    FASTLSTM_EITHER(Acc, FASTLSTM_TEXT)
#undef FASTLSTM_TEXT
  } else {
    const Vec<Acc> all = splat(*x);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sums[v] += all * vectors[v];
  }
}

// How three rows' weights come into register %3 from memory %7, of type W: as they are, widened from 16 bits, or from the
// lower (an even k) or the upper halves of lanes that hold pairs.
#define FASTLSTM_PLAIN "vmovups %7, %3"
#define FASTLSTM_HALF "vcvtph2ps %7, %3"
#define FASTLSTM_LOWER "vmovups %7, %3\n\tvpslld $16, %3, %3"
#define FASTLSTM_UPPER "vmovups %7, %3\n\tvandps %8, %3, %3"

// sums[r][v] += x[r] * the vector of weights at `at`, for two or three rows, spelled out. `parity`: the last bit of k.
template <class Acc, class W, int MR, int NV>
FASTLSTM_INLINE void add_vector(Vec<Acc> (&sums)[MR][NV], int v, const Vec<Acc> (&x)[MR], const W* at, int parity) {
  struct Bytes {
    char bytes[sizeof(W) * FASTLSTM_SIMD_BYTES / sizeof(Acc)];
  };
  const auto* vector = reinterpret_cast<const Bytes*>(at);
  Vec<Acc> loaded;
  if constexpr (MR == 2) {
    static_assert(std::is_same_v<W, Acc>);
#define FASTLSTM_TEXT(s, p)                                                      \
  asm("vmovups %5, %2\n\tvfmadd231" p " %2, %3, %0\n\tvfmadd231" p " %2, %4, %1" \
      : "+x"(sums[0][v]), "+x"(sums[1][v]), "=&x"(loaded)                        \
      : "x"(x[0]), "x"(x[1]), "m"(*vector))
    FASTLSTM_EITHER(Acc, FASTLSTM_TEXT)
#undef FASTLSTM_TEXT
  } else {
    static_assert(MR == 3);
    // From memory: there is no register left.
    alignas(FASTLSTM_SIMD_BYTES) static constexpr uint32_t kUpperHalves[8] = {
        0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
#define FASTLSTM_ADD(load, p)                                                                        \
  asm(load "\n\tvfmadd231" p " %3, %4, %0\n\tvfmadd231" p " %3, %5, %1\n\tvfmadd231" p " %3, %6, %2" \
      : "+x"(sums[0][v]), "+x"(sums[1][v]), "+x"(sums[2][v]), "=&x"(loaded)                          \
      : "x"(x[0]), "x"(x[1]), "x"(x[2]), "m"(*vector), "m"(kUpperHalves))
#define FASTLSTM_TEXT(s, p) FASTLSTM_ADD(FASTLSTM_PLAIN, p)
    if constexpr (std::is_same_v<W, Acc>) {
      FASTLSTM_EITHER(Acc, FASTLSTM_TEXT)
    } else if constexpr (sizeof(W) == 2) {
      static_assert(std::is_same_v<W, Float16>);
      FASTLSTM_ADD(FASTLSTM_HALF, "ps");
    } else if (parity == 0) {
      FASTLSTM_ADD(FASTLSTM_LOWER, "ps");
    } else {
      FASTLSTM_ADD(FASTLSTM_UPPER, "ps");
    }
#undef FASTLSTM_TEXT
#undef FASTLSTM_ADD
  }
}
#undef FASTLSTM_PLAIN
#undef FASTLSTM_HALF
#undef FASTLSTM_LOWER
#undef FASTLSTM_UPPER
#undef FASTLSTM_EITHER

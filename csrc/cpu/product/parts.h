// Numbers as sums of bfloat16 numbers, for units that multiply pairs of these and add in float32. Included inside a
// namespace of an instruction set with AVX-512, after simd.h.
//
// A float32 number is the sum of three bfloat16 numbers of 8 binary digits each: the nearest one, the one nearest to
// the remainder, and the rest. The product of two numbers is the sum of the products of their parts, of which only
// those of parts i and j with i + j < the number of parts count: with three parts the others are at most 2^-24 of the
// product of the magnitudes, with two 2^-16. The largest numbers and infinities have one infinite part, and another
// that is NaN or of opposite infinity: their sums are NaN.

// The parts of 16 numbers: for each part one vector of 32-bit lanes, the bfloat16 number in the upper half. Ties round
// away from zero, except in the last part, which rounds them to even as a bfloat16 tensor does.
template <int Parts>
FASTLSTM_INLINE void split(Vec<float> x, VectorOf<float>::bits (&parts)[Parts]) {
  using Bits = VectorOf<float>::bits;
  for (int p = 0; p < Parts - 1; ++p) {
    parts[p] = (bit_cast<Bits>(x) + 0x8000u) & 0xffff0000u;
    x -= bit_cast<Vec<float>>(parts[p]);
  }
  uint16_t rounded[16];
  Storage<float, BFloat16>::store(reinterpret_cast<BFloat16*>(rounded), x);
  parts[Parts - 1] = widen_bits(rounded) << 16;
}

// Rows of K numbers in parts, each padded with zeros to a multiple of Depth: [row][part][depth].
template <int Parts, int64_t Depth>
class PartRows {
 public:
  static int64_t depth_of(int64_t K) { return (K + Depth - 1) / Depth * Depth; }

  void lay_out(Layout& layout, int64_t rows, int64_t K) {
    depth_ = depth_of(K);
    data_ = layout.array<BFloat16>(rows * Parts * depth_);
  }
  const BFloat16* row(int64_t row) const { return data_ + row * Parts * depth_; }
  int64_t stride() const { return Parts * depth_; }
  int64_t depth() const { return depth_; }
  void clear(int64_t row) { __builtin_memset(data_ + row * stride(), 0, stride() * sizeof(BFloat16)); }
  void copy(int64_t to, int64_t from) {
    __builtin_memcpy(data_ + to * stride(), row(from), stride() * sizeof(BFloat16));
  }

  // Numbers [first, first + count) of a row.
  FASTLSTM_INLINE void store(int64_t row, int64_t first, int64_t count, Vec<float> x) {
    VectorOf<float>::bits parts[Parts];
    split<Parts>(x, parts);
    BFloat16* out = data_ + row * stride() + first;
    for (int p = 0; p < Parts; ++p) {
      BFloat16 whole[16];
      store_low_bits(whole, parts[p] >> 16);
      __builtin_memcpy(out + p * depth_, whole, count * sizeof(BFloat16));
    }
  }

 private:
  BFloat16* data_;
  int64_t depth_;
};

// The range of the numbers seen. Magnitudes are compared as bits, which puts NaN above infinity.
class Magnitudes {
 public:
  FASTLSTM_INLINE Magnitudes() : largest_{}, least_(Bits{} - 1u) {}

  FASTLSTM_INLINE void see(Vec<float> x) {
    const Bits magnitude = bit_cast<Bits>(x) & 0x7fffffffu, rank = magnitude - 1u;  // rank of zero: the last
    largest_ = magnitude > largest_ ? magnitude : largest_;
    least_ = rank < least_ ? rank : least_;
  }
  // The largest magnitude, at most the largest finite number's; the least that is not zero, or a larger one if all are
  // zero.
  float largest() const {
    uint32_t bits = 0;
    for (int j = 0; j < 16; ++j) bits = std::max<uint32_t>(bits, largest_[j]);
    return bit_cast<float>(std::min(bits, kInfinity - 1));
  }
  float least() const {
    uint32_t rank = kInfinity - 1;
    for (int j = 0; j < 16; ++j) rank = std::min<uint32_t>(rank, least_[j]);
    return bit_cast<float>(rank + 1);
  }

 private:
  using Bits = VectorOf<float>::bits;
  static constexpr uint32_t kInfinity = 0x7f800000u;
  Bits largest_, least_;
};

struct Unseen {
  FASTLSTM_INLINE void see(Vec<float>) {}
};

// Whether any of these sums is not finite, or smaller than `below` (zeros only where `zeros` has a bit).
FASTLSTM_INLINE bool any_doubtful(Vec<float> sums, Vec<float> below, __mmask16 zeros) {
  constexpr int kNotFinite = 0x01 | 0x80 | 0x08 | 0x10;  // NaN of both kinds, infinity of both signs
  const __m512 x = bit_cast<__m512>(sums);
  const __mmask16 small = _mm512_cmp_ps_mask(_mm512_abs_ps(x), bit_cast<__m512>(below), _CMP_LT_OQ);
  const __mmask16 nonzero = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  return (_mm512_fpclass_ps_mask(x, kNotFinite) | (small & (nonzero | zeros))) != 0;
}

constexpr int64_t kTileDepth = 32, kTileElements = 16 * kTileDepth;

// One tile of 16 lines by 32 numbers for each part; part p is at out + p * part_stride. Row r is line r; with Pairs,
// pair r of every line, as a product needs its right factor. Lines and numbers that do not exist are zeros.
//
// From lines of `count` (1 to 32) consecutive numbers each:
template <int Parts, bool Pairs, class IO, class Seen>
FASTLSTM_INLINE void pack_lines(const IO* from, int64_t stride, int64_t lines, int64_t count, BFloat16* out,
                                int64_t part_stride, Seen& seen) {
  Vec<float> rows[Parts][16] = {};
  for (int64_t j = 0; j < lines; ++j) {
    BFloat16 parts[Parts][32];
    for (int half = 0; half < 2; ++half) {
      VectorOf<float>::bits bits[Parts];
      const int64_t there = std::clamp<int64_t>(count - half * 16, 0, 16);
      const IO* numbers = from + j * stride + (there > 0 ? half * 16 : 0);
      const Vec<float> x = there == 16 ? load<float, true>(numbers, 16) : load<float, false>(numbers, there);
      seen.see(x);
      split<Parts>(x, bits);
      for (int p = 0; p < Parts; ++p) store_low_bits(parts[p] + half * 16, bits[p] >> 16);
    }
    for (int p = 0; p < Parts; ++p) rows[p][j] = load_raw<Vec<float>>(parts[p]);
  }
  for (int p = 0; p < Parts; ++p) {
    if constexpr (Pairs) transpose<float>(rows[p]);
    for (int r = 0; r < 16; ++r) store_raw(out + p * part_stride + r * 32, rows[p][r]);
  }
}

// From numbers whose lines are consecutive, for `count` (1 to 32) numbers:
template <int Parts, bool Pairs, class IO, class Seen>
FASTLSTM_INLINE void pack_numbers(const IO* from, int64_t stride, int64_t lines, int64_t count, BFloat16* out,
                                  int64_t part_stride, Seen& seen) {
  Vec<float> rows[Parts][16] = {};
  const auto number = [&](int64_t k) FASTLSTM_INLINE_LAMBDA {
    if (k >= count) return Vec<float>{};
    const Vec<float> x =
        lines == 16 ? load<float, true>(from + k * stride, 16) : load<float, false>(from + k * stride, lines);
    seen.see(x);
    return x;
  };
  for (int64_t pair = 0; 2 * pair < count; ++pair) {
    VectorOf<float>::bits even[Parts], odd[Parts];
    split<Parts>(number(2 * pair), even);
    split<Parts>(number(2 * pair + 1), odd);
    for (int p = 0; p < Parts; ++p) rows[p][pair] = bit_cast<Vec<float>>((even[p] >> 16) | odd[p]);
  }
  for (int p = 0; p < Parts; ++p) {
    if constexpr (!Pairs) transpose<float>(rows[p]);
    for (int r = 0; r < 16; ++r) store_raw(out + p * part_stride + r * 32, rows[p][r]);
  }
}

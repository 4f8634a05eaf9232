// sigmoid and tanh of vectors. Included inside a namespace of an instruction set, after simd.h.
//
// Both use expm1 of a reduced argument: x = k ln2 + r, |r| <= ln2 / 2; expm1(x) = 2^k expm1(r) + (2^k - 1), which keeps
// the leading digits of small x. NaN gives NaN: comparisons with it are false, so the clamps pass it on.
// tests/cpu/test_math.py asserts the errors against float64, over every float.

template <class Acc>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float log2e = 1.44269504088896341f;
  static constexpr float ln2 = 0.693147180559945309f, ln2_high = 0.693359375f, ln2_low = -2.12194440054690583e-4f;
  // Adding it rounds to an integer k, and leaves k plus the bias of an exponent in the low bits.
  static constexpr float shifter = 0x1.8p23f + 127;
  static constexpr int mantissa_bits = 23;
  // expm1(r) = r + r^2 (1/2 + r/6 + ...): the polynomial of this degree whose largest error, as a share of r, is the
  // least for |r| <= ln2/2: 2^-26. A Taylor series takes a term more for that.
  static constexpr float terms[] = {0x1p-1f, 0x1.5554b0p-3f, 0x1.555486p-5f, 0x1.122838p-7f, 0x1.6d995cp-10f};
  static constexpr float sigmoid_limit = 87.f;  // 2^k is finite and normal up to here
  static constexpr float tanh_limit = 10.f;     // tanh rounds to 1 below this
};

template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.44269504088896340736;
  static constexpr double ln2 = 6.93147180559945309417e-01, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double shifter = 0x1.8p52 + 1023;
  static constexpr int mantissa_bits = 52;
  static constexpr double terms[] = {1. / 2,         1. / 6,           1. / 24,          1. / 120,     1. / 720,
                                     1. / 5040,      1. / 40320,       1. / 362880,      1. / 3628800, 1. / 39916800,
                                     1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
  static constexpr double sigmoid_limit = 708.;
  static constexpr double tanh_limit = 22.;
};

template <class Acc>
struct Math {
  using V = Vec<Acc>;
  using Integer = typename VectorOf<Acc>::integer;
  using C = ExpConstants<Acc>;

  // x clamped to [-limit, limit]. minps and maxps return their second operand if one is NaN, so NaN stays NaN.
  static FASTLSTM_INLINE V clamp(V x, Acc limit) {
    const V high = splat(limit), low = -high;
#if FASTLSTM_SIMD_BYTES == 64
    if constexpr (std::is_same_v<Acc, float>) {
      const __m512 below = _mm512_maskz_min_ps(0xffff, bit_cast<__m512>(high), bit_cast<__m512>(x));
      return bit_cast<V>(_mm512_maskz_max_ps(0xffff, bit_cast<__m512>(low), below));
    }
#elif FASTLSTM_SIMD_BYTES == 32
    if constexpr (std::is_same_v<Acc, float>) {
      const __m256 below = _mm256_min_ps(bit_cast<__m256>(high), bit_cast<__m256>(x));
      return bit_cast<V>(_mm256_max_ps(bit_cast<__m256>(low), below));
    }
#endif
    x = x > high ? high : x;
    return x < low ? low : x;
  }

  // n / d for 2^-126 < |d| < 2^126. A 512-bit division takes 16 cycles; a 14-bit reciprocal and one correction of the
  // quotient take about four, with an error of 0.6 ULP at most.
  static FASTLSTM_INLINE V divide(V n, V d) {
#if FASTLSTM_SIMD_BYTES == 64
    if constexpr (std::is_same_v<Acc, float>) {
      const V reciprocal = bit_cast<V>(_mm512_maskz_rcp14_ps(0xffff, bit_cast<__m512>(d)));
      const V quotient = n * reciprocal;
      return quotient + (n - d * quotient) * reciprocal;
    }
#endif
    return n / d;
  }

  // expm1(Scale r) / Scale of the reduced argument r = x - k ln2 / Scale; 2^k is stored to *power. Precise: with ln2 in
  // two parts, for results in which the error of ln2, times k, would show.
  template <int Scale, bool Precise>
  static FASTLSTM_INLINE V expm1_reduced(V x, V* power) {
    const V shifted = x * (Scale * C::log2e) + C::shifter;
    const V k = shifted - C::shifter;
    V r = x - k * ((Precise ? C::ln2_high : C::ln2) / Scale);
    if constexpr (Precise) r -= k * (C::ln2_low / Scale);
    constexpr int count = sizeof(C::terms) / sizeof(Acc);
    const auto term = [](int n) FASTLSTM_INLINE_LAMBDA { return C::terms[n] * (int64_t{1} << (Scale - 1) * (n + 1)); };
    // Two sums over every other term, in powers of r^2: half as long a chain of dependent additions.
    const V r2 = r * r;
    V even = splat(Acc(term((count - 1) / 2 * 2))), odd = splat(Acc(term(count / 2 * 2 - 1)));
    for (int n = (count - 1) / 2 * 2 - 2; n >= 0; n -= 2) even = even * r2 + Acc(term(n));
    for (int n = count / 2 * 2 - 3; n >= 0; n -= 2) odd = odd * r2 + Acc(term(n));
    const V p = odd * r + even;
    *power = bit_cast<V>(bit_cast<Integer>(shifted) << C::mantissa_bits);
    return r + r2 * p;
  }

  static FASTLSTM_INLINE V sigmoid(V x) {
    V power;
    const V em1 = expm1_reduced<1, true>(-clamp(x, C::sigmoid_limit), &power);
    return divide(splat(Acc{1}), 1 + (power + power * em1));
  }

  // expm1(2x) / (expm1(2x) + 2), both halved.
  static FASTLSTM_INLINE V tanh(V x) {
    V power;
    const V reduced = expm1_reduced<2, false>(clamp(x, C::tanh_limit), &power);
    const V em1 = power * reduced + (power * Acc(0.5) - Acc(0.5));
    return divide(em1, em1 + 1);
  }
};

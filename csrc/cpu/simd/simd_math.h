// sigmoid and tanh of vectors. Included inside a namespace of an instruction set, after simd.h.
//
// Both take out a power of two, y = k ln2 + r with |r| <= ln2 / 2, and use a polynomial in r. They are written for few
// instructions: polynomials are plain sums in powers of r, a multiply-add a term. Shorter chains of dependent operations
// take some more, and are no faster (benchmarks/log.md).
// NaN gives NaN: comparisons with it are false, so the clamps pass it on.
// tests/cpu/test_math.py asserts the errors against float64.

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
  static constexpr float expm1_terms[] = {0x1p-1f, 0x1.5554b0p-3f, 0x1.555486p-5f, 0x1.122838p-7f, 0x1.6d995cp-10f};
  // exp(-r), times the first of them, = r^6 + ... : its largest error is 2^-26 of it.
  static constexpr float exp_terms[] = {0x1.6a13bep+9f,  -0x1.6a13bep+9f, 0x1.6a13b8p+8f,
                                        -0x1.e2c322p+6f, 0x1.e2cb00p+4f,  -0x1.8425f0p+2f};
  static constexpr int scale = 40;
  static constexpr float sigmoid_low = -87.f;  // below, the result is no normal number
  static constexpr float limit = 40.f;         // sigmoid and tanh round to 1 below this, and 2^k is finite
};

template <>
struct ExpConstants<double> {
  static constexpr double log2e = 1.44269504088896340736;
  static constexpr double ln2 = 6.93147180559945309417e-01, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double shifter = 0x1.8p52 + 1023;
  static constexpr int mantissa_bits = 52;
  static constexpr double expm1_terms[] = {
      1. / 2,      1. / 6,       1. / 24,       1. / 120,       1. / 720,         1. / 5040,        1. / 40320,
      1. / 362880, 1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
  // 14! / n!, with the sign of (-1)^n.
  static constexpr double exp_terms[] = {87178291200., -87178291200., 43589145600., -14529715200., 3632428800.,
                                         -726485760.,  121080960.,    -17297280.,   2162160.,      -240240.,
                                         24024.,       -2184.,        182.,         -14.};
  static constexpr int scale = 40;
  static constexpr double sigmoid_low = -708.;
  static constexpr double limit = 40.;
};

template <class Acc>
struct Math {
  using V = Vec<Acc>;
  using Integer = typename VectorOf<Acc>::integer;
  using C = ExpConstants<Acc>;

  // x clamped to [low, high]. minps and maxps return their second operand if one is NaN, so NaN stays NaN.
  static FASTLSTM_INLINE V clamp(V x, Acc low_limit, Acc high_limit) {
    const V high = splat(high_limit), low = splat(low_limit);
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

  // 2^k of shifted = k + the shifter.
  static FASTLSTM_INLINE V power(V shifted) { return bit_cast<V>(bit_cast<Integer>(shifted) << C::mantissa_bits); }

  // Has the compiler make `a` before a use of `b` that may overwrite it: a copy less.
  static FASTLSTM_INLINE void make_first(V& a, V& b) {
#if FASTLSTM_SIMD_BYTES == 32
    asm("" : "+x"(a), "+x"(b));
#endif
  }

  // first / (first + 2^k first exp(-r)), where x = -k ln2 + r and `first` is of the terms. That the polynomial's highest
  // term is 1 saves its load; 2^-scale keeps the denominator finite. ln2 is in two parts: times k its error would show.
  static FASTLSTM_INLINE V sigmoid(V x) {
    x = clamp(x, C::sigmoid_low, C::limit);
    constexpr Acc shifter = C::shifter - C::scale;
    const V shifted = x * -C::log2e + shifter;
    const V k = shifted - shifter;
    const V r = (x + k * C::ln2_high) + k * C::ln2_low;
    constexpr int count = sizeof(C::exp_terms) / sizeof(Acc);
    V p = r + C::exp_terms[count - 1];
    for (int n = count - 2; n >= 0; --n) p = p * r + C::exp_terms[n];
    constexpr Acc first = C::exp_terms[0] / (int64_t{1} << C::scale);
    return divide(splat(first), first + power(shifted) * p);
  }

  // expm1(2x) / (expm1(2x) + 2), where expm1(2x) = 2^k expm1(r) + (2^k - 1), which keeps the leading digits of small x.
  static FASTLSTM_INLINE V tanh(V x) {
    x = clamp(x, -C::limit, C::limit);
    V twice = x + x;
    make_first(twice, x);
    const V shifted = x * (2 * C::log2e) + C::shifter;
    const V k = shifted - C::shifter;
    const V r = twice - k * C::ln2;
    constexpr int count = sizeof(C::expm1_terms) / sizeof(Acc);
    V p = splat(C::expm1_terms[count - 1]);
    for (int n = count - 2; n >= 0; --n) p = p * r + C::expm1_terms[n];
    const V two_k = power(shifted);
    const V em1 = two_k * (r + r * r * p) + (two_k - 1);
    return divide(em1, em1 + 2);
  }
};

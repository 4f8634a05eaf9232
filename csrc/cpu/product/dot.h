// Products of a row-major weight matrix with a vector, from weights that are not packed: for one or two steps, packing
// would take longer than the products. Included inside a namespace of an instruction set, after simd.h.

// A vector [K] to multiply weight rows by, in blocks of lanes. What remains of K beyond whole blocks is read as one
// more block that ends with the last element; its lanes that earlier blocks cover are masked.
template <class Acc>
struct DotOperand {
  static constexpr int L = lanes<Acc>;
  using Bits = typename VectorOf<Acc>::bits;

  const Acc* data;
  int64_t K;
  Vec<Acc> last;  // the masked block
  Bits mask;

  void set(const Acc* x, int64_t count) {
    data = x;
    K = count;
    const int64_t rest = K % L;
    if (rest == 0 || K < L) return;
    for (int j = 0; j < L; ++j) mask[j] = j < L - rest ? 0 : ~0;
    last = bit_cast<Vec<Acc>>(bit_cast<Bits>(load_raw<Vec<Acc>>(x + K - L)) & mask);
  }
};

// The same for rows of bfloat16 numbers, two in each lane: blocks of 2 L numbers, the even ones before the odd ones.
// Half the instructions of widening one number for each lane.
struct PairOperand {
  static constexpr int L = lanes<float>;
  using Bits = VectorOf<float>::bits;

  const float* data;
  const float* blocks;
  int64_t K;
  Vec<float> last[2];  // the masked block
  Bits mask;

  // The numbers that `set` needs memory for.
  static int64_t room(int64_t K) { return K / (2 * L) * 2 * L; }

  void set(const float* x, int64_t count, float* room_for_blocks) {
    data = x;
    blocks = room_for_blocks;
    K = count;
    for (int64_t k = 0; k + 2 * L <= K; k += 2 * L) {
      const Vec<float> first = load_raw<Vec<float>>(x + k), second = load_raw<Vec<float>>(x + k + L);
      store_raw(room_for_blocks + k, every_other<float, 0>(first, second, std::make_index_sequence<L>{}));
      store_raw(room_for_blocks + k + L, every_other<float, 1>(first, second, std::make_index_sequence<L>{}));
    }
    const int64_t rest = K % (2 * L);
    if (rest == 0 || K < 2 * L) return;
    for (int j = 0; j < L; ++j) {
      const bool even = 2 * j >= 2 * L - rest, uneven = 2 * j + 1 >= 2 * L - rest;
      mask[j] = (even ? 0xffffu : 0) | (uneven ? 0xffff0000u : 0);
      last[0][j] = even ? x[K - 2 * L + 2 * j] : 0;
      last[1][j] = uneven ? x[K - 2 * L + 2 * j + 1] : 0;
    }
  }
};

// Loads v once: the compiler would read it from memory again for every product.
template <class V>
FASTLSTM_INLINE void in_register(V& v) {
#if defined(__x86_64__)
  asm("" : "+x"(v));
#endif
}

// Asks for the line that lies `ahead` further than row(j) at k, for each j.
template <int J, class Row>
FASTLSTM_INLINE void fetch_ahead(const Row& row, int64_t k, int64_t ahead) {
#pragma GCC unroll 16
  for (int j = 0; j < J; ++j) __builtin_prefetch(row(j) + k + ahead);
}

// sum[r][j] += the products of row j of the weights and x[r], lane by lane; the x are equally long. `row(j)` is where row
// j begins. The order in which a sum is made does not depend on MR and J.
template <class Acc, class W, int MR, int J, class Row>
FASTLSTM_INLINE void add_products(const DotOperand<Acc>* x, const Row& row, int64_t ahead, Vec<Acc> (&sum)[MR][J]) {
  constexpr int L = lanes<Acc>;
  using Bits = typename VectorOf<Acc>::bits;
  const int64_t K = x->K;
  if (K < L) {
    for (int r = 0; r < MR; ++r) {
      const Vec<Acc> part = load_part<Acc>(x[r].data, K);
      for (int j = 0; j < J; ++j) sum[r][j] += part * load_part<Acc>(row(j), K);
    }
    return;
  }
  const auto add = [&](const auto& part, const auto& weights) FASTLSTM_INLINE_LAMBDA {
    if constexpr (MR == 1) {
      const Vec<Acc> numbers = part(0);
#pragma GCC unroll 16
      for (int j = 0; j < J; ++j) sum[0][j] += numbers * weights(j);
    } else {
      Vec<Acc> loaded[J];
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) loaded[j] = weights(j);
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        Vec<Acc> numbers = part(r);
        in_register(numbers);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) sum[r][j] += numbers * loaded[j];
      }
    }
  };
  const auto add_block = [&](int64_t k) FASTLSTM_INLINE_LAMBDA {
    add([&](int r) FASTLSTM_INLINE_LAMBDA { return load_raw<Vec<Acc>>(x[r].data + k); },
        [&](int j) FASTLSTM_INLINE_LAMBDA { return Storage<Acc, W>::load(row(j) + k); });
  };
  int64_t k = 0;
  if constexpr (MR > 1) {
    for (; k + 2 * L <= K; k += 2 * L) {
      fetch_ahead<J>(row, k, ahead);
      add_block(k);
      add_block(k + L);
    }
  }
  for (; k + L <= K; k += L) add_block(k);
  if (K % L == 0) return;
  add([&](int r) FASTLSTM_INLINE_LAMBDA { return x[r].last; },
      [&](int j) FASTLSTM_INLINE_LAMBDA {
        return bit_cast<Vec<Acc>>(bit_cast<Bits>(Storage<Acc, W>::load(row(j) + K - L)) & x->mask);
      });
}

template <class Acc, class W, int MR, int J, class Row>
FASTLSTM_INLINE void add_products(const PairOperand* x, const Row& row, int64_t ahead, Vec<Acc> (&sum)[MR][J]) {
  constexpr int L = lanes<Acc>;
  using Bits = PairOperand::Bits;
  const int64_t K = x->K;
  if (K < 2 * L) {
    for (int64_t k = 0; k < K; k += L) {
      const int64_t count = std::min<int64_t>(L, K - k);
      for (int r = 0; r < MR; ++r) {
        const Vec<Acc> part = load_part<Acc>(x[r].data + k, count);
        for (int j = 0; j < J; ++j) sum[r][j] += part * load_part<Acc>(row(j) + k, count);
      }
    }
    return;
  }
  // part(r, 0) are the even numbers of x[r], part(r, 1) the odd ones.
  const auto add = [&](const auto& part, const auto& pairs) FASTLSTM_INLINE_LAMBDA {
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) {
      const Bits bits = pairs(j);
      const Vec<Acc> even = bit_cast<Vec<Acc>>(bits << 16), uneven = bit_cast<Vec<Acc>>(bits & 0xffff0000u);
#pragma GCC unroll 4
      for (int r = 0; r < MR; ++r) {
        sum[r][j] += part(r, 0) * even;
        sum[r][j] += part(r, 1) * uneven;
      }
    }
  };
  const auto add_block = [&](int64_t k) FASTLSTM_INLINE_LAMBDA {
    add([&](int r, int odd) FASTLSTM_INLINE_LAMBDA { return load_raw<Vec<Acc>>(x[r].blocks + k + odd * L); },
        [&](int j) FASTLSTM_INLINE_LAMBDA { return load_raw<Bits>(row(j) + k); });
  };
  int64_t k = 0;
  if constexpr (MR > 1) {
    for (; k + 4 * L <= K; k += 4 * L) {
      fetch_ahead<J>(row, k, ahead);
      add_block(k);
      add_block(k + 2 * L);
    }
  }
  for (; k + 2 * L <= K; k += 2 * L) add_block(k);
  if (K % (2 * L) == 0) return;
  add([&](int r, int odd) FASTLSTM_INLINE_LAMBDA { return x[r].last[odd]; },
      [&](int j) FASTLSTM_INLINE_LAMBDA { return load_raw<Bits>(row(j) + K - 2 * L) & x->mask; });
}

// Lane j: the sum of the lanes of v[j]. Halves are interleaved and added, so each round halves the number of vectors.
template <class Acc>
FASTLSTM_INLINE Vec<Acc> sums_of_lanes(Vec<Acc> (&v)[lanes<Acc>]) {
#if FASTLSTM_SIMD_BYTES == 32
  // Interleaving across the halves of a register takes three instructions. The same sums, crossing them only once.
  if constexpr (std::is_same_v<Acc, float>) {
    __m256 four[4], two[2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m256 a = bit_cast<__m256>(v[j]), b = bit_cast<__m256>(v[j + 4]);
      four[j] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256 a = four[2 * j], b = four[2 * j + 1];
      two[j] = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    }
    return bit_cast<Vec<Acc>>(
        _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xdd)));
  }
#endif
  constexpr auto indices = std::make_index_sequence<lanes<Acc>>{};
#pragma GCC unroll 4
  for (int half = lanes<Acc> / 2; half >= 1; half /= 2) {
#pragma GCC unroll 8
    for (int j = 0; j < half; ++j) {
      v[j] = interleave<Acc, false>(v[j], v[j + half], indices) + interleave<Acc, true>(v[j], v[j + half], indices);
    }
  }
  return v[0];
}

// Rows of x that share the weights which are loaded, at most.
constexpr int kDotRows = 4;

// out[r] = the first matrix [rows, x.K] times x[r], plus the second [rows, h.K] times h[r], for the `rows` (1 to L) rows
// that begin at the two pointers; lanes from `rows` on repeat the last row. Either pointer may be null. The next call's
// rows begin `next` rows further.
template <class Acc, class W, int MR, class Operand>
__attribute__((noinline)) void dot_rows(const W* first, const Operand* x, const W* second, const Operand* h,
                                        int64_t rows, int64_t next, Vec<Acc>* out) {
  constexpr int L = lanes<Acc>;
  // Up to 12 sums that do not wait for each other, beside the numbers.
  constexpr int J = MR == 1 ? L : std::min(L, MR < 4 ? 4 : 2);
  Vec<Acc> all[MR][L];
  const auto sum_from = [&](int begin) FASTLSTM_INLINE_LAMBDA {
    Vec<Acc> sum[MR][J] = {};
    const auto add = [&](const W* weights, const Operand* operand) FASTLSTM_INLINE_LAMBDA {
      const int64_t K = operand->K, ahead = (begin + J < L ? J : next - begin) * K;
      if (MR == 1 && rows == L) {
        // Addresses in the machine's form, base + stride * (1, 2, 4, 8), so that 16 rows need few registers.
        const int64_t K3 = 3 * K, K5 = 5 * K, K7 = 7 * K;
        const W* upper = weights + 8 * K;
        add_products<Acc, W>(
            operand,
            [&](int j) FASTLSTM_INLINE_LAMBDA {
              const W* base = j < 8 ? weights : upper;
              switch (j % 8) {
                case 3:
                  return base + K3;
                case 5:
                  return base + K5;
                case 6:
                  return base + 2 * K3;
                case 7:
                  return base + K7;
                default:
                  return base + j % 8 * K;
              }
            },
            ahead, sum);
      } else {
        const W* row[J];
        for (int j = 0; j < J; ++j) row[j] = weights + std::min<int64_t>(begin + j, rows - 1) * K;
        add_products<Acc, W>(operand, [&](int j) FASTLSTM_INLINE_LAMBDA { return row[j]; }, ahead, sum);
      }
    };
    if (first != nullptr) add(first, x);
    if (second != nullptr) add(second, h);
    for (int r = 0; r < MR; ++r) {
      for (int j = 0; j < J; ++j) all[r][begin + j] = sum[r][j];
    }
  };
  if constexpr (MR == 1) {
    sum_from(0);
  } else {
#pragma GCC unroll 1
    for (int begin = 0; begin < L; begin += J) sum_from(begin);
  }
#pragma GCC unroll 4
  for (int r = 0; r < MR; ++r) out[r] = sums_of_lanes<Acc>(all[r]);
}

// The same for N rows of x and h.
template <class Acc, class W, class Operand>
inline void dot_rows(int64_t N, const W* first, const Operand* x, const W* second, const Operand* h, int64_t rows,
                     int64_t next, Vec<Acc>* out) {
  using Fn = void (*)(const W*, const Operand*, const W*, const Operand*, int64_t, int64_t, Vec<Acc>*);
  static constexpr Fn table[kDotRows] = {dot_rows<Acc, W, 1, Operand>, dot_rows<Acc, W, 2, Operand>,
                                         dot_rows<Acc, W, 3, Operand>, dot_rows<Acc, W, 4, Operand>};
  for_row_blocks<kDotRows>(
      N, [&](int64_t n, int count) { table[count - 1](first, x + n, second, h + n, rows, next, out + n); });
}

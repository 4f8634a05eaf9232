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

// sum[j] += the products of row j of the weights, lane by lane. `row(j)` is where row j begins.
template <class Acc, class W, class Row>
FASTLSTM_INLINE void add_products(const DotOperand<Acc>& x, const Row& row, Vec<Acc> (&sum)[lanes<Acc>]) {
  constexpr int L = lanes<Acc>;
  using Bits = typename VectorOf<Acc>::bits;
  if (x.K < L) {
    const Vec<Acc> part = load_part<Acc>(x.data, x.K);
    for (int j = 0; j < L; ++j) sum[j] += part * load_part<Acc>(row(j), x.K);
    return;
  }
  for (int64_t k = 0; k + L <= x.K; k += L) {
    const Vec<Acc> part = load_raw<Vec<Acc>>(x.data + k);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) sum[j] += part * Storage<Acc, W>::load(row(j) + k);
  }
  if (x.K % L == 0) return;
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) {
    const Bits weights = bit_cast<Bits>(Storage<Acc, W>::load(row(j) + x.K - L)) & x.mask;
    sum[j] += x.last * bit_cast<Vec<Acc>>(weights);
  }
}

template <class Acc, class W, class Row>
FASTLSTM_INLINE void add_products(const PairOperand& x, const Row& row, Vec<Acc> (&sum)[lanes<Acc>]) {
  constexpr int L = lanes<Acc>;
  using Bits = PairOperand::Bits;
  if (x.K < 2 * L) {
    for (int64_t k = 0; k < x.K; k += L) {
      const int64_t count = std::min<int64_t>(L, x.K - k);
      const Vec<Acc> part = load_part<Acc>(x.data + k, count);
      for (int j = 0; j < L; ++j) sum[j] += part * load_part<Acc>(row(j) + k, count);
    }
    return;
  }
  const auto add = [&](Vec<Acc>& to, Vec<Acc> even, Vec<Acc> uneven, Bits pairs) FASTLSTM_INLINE_LAMBDA {
    to += even * bit_cast<Vec<Acc>>(pairs << 16);
    to += uneven * bit_cast<Vec<Acc>>(pairs & 0xffff0000u);
  };
  for (int64_t k = 0; k + 2 * L <= x.K; k += 2 * L) {
    const Vec<Acc> even = load_raw<Vec<Acc>>(x.blocks + k), uneven = load_raw<Vec<Acc>>(x.blocks + k + L);
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) add(sum[j], even, uneven, load_raw<Bits>(row(j) + k));
  }
  if (x.K % (2 * L) == 0) return;
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) add(sum[j], x.last[0], x.last[1], load_raw<Bits>(row(j) + x.K - 2 * L) & x.mask);
}

// Lane j: the sum of the lanes of v[j]. Halves are interleaved and added, so each round halves the number of vectors.
template <class Acc>
FASTLSTM_INLINE Vec<Acc> sums_of_lanes(Vec<Acc> (&v)[lanes<Acc>]) {
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

// The first matrix [rows, x.K] times x, plus the second [rows, h.K] times h, for the `rows` (1 to L) rows that begin at
// the two pointers; lanes from `rows` on repeat the last row. Either pointer may be null.
template <class Acc, class W, class Operand>
__attribute__((noinline)) Vec<Acc> dot_rows(const W* first, const Operand& x, const W* second, const Operand& h,
                                            int64_t rows) {
  constexpr int L = lanes<Acc>;
  Vec<Acc> sum[L] = {};
  const auto add = [&](const W* weights, const Operand& operand) FASTLSTM_INLINE_LAMBDA {
    const int64_t K = operand.K;
    if (rows == L) {
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
          sum);
    } else {
      add_products<Acc, W>(operand, [&](int j) { return weights + std::min<int64_t>(j, rows - 1) * K; }, sum);
    }
  };
  if (first != nullptr) add(first, x);
  if (second != nullptr) add(second, h);
  return sums_of_lanes<Acc>(sum);
}

// The step's matrix product, states x packed weights. Included inside a namespace of an instruction set, after pack.h.

// The packed weights of vectors [First, First + NV) of a panel of All, as a product reads them: a pointer for each part,
// which moves with k.
template <class Acc, class W, int First, int NV, int All>
class Stream {
 public:
  Stream(const W* w, int64_t depth) {
    for (int p = 0; p < kParts; ++p) at_[p] = w + packed_place<Acc>(First + p * kPart, All, depth).first;
  }

  // Where vector v is, `s` numbers of k further on. The pointers get values that the compiler does not know: else it
  // works out addresses again for every k in place of displacements, and loads long before it adds.
  FASTLSTM_INLINE void hold() {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) asm("" : "+r"(at_[p]));
  }
  FASTLSTM_INLINE const W* vector(int s, int v) const {
    const PackedVector place = packed_place<Acc>(v % kPart, std::min(kPart, All - (First + v) / kPart * kPart), 0);
    return at_[v / kPart] + place.first + s / kDepthOf<W> * place.stride;
  }
  // `parity` is the last bit of k.
  FASTLSTM_INLINE Vec<Acc> load(int s, int parity, int v) const {
    if constexpr (std::is_same_v<W, BFloat16Pair>) {
      const auto bits = load_raw<VectorOf<float>::bits>(vector(s, v));
      return bit_cast<Vec<Acc>>(parity == 0 ? bits << 16 : bits & 0xffff0000u);
    } else {
      return Storage<Acc, W>::load(vector(s, v));
    }
  }

  template <int Numbers>
  FASTLSTM_INLINE void advance() {
#pragma GCC unroll 4
    for (int p = 0; p < kParts; ++p) at_[p] += vector(Numbers, p * kPart) - vector(0, p * kPart);
  }

 private:
  static constexpr int kParts = (NV + kPart - 1) / kPart;
  static_assert(First % kPart == 0);

  const W* at_[kParts];
};

// Memory that a product prefetches into the second-level cache: `lines` cache lines for every four k. A core that
// multiplies several rows would wait for a stream from the third-level cache otherwise.
struct Ahead {
  const char* at = nullptr;
  int lines = 0;

  FASTLSTM_INLINE void fetch() {
    for (int n = 0; n < lines; ++n) __builtin_prefetch(at + 64 * n, 0, 2);
    at += 64 * lines;
  }
};

// out[r][v] = sum over k of a[r][k] * w[k][v] for vectors v of [First, First + NV) of a panel of All. `w` holds Acc, or
// 16-bit numbers that are widened here, for weights whose reading takes most of the time.
template <class Acc, class W, int MR, int First, int NV, int All>
FASTLSTM_INLINE void product_part(const Acc* a, int64_t stride, const W* w, int64_t K, Acc* out, Ahead ahead) {
  constexpr int L = lanes<Acc>;
  // One sum over all k, whatever MR and NV: a row's bits do not depend on other rows, nor on how units are shared out.
  // With one row, additions wait for each other no longer than for weights from the second-level cache.
  constexpr int kSteps = kDepthOf<W>;
  Vec<Acc> sum[MR][NV] = {};
  const Acc* row[MR];
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
    row[r] = a + r * stride;
    asm("" : "+r"(row[r]));  // a register each: else addresses are worked out again for every k
  }
  Stream<Acc, W, First, NV, All> weights(w, (K + kSteps - 1) / kSteps);
  // Six rows by two vectors, or three by four, take as many registers as there are.
  constexpr bool kByVectors = kSpelledOut && NV == 4 && (MR == 3 || (MR == 2 && std::is_same_v<W, Acc>));
  int64_t at = 0;  // bytes of k
  const auto number = [&](int r, int s) FASTLSTM_INLINE_LAMBDA {
    return reinterpret_cast<const Acc*>(reinterpret_cast<const char*>(row[r]) + at) + s;
  };
  const auto add = [&](int s) FASTLSTM_INLINE_LAMBDA {
    weights.hold();
    if constexpr (kByVectors) {
      Vec<Acc> x[MR];
#pragma GCC unroll 3
      for (int r = 0; r < MR; ++r) x[r] = splat(*number(r, s));
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) add_vector<Acc>(sum, v, x, weights.vector(s, v), s % 2);
    } else {
      Vec<Acc> vectors[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) vectors[v] = weights.load(s, s % 2, v);
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) add_row<Acc>(sum[r], number(r, s), vectors);
    }
  };
  const auto add_four = [&]() FASTLSTM_INLINE_LAMBDA {
    asm("" : "+r"(at));
    add(0);
    add(1);
    add(2);
    add(3);
    weights.template advance<4>();
    at += 4 * sizeof(Acc);
  };
  const int64_t bytes = K * sizeof(Acc), fours = K / 4 * 4 * sizeof(Acc);
  if (ahead.lines > 0) {
    while (at < fours) {
      ahead.fetch();
      add_four();
    }
  }
  while (at < fours) add_four();
  while (at < bytes) {
    add(0);
    if (kSteps == 2 && at + static_cast<int64_t>(sizeof(Acc)) < bytes) add(1);
    weights.template advance<kSteps>();
    at += kSteps * sizeof(Acc);
  }
#pragma GCC unroll 6
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      store_raw(out + (r * All + First + v) * L, sum[r][v]);
    }
  }
}

// All NV vectors of a panel.
template <class Acc, class W, int MR, int NV>
__attribute__((noinline)) void product_rows(const Acc* a, int64_t stride, const W* w, int64_t K, Acc* out,
                                            Ahead ahead) {
  constexpr int kFirst = NV < kVectorsAtOnce<MR> ? NV : kVectorsAtOnce<MR>;
  product_part<Acc, W, MR, 0, kFirst, NV>(a, stride, w, K, out, ahead);
  if constexpr (kFirst < NV) product_part<Acc, W, MR, kFirst, NV - kFirst, NV>(a, stride, w, K, out, {});
}

// One row by two whole panels: what `product` makes of each, with twice as many sums that do not wait for each other,
// and twice as many streams from a far cache. A row alone is bound by reading its weights.
template <class Acc, class W>
__attribute__((noinline)) void product_of_two(const Acc* a, const W* first, const W* second, int64_t K, Acc* out,
                                              Acc* out_second) {
  constexpr int L = lanes<Acc>, kSteps = kDepthOf<W>;
  const int64_t depth = (K + kSteps - 1) / kSteps;
  Vec<Acc> sum[2][kPanel] = {};
  Stream<Acc, W, 0, kPanel, kPanel> one(first, depth), two(second, depth);
  const auto add = [&](int s) FASTLSTM_INLINE_LAMBDA {
    const Vec<Acc> x = splat(a[s]);
    one.hold();
    two.hold();
#pragma GCC unroll 4
    for (int v = 0; v < kPanel; ++v) sum[0][v] += x * one.load(s, s % 2, v);
#pragma GCC unroll 4
    for (int v = 0; v < kPanel; ++v) sum[1][v] += x * two.load(s, s % 2, v);
  };
  const auto* const end = a + K;
  for (const auto* const fours = a + K / 4 * 4; a < fours; a += 4) {
    asm("" : "+r"(a));
    add(0);
    add(1);
    add(2);
    add(3);
    one.template advance<4>();
    two.template advance<4>();
  }
  for (; a < end; a += kSteps) {
    add(0);
    if (kSteps == 2 && a + 1 < end) add(1);
    one.template advance<kSteps>();
    two.template advance<kSteps>();
  }
#pragma GCC unroll 4
  for (int v = 0; v < kPanel; ++v) {
    store_raw(out + v * L, sum[0][v]);
    store_raw(out_second + v * L, sum[1][v]);
  }
}

template <class Acc, class W>
using ProductFn = void (*)(const Acc*, int64_t, const W*, int64_t, Acc*, Ahead);

// The product for `rows` (1..kMaxRows) rows and `vectors` (1..kPanel) vectors.
template <class Acc, class W>
inline void product(int rows, int vectors, const Acc* a, int64_t stride, const W* w, int64_t K, Acc* out,
                    Ahead ahead = {}) {
#define FASTLSTM_ROWS(MR) \
  { product_rows<Acc, W, MR, 1>, product_rows<Acc, W, MR, 2>, product_rows<Acc, W, MR, 3>, product_rows<Acc, W, MR, 4> }
  static constexpr ProductFn<Acc, W> table[kMaxRows][kPanel] = {FASTLSTM_ROWS(1), FASTLSTM_ROWS(2), FASTLSTM_ROWS(3),
                                                                FASTLSTM_ROWS(4), FASTLSTM_ROWS(5), FASTLSTM_ROWS(6)};
#undef FASTLSTM_ROWS
  table[rows - 1][vectors - 1](a, stride, w, K, out, ahead);
}

template <int Most = kMaxRows>
constexpr int64_t row_blocks(int64_t total) {
  return (total + Most - 1) / Most;
}

// [begin, begin + rows) of `total` rows in blocks of nearly equal size, at most Most.
template <int Most = kMaxRows, class Body>
FASTLSTM_INLINE void for_row_blocks(int64_t total, const Body& body) {
  const int64_t blocks = row_blocks<Most>(total), rows = blocks == 0 ? 0 : total / blocks;
  int64_t longer = total - blocks * rows;  // so many blocks have a row more
  for (int64_t begin = 0; begin < total; --longer) {
    const int here = static_cast<int>(rows + (longer > 0 ? 1 : 0));
    body(begin, here);
    begin += here;
  }
}

// Prefetches the next panel's weights into the second-level cache in parts, one with each product of this panel's row
// blocks. Measured (benchmarks/log.md): it gains where next to nothing is left in the second level from the step before,
// both panels leave room there for what else passes through it, and the row blocks give time enough. Elsewhere it costs
// up to a third.
template <class Packed>
class FetchNext {
 public:
  // share_bytes: of the weights that a worker goes through in a step. elements: of a panel. K: depth of the products.
  // rows: of all blocks.
  FetchNext(int64_t share_bytes, int64_t elements, int64_t K, int64_t rows) {
    constexpr int64_t kLine = 64;
    const int64_t blocks = row_blocks(rows), times = K / 4 * blocks, bytes = elements * sizeof(Packed);
    const bool far = share_bytes > 2 * second_level_bytes();
    if (!far || blocks < 2 || times == 0 || 4 * bytes >= second_level_bytes()) return;
    lines_ = static_cast<int>((bytes / kLine + times - 1) / times);
    bytes_ = K / 4 * lines_ * kLine;
  }

  void begin(const Packed* packed, const Panel* next) {
    at_ = next == nullptr || lines_ == 0 ? nullptr : reinterpret_cast<const char*>(packed + next->offset);
  }

  Ahead part() {
    if (at_ == nullptr) return {};
    const Ahead part{at_, lines_};
    at_ += bytes_;
    return part;
  }

 private:
  int lines_ = 0;
  int64_t bytes_ = 0;
  const char* at_ = nullptr;
};

// How the loops over steps multiply: here by fused multiply-adds, on states in the accumulation type and weights packed
// as W. Another way (tile_product.h, pair_product.h) may keep a second form of the states, and an Engine with registers
// to set up.
template <class Acc, class W>
struct Fma {
  using Packed = W;
  static constexpr bool kTiled = false;
  static constexpr int kRows = kMaxRows;

  struct Engine {};

  struct States {
    void lay_out(Layout&, int64_t, int64_t) {}
    void clear(int64_t) {}
    void copy(int64_t, int64_t) {}
    FASTLSTM_INLINE void store(int64_t, int64_t, int64_t, Vec<Acc>) {}
  };

  // Packed numbers of each output column.
  static int64_t packed_depth(int64_t K) { return (K + kDepthOf<W> - 1) / kDepthOf<W>; }

  template <class IO>
  static void pack_forward(const Panel& panel, const IO* weight, int64_t H, int64_t K, W* packed) {
    if constexpr (std::is_same_v<W, BFloat16Pair>) {
      pack_gate_pairs(panel, weight, H, K, packed);
    } else {
      pack_gates<Acc>(panel, weight, H, K, packed);
    }
  }
  template <class IO>
  static void pack_backward(const Panel& panel, const IO* weight, int64_t K, int64_t columns, W* packed) {
    if constexpr (std::is_same_v<W, BFloat16Pair>) {
      pack_column_pairs(panel, weight, K, columns, packed);
    } else {
      pack_columns<Acc>(panel, weight, K, columns, packed);
    }
  }
};

// How weights are packed for the step's product. Included inside a namespace of an instruction set, after simd.h.
//
// Weights are packed once for each call into panels of up to kPanel vectors of output columns. A panel has parts of up
// to kPart vectors that are accumulated together. For each k the vectors of a part are adjacent, so that a product
// reads them as one stream: [panel][part][k][vector][lane]. In the forward pass the vectors of a panel are the gates i,
// f, g, o of the same units: one product gives all that the cell needs.

// Two bfloat16 weights, of an even k and of the next, in the 32 bits of a lane. One load, a shift and a mask make two
// vectors of numbers; 16-bit lanes take one instruction more, and a load for each vector.
struct BFloat16Pair {
  uint32_t bits;
};

// The number of k in a packed element.
template <class W>
constexpr int kDepthOf = std::is_same_v<W, BFloat16Pair> ? 2 : 1;

constexpr int kPanel = 4;
constexpr int kMaxRows = 6;
// 16 registers hold the sums of six rows by two vectors, beside the weights and a state: a panel has two parts. Three
// rows by four vectors would fit too, but would read the weights, which come from the second-level cache, twice as
// often.
constexpr int kPart = kRegisters == 32 ? kPanel : kPanel / 2;
// Vectors of a panel that are accumulated together for MR rows.
template <int MR>
constexpr int kVectorsAtOnce = MR <= 3 ? kPanel : kPart;

// Where vector v of a panel of NV has its first packed element, and the stride: k's element is at first + k / kDepthOf
// * stride. `depth`: packed elements of a column.
struct PackedVector {
  int64_t first, stride;
};

template <class Acc>
FASTLSTM_INLINE constexpr PackedVector packed_place(int v, int NV, int64_t depth) {
  constexpr int L = lanes<Acc>;
  const int part = v / kPart * kPart, width = NV - part < kPart ? NV - part : kPart;
  return {(part * depth + v - part) * L, width * L};
}

// A range of output vectors that one product makes, and where its packed weights begin (in elements).
struct Panel {
  int64_t vector;
  int vectors;
  int64_t offset;
};

// Panels over `count` output vectors, cut so that each of U shares has whole panels. `even`: of nearly equal sizes, so
// that no panel has a single vector, whose additions would wait for each other; else full panels first, which tiles
// need. share_begin: U + 1 entries.
struct Panels {
  std::vector<Panel> panels;
  std::vector<int64_t> share_begin;
  int64_t elements = 0;

  Panels(int64_t count, int panel_vectors, int U, int64_t K, int lane_count, int stored_vectors, bool even = true) {
    share_begin.push_back(0);
    for (int u = 0; u < U; ++u) {
      const int64_t begin = count * u / U, width = count * (u + 1) / U - begin,
                    cuts = (width + panel_vectors - 1) / panel_vectors;
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const auto at = [&](int64_t n) {
          return begin + (even ? width * n / cuts : std::min(width, n * panel_vectors));
        };
        const int64_t v = at(cut);
        const int vectors = static_cast<int>(at(cut + 1) - v);
        panels.push_back({v, vectors, elements});
        elements += K * lane_count * vectors * stored_vectors;
      }
      share_begin.push_back(static_cast<int64_t>(panels.size()));
    }
  }

  // body(panel, the next one or null) for each panel of share u, or with At = 2 for every second one. Steps alternate
  // between forwards and backwards: a step begins with the panels that the last one ended with, which are still in the
  // nearer cache if not all fit.
  template <int At = 1, class Body>
  FASTLSTM_INLINE void for_share(int u, bool backwards, const Body& body) const {
    const int64_t begin = share_begin[u], end = share_begin[u + 1];
    const auto at = [&](int64_t k) { return &panels[backwards ? begin + end - 1 - k : k]; };
    for (int64_t k = begin; k < end; k += At) body(*at(k), k + 1 < end ? at(k + 1) : nullptr);
  }
};

// Lines of a matrix that become the lanes of one vector: the first, and how many exist, up to L.
template <class IO>
struct PackedLines {
  const IO* first;
  int64_t count;
};

// out[j * out_stride + l] = rows[l * row_stride + j] for j and lanes l in [0, L); lanes from `count` on are 0.
template <class Acc, class IO, class W>
FASTLSTM_INLINE void pack_block(const IO* rows, int64_t row_stride, int64_t count, W* out, int64_t out_stride) {
  constexpr int L = lanes<Acc>;
  Vec<Acc> block[L];
  if (count == L) {
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) block[j] = Storage<Acc, IO>::load(rows + j * row_stride);
  } else {
    for (int j = 0; j < L; ++j) block[j] = j < count ? Storage<Acc, IO>::load(rows + j * row_stride) : Vec<Acc>{};
  }
  transpose<Acc>(block);
#pragma GCC unroll 16
  for (int j = 0; j < L; ++j) Storage<Acc, W>::store(out + j * out_stride, block[j]);
}

// out[k * out_stride + v * L + lane] = element k of line `lane` of lines(v), for k in [0, K) and vectors v; lines are
// `row_stride` apart. All vectors take a cache line's worth of k before the next: each line of the matrix is read once,
// whatever the stride does to the first-level cache, and the vectors' parts of a line of `out` are written together.
template <class Acc, class IO, class W, class Lines>
void pack_transposed(int vectors, const Lines& lines, int64_t row_stride, int64_t K, W* out, int64_t out_stride) {
  constexpr int L = lanes<Acc>;
  constexpr int64_t kBlock = std::max<int64_t>(L, 64 / sizeof(IO));
  const int64_t whole = K / L * L;
  for (int64_t begin = 0; begin < whole; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, whole);
    for (int v = 0; v < vectors; ++v) {
      const PackedLines<IO> from = lines(v);
      for (int64_t k = begin; k < end; k += L)
        pack_block<Acc>(from.first + k, row_stride, from.count, out + k * out_stride + v * L, out_stride);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    const PackedLines<IO> from = lines(v);
    for (int64_t k = whole; k < K; ++k) {
      for (int64_t j = 0; j < L; ++j) {
        out[k * out_stride + v * L + j] = j < from.count ? convert<W>(from.first[j * row_stride + k]) : W{};
      }
    }
  }
}

// Panels whose vectors are gates i, f, g, o of the same units: weight [4H, K] of one direction.
template <class Acc, class IO, class W>
void pack_gates(const Panel& panel, const IO* weight, int64_t H, int64_t K, W* packed) {
  constexpr int L = lanes<Acc>;
  const int64_t first = panel.vector * L, units = std::min<int64_t>(L, H - first);
  for (int g = 0; g < kPanel; g += kPart) {
    const PackedVector place = packed_place<Acc>(g, kPanel, K);
    const auto lines = [&](int v) { return PackedLines<IO>{weight + ((g + v) * H + first) * K, units}; };
    pack_transposed<Acc, IO>(kPart, lines, K, K, packed + panel.offset + place.first, place.stride);
  }
}

// The same as pairs. Two neighbours of a row are a pair; if K is odd, the last number's partner is 0.
inline void pack_gate_pairs(const Panel& panel, const BFloat16* weight, int64_t H, int64_t K, BFloat16Pair* packed) {
  constexpr int L = lanes<float>;
  const int64_t first = panel.vector * L, units = std::min<int64_t>(L, H - first);
  for (int g = 0; g < 4; ++g) {
    const BFloat16* rows = weight + (g * H + first) * K;
    const PackedVector place = packed_place<float>(g, kPanel, (K + 1) / 2);
    BFloat16Pair* out = packed + panel.offset + place.first;
    int64_t k = 0;
    for (; k + 2 * L <= K; k += 2 * L) {
      Vec<float> block[L] = {};
      for (int64_t j = 0; j < units; ++j) block[j] = load_raw<Vec<float>>(rows + j * K + k);
      transpose<float>(block);
      for (int j = 0; j < L; ++j) store_raw(out + (k / 2 + j) * place.stride, block[j]);
    }
    for (; k < K; k += 2) {
      for (int64_t j = 0; j < L; ++j) {
        BFloat16Pair pair{};
        if (j < units) __builtin_memcpy(&pair, rows + j * K + k, std::min<int64_t>(2, K - k) * sizeof(BFloat16));
        out[k / 2 * place.stride + j] = pair;
      }
    }
  }
}

// Panels of consecutive output columns that lie as lines, `stride` apart, of K numbers each.
template <class Acc, class IO, class W>
void pack_lines_as_columns(const Panel& panel, const IO* weight, int64_t stride, int64_t K, int64_t columns,
                           W* packed) {
  constexpr int L = lanes<Acc>;
  for (int part = 0; part < panel.vectors; part += kPart) {
    const PackedVector place = packed_place<Acc>(part, panel.vectors, K);
    const auto lines = [&](int v) {
      const int64_t column = (panel.vector + part + v) * L;
      return PackedLines<IO>{weight + column * stride, std::min<int64_t>(L, columns - column)};
    };
    pack_transposed<Acc, IO>(std::min(kPart, panel.vectors - part), lines, stride, K,
                             packed + panel.offset + place.first, place.stride);
  }
}

// Panels of consecutive output columns of a [K, columns] matrix.
template <class Acc, class IO, class W>
void pack_columns(const Panel& panel, const IO* weight, int64_t K, int64_t columns, W* packed) {
  constexpr int L = lanes<Acc>;
  const auto column_of = [&](int v) { return (panel.vector + v) * L; };
  const auto count_of = [&](int v) { return std::min<int64_t>(L, columns - column_of(v)); };
  for (int v = 0; v < panel.vectors; ++v) {
    const PackedVector place = packed_place<Acc>(v, panel.vectors, K);
    W* out = packed + panel.offset + place.first;
    const auto pack = [&](auto whole) {
      for (int64_t k = 0; k < K; ++k) {
        const Vec<Acc> numbers = load<Acc, whole.value>(weight + k * columns + column_of(v), count_of(v));
        Storage<Acc, W>::store(out + k * place.stride, numbers);
      }
    };
    count_of(v) == L ? pack(std::true_type{}) : pack(std::false_type{});
  }
}

// Panels of consecutive output columns of a [K, columns] matrix as pairs.
inline void pack_column_pairs(const Panel& panel, const BFloat16* weight, int64_t K, int64_t columns,
                              BFloat16Pair* packed) {
  constexpr int L = lanes<float>;
  for (int v = 0; v < panel.vectors; ++v) {
    const int64_t first = (panel.vector + v) * L, count = std::min<int64_t>(L, columns - first);
    const auto row = [&](int64_t k) {
      if (k >= K) return VectorOf<float>::bits{};
      const BFloat16* numbers = weight + k * columns + first;
      return bit_cast<VectorOf<float>::bits>(count == L ? load<float, true>(numbers, L)
                                                        : load<float, false>(numbers, count));
    };
    const PackedVector place = packed_place<float>(v, panel.vectors, (K + 1) / 2);
    BFloat16Pair* out = packed + panel.offset + place.first;
    for (int64_t k = 0; k < K; k += 2) store_raw(out + k / 2 * place.stride, row(k) >> 16 | row(k + 1));
  }
}

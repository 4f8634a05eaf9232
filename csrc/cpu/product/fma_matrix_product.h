// Products of large matrices by fused multiply-adds. Included inside a namespace of an instruction set, after
// blocked_matrix_product.h.

template <class T>
struct MultiplyAdds {
  using Sum = T;
  using Left = T;
  using Right = T;
  static constexpr int L = lanes<T>, kNumbers = 1, kWidth = kStripLines<T>;
  // A slab of a strip has 24 KiB with vectors of 32 bytes: most of a first-level cache of 32 KiB, so that a depth up to
  // 384 is one slab, whose sums are written once. With vectors of 64 bytes it has 96 KiB, and comes from the
  // second-level cache.
  static constexpr int64_t kSlab = kProductSlab;

  static void pack_strip(const Factor& right, int64_t first, int64_t k0, int64_t numbers, T* out) {
    if constexpr (std::is_same_v<T, float>) {
      if (right.dtype == DType::kBFloat16) return pack_strip_of<BFloat16>(right, first, k0, numbers, out);
    }
    pack_strip_of<T>(right, first, k0, numbers, out);
  }

  template <class IO>
  static void pack_strip_of(const Factor& right, int64_t first, int64_t k0, int64_t numbers, T* out) {
    const auto lines = [&](int v) {
      const int64_t line = first + v * L, count = std::clamp<int64_t>(right.lines - line, 0, L);
      return PackedLines<IO>{right.at<IO>(count > 0 ? line : 0, k0), count};
    };
    if (right.depth_stride == 1) {
      return pack_transposed<T, IO>(kStrip, lines, right.line_stride, numbers, out, kWidth);
    }
    // All vectors of a number before the next, so that each cache line is read once.
    const auto pack = [&](int v, int64_t k, auto whole) FASTLSTM_INLINE_LAMBDA {
      const int64_t line = first + v * L, count = std::clamp<int64_t>(right.lines - line, 0, L);
      const IO* from = right.at<IO>(count > 0 ? line : 0, k0 + k);
      store_raw(out + k * kWidth + v * L, load<T, whole.value>(from, count));
    };
    const bool whole = right.lines - first >= kWidth;
    for (int64_t k = 0; k < numbers; ++k) {
      for (int v = 0; v < kStrip; ++v) whole ? pack(v, k, std::true_type{}) : pack(v, k, std::false_type{});
    }
  }

  static void pack_rows(const Factor& left, int64_t first, int64_t lines, int64_t k0, int64_t numbers, T* out,
                        int64_t panel) {
    if (left.line_stride == 1) return pack_beside(left, first, lines, k0, numbers, out, panel);
    for (int64_t line = 0; line < lines; line += kMaxRows, out += panel) {
      const int rows = static_cast<int>(std::min<int64_t>(kMaxRows, lines - line));
      const T* from = left.at<T>(first + line, k0);
      int64_t k = 0;
      if constexpr (L >= kMaxRows) {
        // A vector for each number: its lanes beyond the panel's rows are overwritten by the next number, and the last
        // ones must not reach beyond the panel.
        for (; (k + L - 1) * rows + L <= numbers * rows; k += L) {
          Vec<T> block[L] = {};
#pragma GCC unroll 6
          for (int r = 0; r < kMaxRows; ++r) {
            if (r < rows) block[r] = load_raw<Vec<T>>(from + r * left.line_stride + k);
          }
          transpose<T>(block);
#pragma GCC unroll 16
          for (int j = 0; j < L; ++j) store_raw(out + (k + j) * rows, block[j]);
        }
      }
      for (; k < numbers; ++k) {
        for (int r = 0; r < rows; ++r) out[k * rows + r] = from[r * left.line_stride + k];
      }
    }
  }

  // Lines that lie beside each other. A few numbers of all panels before the next: rows of numbers may lie a power of two
  // apart, so that only a few of them fit the first-level cache at a time, and panels share the cache lines of each.
  static void pack_beside(const Factor& left, int64_t first, int64_t lines, int64_t k0, int64_t numbers, T* out,
                          int64_t panel) {
    constexpr int64_t kNumbersAtOnce = 4, kLine = 64 / sizeof(T);
    const int64_t stride = left.depth_stride;
    for (int64_t begin = 0; begin < numbers; begin += kNumbersAtOnce) {
      const int64_t end = std::min(begin + kNumbersAtOnce, numbers);
      const T* from = left.at<T>(first, k0);
      T* to = out;
      // The next numbers, which another core may have written.
      for (int64_t k = end; k < std::min(end + kNumbersAtOnce, numbers); ++k) {
        for (int64_t n = 0; n < lines; n += kLine) __builtin_prefetch(from + k * stride + n);
      }
      int64_t line = 0;
      for (; line + kMaxRows <= lines; line += kMaxRows, from += kMaxRows, to += panel) {
        for (int64_t k = begin; k < end; ++k)
          __builtin_memcpy(to + k * kMaxRows, from + k * stride, kMaxRows * sizeof(T));
      }
      const int64_t rest = lines - line;
      for (int64_t k = begin; k < end && rest > 0; ++k) {
        for (int64_t r = 0; r < rest; ++r) to[k * rest + r] = from[k * stride + r];
      }
    }
  }

  template <int MR, int NV>
  static FASTLSTM_INLINE void add(const T* left, const T* right, Vec<T> (&sum)[MR][NV]) {
    Vec<T> vectors[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) vectors[v] = load_raw<Vec<T>>(right + v * L);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) add_row<T>(sum[r], left + r, vectors);
  }
};

template <class T>
inline constexpr MatrixProducts fma_products = [] {
  MatrixProducts p{};
  p.worthwhile = [](int64_t rows, int64_t columns, int64_t depth, int, int) {
    return rows > 0 && columns > 0 && depth > 0;
  };
  p.packed_bytes = [](const Factor& right, int64_t depth) {
    return BlockedProduct<MultiplyAdds<T>>::packed_elements(right, depth) * static_cast<int64_t>(sizeof(T));
  };
  p.pack = [](const Factor& right, int64_t depth, void* packed, const Threads& threads) {
    BlockedProduct<MultiplyAdds<T>>::pack(right, depth, static_cast<T*>(packed), threads);
  };
  p.multiply = [](const ProductArgs& args, const Threads& threads) {
    BlockedProduct<MultiplyAdds<T>>(args, threads).run();
  };
  p.widens = std::is_same_v<T, float>;
  return p;
}();

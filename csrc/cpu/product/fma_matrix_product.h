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
    for (int v = 0; v < kStrip; ++v) {
      const PackedLines<IO> from = lines(v);
      const auto pack = [&](auto whole) {
        for (int64_t k = 0; k < numbers; ++k)
          store_raw(out + k * kWidth + v * L, load<T, whole.value>(from.first + k * right.depth_stride, from.count));
      };
      from.count == L ? pack(std::true_type{}) : pack(std::false_type{});
    }
  }

  static void pack_rows(const Factor& left, int64_t first, int64_t lines, int64_t k0, int64_t numbers, T* out,
                        int64_t panel) {
    for (int64_t line = 0; line < lines; line += kMaxRows, out += panel) {
      const int rows = static_cast<int>(std::min<int64_t>(kMaxRows, lines - line));
      const T* from = left.at<T>(first + line, k0);
      if (left.line_stride == 1) {
        for (int64_t k = 0; k < numbers; ++k)
          __builtin_memcpy(out + k * rows, from + k * left.depth_stride, rows * sizeof(T));
      } else {
        for (int64_t k = 0; k < numbers; ++k) {
          for (int r = 0; r < rows; ++r) out[k * rows + r] = from[r * left.line_stride + k * left.depth_stride];
        }
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

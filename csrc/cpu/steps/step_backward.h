// The gradients of one step of one layer, from weights that are not packed. Included inside a namespace of an
// instruction set.
//
// A product reads a few rows of the matrix at a time, each from its first number to its last: they are streams, and the
// sums pass through the first-level cache. Threads share the columns. Every sum is made in the order of the matrix's
// rows, whatever the number of threads.

template <class Acc, class IO>
class StepBackward {
 public:
  StepBackward(const StepBackwardArgs& args, const Threads& threads) : a_(args), threads_(threads) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  void run() {
    if (a_.weight_hr != nullptr && a_.dh != nullptr) {
      const IO* dh = static_cast<const IO*>(a_.dh);
      for (int64_t k = 0; k < a_.N * a_.P; ++k) dprojected_[k] = convert<Acc>(dh[k]);
      multiply(dprojected_, a_.P, a_.weight_hr, a_.H, dhidden_);
    }
    const int64_t blocks = (a_.H + L - 1) / L;
    share_out(threads_, threads_.count, blocks, 4 * a_.H * a_.N, [&](int64_t block) {
      const int64_t unit = block * L, count = std::min<int64_t>(L, a_.H - unit);
      for (int64_t n = 0; n < a_.N; ++n) count == L ? cell<true>(n, unit, L) : cell<false>(n, unit, count);
    });
    const Acc* dgates = static_cast<const Acc*>(a_.dgates);
    if (a_.dx != nullptr) multiply_out(dgates, a_.weight_ih, a_.I, a_.dx);
    if (a_.dh_in != nullptr) multiply_out(dgates, a_.weight_hh, a_.P, a_.dh_in);
  }

 private:
  static constexpr int L = lanes<Acc>;
  static constexpr bool same = std::is_same_v<Acc, IO>;
  static constexpr int kDepth = 8;  // rows of the matrix at a time

  void lay_out(Layout& layout) {
    const bool projected = a_.weight_hr != nullptr && a_.dh != nullptr;
    dprojected_ = layout.array<Acc>(projected ? a_.N * a_.P : 0);
    dhidden_ = layout.array<Acc>(projected ? a_.N * a_.H : 0);
    wide_out_ =
        layout.array<Acc>(same ? 0 : a_.N * std::max(a_.dx == nullptr ? 0 : a_.I, a_.dh_in == nullptr ? 0 : a_.P));
  }

  template <bool Whole>
  void cell(int64_t n, int64_t unit, int64_t count) {
    using V = Vec<Acc>;
    const int64_t H = a_.H, place = n * H + unit;
    const IO* tape = static_cast<const IO*>(a_.gates) + 4 * n * H + unit;
    const Gates<V> gates{load<Acc, Whole>(tape, count), load<Acc, Whole>(tape + H, count),
                         load<Acc, Whole>(tape + 2 * H, count), load<Acc, Whole>(tape + 3 * H, count)};
    V dh = {}, dc = {};
    if (a_.dh != nullptr) {
      dh = a_.weight_hr != nullptr ? load<Acc, Whole>(dhidden_ + place, count)
                                   : load<Acc, Whole>(static_cast<const IO*>(a_.dh) + place, count);
    }
    if (a_.dc != nullptr) dc = load<Acc, Whole>(static_cast<const IO*>(a_.dc) + place, count);
    const V tanh_c = Math<Acc>::tanh(load<Acc, Whole>(static_cast<const Acc*>(a_.cells) + place, count));
    const CellGradient<V> grad =
        lstm_cell_backward(gates, tanh_c, load<Acc, Whole>(static_cast<const IO*>(a_.c) + place, count), dh, dc);
    Acc* dgates = static_cast<Acc*>(a_.dgates) + 4 * n * H + unit;
    store<Acc, Whole>(dgates, grad.gates.i, count);
    store<Acc, Whole>(dgates + H, grad.gates.f, count);
    store<Acc, Whole>(dgates + 2 * H, grad.gates.g, count);
    store<Acc, Whole>(dgates + 3 * H, grad.gates.o, count);
    if (a_.dc_in != nullptr) store<Acc, Whole>(static_cast<IO*>(a_.dc_in) + place, grad.c_in, count);
    if (a_.unprojected != nullptr)
      store<Acc, Whole>(static_cast<Acc*>(a_.unprojected) + place, gates.o * tanh_c, count);
  }

  // out [N, columns] = dgates [N, 4H] @ weight [4H, columns].
  void multiply_out(const Acc* dgates, const void* weight, int64_t columns, void* out) {
    if constexpr (same) {
      multiply(dgates, 4 * a_.H, weight, columns, static_cast<Acc*>(out));
    } else {
      multiply(dgates, 4 * a_.H, weight, columns, wide_out_);
      const int64_t count = a_.N * columns;
      IO* to = static_cast<IO*>(out);
      int64_t k = 0;
      for (; k + L <= count; k += L) store<Acc, true>(to + k, load_raw<Vec<Acc>>(wide_out_ + k), L);
      if (k < count) store<Acc, false>(to + k, load_part<Acc>(wide_out_ + k, count - k), count - k);
    }
  }

  void multiply(const Acc* rows, int64_t K, const void* matrix, int64_t columns, Acc* out) {
    const int64_t blocks = (columns + L - 1) / L, shares = std::min<int64_t>(threads_.count, blocks);
    share_out(threads_, threads_.count, shares, K * columns, [&](int64_t share) {
      const int64_t begin = blocks * share / shares * L, end = std::min(blocks * (share + 1) / shares * L, columns);
      const IO* weights = static_cast<const IO*>(matrix) + begin;
      for (int64_t n = 0; n < a_.N; ++n) __builtin_memset(out + n * columns + begin, 0, (end - begin) * sizeof(Acc));
      for (int64_t k = 0; k < K;) {
        const int depth = K - k >= kDepth ? kDepth : 1;
        for_row_blocks(a_.N, [&](int64_t first, int count) {
          add(count, depth, rows + first * K + k, K, weights + k * columns, columns, end - begin,
              out + first * columns + begin);
        });
        k += depth;
      }
    });
  }

  static void add(int rows, int depth, const Acc* a, int64_t stride, const IO* weights, int64_t columns, int64_t count,
                  Acc* out) {
    using Function = void (*)(const Acc*, int64_t, const IO*, int64_t, int64_t, Acc*);
#define FASTLSTM_DEPTHS(MR) \
  { add_rows<MR, 1>, add_rows<MR, kDepth> }
    static constexpr Function table[kMaxRows][2] = {FASTLSTM_DEPTHS(1), FASTLSTM_DEPTHS(2), FASTLSTM_DEPTHS(3),
                                                    FASTLSTM_DEPTHS(4), FASTLSTM_DEPTHS(5), FASTLSTM_DEPTHS(6)};
#undef FASTLSTM_DEPTHS
    table[rows - 1][depth == kDepth](a, stride, weights, columns, count, out);
  }

  // out [MR rows] += a [MR, K] @ weights [K, count]. Rows of out and weights are `columns` apart, those of a `stride`.
  template <int MR, int K>
  __attribute__((noinline)) static void add_rows(const Acc* a, int64_t stride, const IO* weights, int64_t columns,
                                                 int64_t count, Acc* out) {
    const auto add = [&](int64_t j, int64_t n, auto whole) FASTLSTM_INLINE_LAMBDA {
      constexpr bool Whole = decltype(whole)::value;
      Vec<Acc> sum[MR];
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) sum[r] = load<Acc, Whole>(out + r * columns + j, n);
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) {
        const Vec<Acc> w = load<Acc, Whole>(weights + k * columns + j, n);
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) sum[r] += splat(a[r * stride + k]) * w;
      }
#pragma GCC unroll 6
      for (int r = 0; r < MR; ++r) store<Acc, Whole>(out + r * columns + j, sum[r], n);
    };
    int64_t j = 0;
    for (; j + L <= count; j += L) add(j, L, std::true_type{});
    if (j < count) add(j, count - j, std::false_type{});
  }

  const StepBackwardArgs& a_;
  const Threads& threads_;
  Acc *dprojected_, *dhidden_;  // with a projection, gradients of its output [N, P] and of its input [N, H]
  Acc* wide_out_;               // a product before it is rounded
};

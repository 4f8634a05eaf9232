// One step of one layer for a few rows, from weights that are not packed. Included inside a namespace of an instruction
// set.
//
// Threads share blocks of L units; for a block, the four gates of its units are made, then the cell. W is the type of
// the weight matrices.

template <class Acc, class IO, class W>
class Step {
 public:
  explicit Step(const StepArgs& args) : a_(args) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
    for (int64_t n = 0; n < dot_rows_of_call(); ++n) {
      set(x_[n], widened(a_.x, wide_x_, n, a_.I), a_.I, pairs_x_, n);
      set(h_[n], widened(a_.h, wide_h_, n, a_.P), a_.P, pairs_h_, n);
    }
  }

  void run(const Threads& threads) {
    const int workers = threads.count;
    // Steps alternate between forwards and backwards through the weights: the end of the last pass is still in the
    // nearer cache, if not all of it fits.
    static thread_local bool backwards = false;
    backwards = !backwards;
    const int64_t blocks = (a_.H + L - 1) / L, shares = std::min<int64_t>(workers, blocks);
    const int64_t work = 4 * a_.H * (a_.gates_x == nullptr ? a_.I + a_.P : a_.N);
    share_out(threads, workers, shares, work, [&, from_end = backwards](int64_t share) {
      const int64_t begin = blocks * share / shares, end = blocks * (share + 1) / shares;
      for (int64_t k = begin; k < end; ++k) units((from_end ? begin + end - 1 - k : k) * L, from_end ? -L : L);
    });
    if (a_.weight_hr == nullptr) return;
    for (int64_t n = 0; n < a_.N; ++n) set(h_[n], unprojected_ + n * a_.H, a_.H, pairs_unprojected_, n);
    share_out(threads, workers, (a_.P + L - 1) / L, a_.P * a_.H, [&](int64_t block) { outputs(block * L); });
  }

 private:
  static constexpr int L = lanes<Acc>;
  static constexpr bool kPairs = std::is_same_v<W, BFloat16>;
  using Operand = std::conditional_t<kPairs, PairOperand, DotOperand<Acc>>;

  // The number of rows that are multiplied by weights here.
  int64_t dot_rows_of_call() const { return a_.gates_x == nullptr ? a_.N : 0; }

  static int64_t room(int64_t K) { return kPairs ? PairOperand::room(K) : 0; }

  static void set(Operand& operand, const Acc* row, int64_t K, Acc* pairs, int64_t n) {
    if constexpr (kPairs) {
      operand.set(row, K, pairs + n * room(K));
    } else {
      operand.set(row, K);
    }
  }

  void lay_out(Layout& layout) {
    constexpr bool same = std::is_same_v<Acc, IO>;
    const int64_t rows = dot_rows_of_call();
    wide_x_ = layout.array<Acc>(same ? 0 : rows * a_.I);
    wide_h_ = layout.array<Acc>(same ? 0 : rows * a_.P);
    unprojected_ = layout.array<Acc>(a_.weight_hr == nullptr ? 0 : a_.N * a_.H);
    pairs_x_ = layout.array<Acc>(rows * room(a_.I));
    pairs_h_ = layout.array<Acc>(rows * room(a_.P));
    pairs_unprojected_ = layout.array<Acc>(a_.weight_hr == nullptr ? 0 : a_.N * room(a_.H));
  }

  // Row n of a [N, K] tensor in the accumulation type: the tensor's own memory, or a copy in `wide`.
  static const Acc* widened(const void* tensor, Acc* wide, int64_t n, int64_t K) {
    const IO* row = static_cast<const IO*>(tensor) + n * K;
    if constexpr (std::is_same_v<Acc, IO>) {
      return row;
    } else {
      for (int64_t k = 0; k < K; ++k) wide[n * K + k] = convert<Acc>(row[k]);
      return wide + n * K;
    }
  }

  // The block of units that begins at `unit`; the next one begins `next` further.
  void units(int64_t unit, int64_t next) {
    const int64_t count = std::min<int64_t>(L, a_.H - unit);
    if (count == L) {
      units<true>(unit, count, next);
    } else {
      units<false>(unit, count, next);
    }
  }

  template <bool Whole>
  void units(int64_t unit, int64_t count, int64_t next) {
    using V = Vec<Acc>;
    V sums[4][kMaxStepRows];
    V bias[4] = {};
    for (int64_t g = 0; g < 4; ++g) {
      const int64_t row = g * a_.H + unit;
      const W *ih = static_cast<const W*>(a_.weight_ih) + row * a_.I,
              *hh = static_cast<const W*>(a_.weight_hh) + row * a_.P;
      dot_rows<Acc, W>(dot_rows_of_call(), ih, x_, hh, h_, count, g < 3 ? a_.H : next - 3 * a_.H, sums[g]);
      for (const void* b : {a_.bias_ih, a_.bias_hh}) {
        if (b != nullptr) bias[g] += load<Acc, Whole>(static_cast<const IO*>(b) + row, count);
      }
    }
    for (int64_t n = 0; n < a_.N; ++n) {
      const auto preactivation = [&](int g) FASTLSTM_INLINE_LAMBDA {
        if (a_.gates_x == nullptr) return sums[g][n] + bias[g];
        return load<Acc, Whole>(static_cast<const Acc*>(a_.gates_x) + (4 * n + g) * a_.H + unit, count) + bias[g];
      };
      Gates<V> gates{preactivation(0), preactivation(1), preactivation(2), preactivation(3)};
      const int64_t place = n * a_.H + unit;
      const V c = load<Acc, Whole>(static_cast<const IO*>(a_.c) + place, count);
      const CellState<V> out = lstm_cell_forward<Math<Acc>>(gates, c);
      store<Acc, Whole>(static_cast<IO*>(a_.c_out) + place, out.c, count);
      if (a_.cells != nullptr) store<Acc, Whole>(static_cast<Acc*>(a_.cells) + place, out.c, count);
      if (a_.gates != nullptr) {
        IO* tape = static_cast<IO*>(a_.gates) + 4 * n * a_.H + unit;
        store<Acc, Whole>(tape, gates.i, count);
        store<Acc, Whole>(tape + a_.H, gates.f, count);
        store<Acc, Whole>(tape + 2 * a_.H, gates.g, count);
        store<Acc, Whole>(tape + 3 * a_.H, gates.o, count);
      }
      if (a_.weight_hr == nullptr) {
        store<Acc, Whole>(static_cast<IO*>(a_.h_out) + place, out.h, count);
      } else {
        store<Acc, Whole>(unprojected_ + place, out.h, count);
      }
    }
  }

  void outputs(int64_t first) {
    const int64_t count = std::min<int64_t>(L, a_.P - first);
    const W* weights = static_cast<const W*>(a_.weight_hr) + first * a_.H;
    Vec<Acc> sums[kMaxStepRows];
    dot_rows<Acc, W, Operand>(a_.N, weights, h_, nullptr, h_, count, L, sums);
    for (int64_t n = 0; n < a_.N; ++n) {
      IO* out = static_cast<IO*>(a_.h_out) + n * a_.P + first;
      if (count == L) {
        store<Acc, true>(out, sums[n], count);
      } else {
        store<Acc, false>(out, sums[n], count);
      }
    }
  }

  const StepArgs& a_;
  Acc *wide_x_, *wide_h_, *unprojected_;
  Acc *pairs_x_, *pairs_h_, *pairs_unprojected_;
  Operand x_[kMaxStepRows], h_[kMaxStepRows];  // of each row
};

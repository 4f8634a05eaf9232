// The gate inputs x W_ih^T of a short sequence, where the call of a BLAS costs more than its product. Included inside a
// namespace of an instruction set, after product.h.

template <class Acc, class IO, class W>
class GateInputs {
 public:
  explicit GateInputs(const GatesArgs& args)
      : a_(args),
        panels_((4 * args.H + L - 1) / L, kPanel, 1, args.I, L, 1),
        stride_(same ? args.I : padded<Acc>(args.I)) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  void run(const Threads& threads) {
    widen();
    const int64_t work = a_.rows * 4 * a_.H * a_.I / kElementWork;
    share_out(threads, threads.count, static_cast<int64_t>(panels_.panels.size()), work, [&](int64_t p) {
      const Panel& panel = panels_.panels[p];
      Acc* packed = packed_ + panel.offset;
      pack_lines_as_columns<Acc>(panel, static_cast<const W*>(a_.weight_ih), a_.I, a_.I, 4 * a_.H, packed_);
      for_row_blocks(a_.rows, [&](int64_t first, int rows) { multiply(panel, packed, first, rows); });
    });
  }

 private:
  static constexpr int L = lanes<Acc>;
  static constexpr bool same = std::is_same_v<Acc, IO>;
  static constexpr int64_t kElementWork = 16;  // in units of share_out, which counts elements that are moved

  void lay_out(Layout& layout) {
    packed_ = layout.array<Acc>(panels_.elements);
    wide_x_ = layout.array<Acc>(same ? 0 : a_.rows * stride_);
  }

  void widen() {
    if constexpr (!same) {
      for (int64_t r = 0; r < a_.rows; ++r) {
        for (int64_t k = 0; k < a_.I; ++k)
          wide_x_[r * stride_ + k] = convert<Acc>(static_cast<const IO*>(a_.x)[r * a_.I + k]);
      }
    }
  }

  const Acc* x() const {
    if constexpr (same) return static_cast<const Acc*>(a_.x);
    return wide_x_;
  }

  void multiply(const Panel& panel, const Acc* packed, int64_t first, int rows) {
    alignas(64) Acc sums[kMaxRows * kPanel * L];
    product<Acc, Acc>(rows, panel.vectors, x() + first * stride_, stride_, packed, a_.I, sums);
    for (int r = 0; r < rows; ++r) {
      Acc* gates = static_cast<Acc*>(a_.gates) + (first + r) * 4 * a_.H;
      for (int v = 0; v < panel.vectors; ++v) {
        const int64_t column = (panel.vector + v) * L, columns = std::min<int64_t>(L, 4 * a_.H - column);
        const Vec<Acc> sum = load_raw<Vec<Acc>>(sums + (r * panel.vectors + v) * L);
        if (columns == L) {
          store<Acc, true>(gates + column, sum, columns);
        } else {
          store<Acc, false>(gates + column, sum, columns);
        }
      }
    }
  }

  const GatesArgs& a_;
  const Panels panels_;
  const int64_t stride_;
  Acc *packed_, *wide_x_;
};

// What a step of the backward loop reads, and where its rows lie. Included inside a namespace of an instruction set.

template <class Acc, class IO>
class BackwardTape {
 protected:
  BackwardTape(const BackwardArgs& args, const Plan& plan)
      : a_(args), s_(args.sizes), plan_(plan), rec_{s_, plan_, args.reset_mask} {}

  static constexpr int L = lanes<Acc>;

  // The row (t, row) of direction d in an array that is laid out by `strides`.
  template <class T>
  T* row_of(void* data, const Strides& strides, int d, int64_t t, int64_t row) const {
    return static_cast<T*>(data) + d * strides.d + (t - first_[d]) * strides.t + row * strides.n;
  }

  int64_t at(int64_t t, int64_t row, int d, int64_t width) const { return ((t * s_.N + row) * s_.D + d) * width; }

  // Asks for what the cells of a block of rows will read, while their product is made: these streams are more than a core follows.
  void prefetch_tape(int d, int64_t t, int64_t slot, int rows, const Panel& panel) const {
    constexpr int kLine = std::max<int>(1, 64 / (L * sizeof(IO)));  // vectors of a cache line
    const auto ask = [&](const auto* row) FASTLSTM_INLINE_LAMBDA {
      for (int v = 0; v < panel.vectors; v += kLine) __builtin_prefetch(row + (panel.vector + v) * L);
    };
    const int64_t before = t == (d == 0 ? 0 : s_.T - 1) ? t : rec_.step_before(d, t);
    for (int64_t k = slot; k < slot + rows; ++k) {
      const int64_t row = plan_.rows[k];
      for (int g = 0; g < 4; ++g) ask(static_cast<const IO*>(a_.gates) + at(t, row, d, 4 * s_.H) + g * s_.H);
      ask(static_cast<const Acc*>(a_.cells) + at(before, row, d, s_.H));
      if (a_.h_entering != nullptr) ask(static_cast<const IO*>(a_.output) + at(before, row, d, s_.P));
      if (a_.doutput != nullptr) ask(doutput_of(d, t, row));
    }
  }

  const IO* doutput_of(int d, int64_t t, int64_t row) const {
    return static_cast<const IO*>(a_.doutput) + t * a_.doutput_stride_t + row * a_.doutput_stride_n + d * s_.P;
  }

  template <bool Whole>
  FASTLSTM_INLINE Vec<Acc> arriving(int d, int64_t t, int64_t slot, int64_t column, int64_t columns) const {
    const int64_t row = plan_.rows[slot];
    Vec<Acc> dh = {};
    if (a_.doutput != nullptr) dh += load<Acc, Whole>(doutput_of(d, t, row) + column, columns);
    if (a_.dh_n != nullptr && t == rec_.last_step(d, plan_.lengths[slot])) {
      dh += load_either<Acc, Whole, IO>(a_.dh_n, a_.wide_states, (d * s_.N + row) * s_.P + column, columns);
    }
    return dh;
  }

  template <bool Whole>
  FASTLSTM_INLINE Vec<Acc> hidden_entering(int d, int64_t t, int64_t slot, int64_t column, int64_t columns) const {
    const int64_t row = plan_.rows[slot], length = plan_.lengths[slot];
    if (rec_.cut_entering(d, t, row, length)) return Vec<Acc>{};
    const bool first = t == rec_.first_step(d, length);
    const IO* h = first ? static_cast<const IO*>(a_.h0) + (d * s_.N + row) * s_.P
                        : static_cast<const IO*>(a_.output) + at(rec_.step_before(d, t), row, d, s_.P);
    return load<Acc, Whole>(h + column, columns);
  }

  template <bool Whole>
  FASTLSTM_INLINE Vec<Acc> cell_entering(int d, int64_t t, int64_t slot, int64_t unit, int64_t units, bool cut) const {
    const int64_t row = plan_.rows[slot];
    if (cut) return Vec<Acc>{};
    if (t == rec_.first_step(d, plan_.lengths[slot])) {
      return load_either<Acc, Whole, IO>(a_.c0, a_.wide_states, (d * s_.N + row) * s_.H + unit, units);
    }
    return load<Acc, Whole>(static_cast<const Acc*>(a_.cells) + at(rec_.step_before(d, t), row, d, s_.H) + unit, units);
  }

  const BackwardArgs& a_;
  const Sizes& s_;
  const Plan& plan_;
  const Recurrence rec_;
  int64_t first_[2];  // the step with which each direction's rows of dgates_x and the like begin
};

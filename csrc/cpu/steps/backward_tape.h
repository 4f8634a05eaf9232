// What a step of the backward loop reads, and where it is. Included inside a namespace of an instruction set.

template <class Acc, class IO, class GX>
class BackwardTape {
 protected:
  BackwardTape(const BackwardArgs& args, const Plan& plan)
      : a_(args), s_(args.sizes), plan_(plan), rec_{s_, plan_, args.reset_mask} {}

  static constexpr int L = lanes<Acc>;

  // Row `row` of step t of direction d in an array with these strides.
  template <class T>
  T* row_of(void* data, const Strides& strides, int d, int64_t t, int64_t row) const {
    return static_cast<T*>(data) + d * strides.d + (t - first_[d]) * strides.t + row * strides.n;
  }

  int64_t at(int64_t t, int64_t row, int d, int64_t width) const { return ((t * s_.N + row) * s_.D + d) * width; }

  const IO* doutput_of(int d, int64_t t, int64_t row) const {
    return static_cast<const IO*>(a_.doutput) + t * a_.doutput_stride_t + row * a_.doutput_stride_n + d * s_.P;
  }

  // Whether no row takes its first or last step at t, and none is cut. `end` is the end of the rows that have step t,
  // the last of which is the shortest.
  bool is_plain(int d, int64_t t, int64_t end) const {
    if (end == 0 || a_.reset_mask != nullptr) return false;
    const int64_t length = plan_.lengths[end - 1];
    return t != rec_.first_step(d, length) && t != rec_.last_step(d, length);
  }

  // Where step t of a direction has its rows, computed once for all of them: of row r, and of slot s of a state, at r or
  // s times the stride. `..._before` are of the step before, if the step is plain. All that a plain cell needs is here:
  // a store of a vector may write anything, as far as the compiler knows, but for a copy of this on the stack.
  struct Places {
    const int64_t* rows;  // of each slot
    const IO *gates, *doutput, *output_before;
    const Acc *cells, *cells_before, *dcells;
    GX *dgates_x, *h_entering;
    Acc *dgates, *dc;
    int64_t H, doutput_stride, output_stride, cells_stride, dgates_x_stride, h_entering_stride, dgates_stride, c_stride;
    bool plain, projected;
  };

  // dgates and dc: slot 0 of the states, with their strides.
  Places places(int d, int64_t t, Acc* dgates, int64_t dgates_stride, Acc* dc, int64_t c_stride, int64_t end) const {
    const bool plain = is_plain(d, t, end);
    const int64_t before = plain ? rec_.step_before(d, t) : t;
    const auto of = [&](const auto* data, int64_t step, int64_t width) {
      return data == nullptr ? nullptr : data + at(step, 0, d, width);
    };
    const auto *output = static_cast<const IO*>(a_.output), *gates = static_cast<const IO*>(a_.gates);
    const auto *cells = static_cast<const Acc*>(a_.cells), *dcells = static_cast<const Acc*>(a_.dcells);
    Places p{};
    p.gates = of(gates, t, 4 * s_.H);
    p.doutput = a_.doutput == nullptr ? nullptr : doutput_of(d, t, 0);
    p.output_before = of(output, before, s_.P);
    p.cells = of(cells, t, s_.H);
    p.cells_before = of(cells, before, s_.H);
    p.dcells = of(dcells, t, s_.H);
    p.dgates_x = row_of<GX>(a_.dgates_x, a_.dgates_strides, d, t, 0);
    p.h_entering = a_.h_entering == nullptr ? nullptr : row_of<GX>(a_.h_entering, a_.h_entering_strides, d, t, 0);
    p.rows = plan_.rows.data();
    p.dgates = dgates;
    p.dgates_stride = dgates_stride;
    p.dc = dc;
    p.c_stride = c_stride;
    p.H = s_.H;
    p.doutput_stride = a_.doutput_stride_n;
    p.output_stride = s_.D * s_.P;
    p.cells_stride = s_.D * s_.H;
    p.dgates_x_stride = a_.dgates_strides.n;
    p.h_entering_stride = a_.h_entering_strides.n;
    p.plain = plain;
    p.projected = a_.weight_hr[0] != nullptr;
    return p;
  }

  // Prefetches what the cells of a block of rows will read, while their product is made: the hardware prefetcher does
  // not follow so many streams. Always inline: GCC takes a function that only prefetches for one without effects, and
  // leaves out the calls.
  FASTLSTM_INLINE void prefetch_tape(const Places& p, int64_t slot, int rows, const Panel& panel) const {
    constexpr int kLine = std::max<int>(1, 64 / (L * sizeof(IO)));  // vectors of a cache line
    const auto ask = [&](const auto* row) FASTLSTM_INLINE_LAMBDA {
      for (int v = 0; v < panel.vectors; v += kLine) __builtin_prefetch(row + (panel.vector + v) * L);
    };
    for (int64_t k = slot; k < slot + rows; ++k) {
      const int64_t row = p.rows[k];
      for (int g = 0; g < 4; ++g) ask(p.gates + row * 4 * p.cells_stride + g * p.H);
      ask(p.cells_before + row * p.cells_stride);
      if (p.h_entering != nullptr) ask(p.output_before + row * p.output_stride);
      if (p.doutput != nullptr) ask(p.doutput + row * p.doutput_stride);
    }
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
  int64_t first_[2];  // the step at which each direction's rows of dgates_x and the like begin
};

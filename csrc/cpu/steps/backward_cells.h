// The cells of the backward loop over steps, and the states that they read and write. Included inside a namespace of an
// instruction set.
//
// Acc computes; IO is the tensors' type, GX that of dgates_x (IO or Acc); Product is how dgates are multiplied by W_hh.

template <class Acc, class IO, class GX, class Product>
class BackwardCells : protected BackwardTape<Acc, IO, GX> {
 protected:
  using Tape = BackwardTape<Acc, IO, GX>;
  using Tape::a_, Tape::s_, Tape::plan_, Tape::rec_, Tape::L;
  using Tape::Tape;
  using typename Tape::Places;

  bool projected() const { return a_.weight_hr[0] != nullptr; }

  int64_t state_row(int buffer, int d, int64_t slot) const { return (buffer * s_.D + d) * s_.N + slot; }
  Acc* dgates_state(int buffer, int d, int64_t slot) { return dgates_ + state_row(buffer, d, slot) * dgates_stride_; }
  Places places_of(int d, int64_t t, int buffer, int64_t end) {
    return this->places(d, t, dgates_state(buffer, d, 0), dgates_stride_, dc_state(d, 0), c_stride_, end);
  }
  Acc* dc_state(int d, int64_t slot) { return dc_ + (d * s_.N + slot) * c_stride_; }
  Acc* dprojected(int d, int64_t slot) { return dprojected_ + (d * s_.N + slot) * p_stride_; }

  void steps(const Places& places, int d, int64_t t, int buffer, int64_t slot, int rows, const Panel& panel,
             const Acc* sums) {
    const Places p = places;
    if (p.plain && !p.projected) {
      for_vectors(rows, panel, p.H, sums,
                  [&](int r, int64_t column, int64_t columns, Vec<Acc> dh, auto whole) FASTLSTM_INLINE_LAMBDA {
                    plain_step<whole.value>(p, d, t, buffer, slot + r, column, columns, dh);
                  });
    } else {
      for_vectors(rows, panel, s_.P, sums, [&](int r, int64_t column, int64_t columns, Vec<Acc> dh, auto whole) {
        any_step<whole.value>(p, d, t, buffer, slot + r, column, columns, dh);
      });
    }
  }

  template <bool Whole>
  FASTLSTM_INLINE void plain_step(const Places& p, int d, int64_t t, int buffer, int64_t slot, int64_t unit,
                                  int64_t units, Vec<Acc> dh) {
    const int64_t row = p.rows[slot];
    if (p.doutput != nullptr) dh += load<Acc, Whole>(p.doutput + row * p.doutput_stride + unit, units);
    if (p.h_entering != nullptr) {
      store<Acc, Whole>(p.h_entering + row * p.h_entering_stride + unit,
                        load<Acc, Whole>(p.output_before + row * p.output_stride + unit, units), units);
    }
    cell<Whole, true>(p, d, t, buffer, slot, unit, units, dh);
  }

  template <bool Whole>
  FASTLSTM_INLINE void any_step(const Places& p, int d, int64_t t, int buffer, int64_t slot, int64_t column,
                                int64_t columns, Vec<Acc> dh) {
    dh += this->template arriving<Whole>(d, t, slot, column, columns);
    const int64_t row = plan_.rows[slot];
    if (p.h_entering != nullptr) {
      store<Acc, Whole>(p.h_entering + row * a_.h_entering_strides.n + column,
                        this->template hidden_entering<Whole>(d, t, slot, column, columns), columns);
    }
    if (projected()) {
      store_raw(dprojected(d, slot) + column, dh);
      store<Acc, Whole>(this->template row_of<Acc>(a_.dhidden, a_.dhidden_strides, d, t, row) + column, dh, columns);
    } else {
      cell<Whole, false>(p, d, t, buffer, slot, column, columns, dh);
    }
  }

  // body(row of the block, first column, columns, sums, whole) for each vector of a product's result.
  template <class Body>
  FASTLSTM_INLINE void for_vectors(int rows, const Panel& panel, int64_t width, const Acc* sums, const Body& body) {
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < panel.vectors; ++v) {
        const int64_t column = (panel.vector + v) * L, columns = std::min<int64_t>(L, width - column);
        const Vec<Acc> value = load_raw<Vec<Acc>>(sums + (r * panel.vectors + v) * L);
        if (columns == L) {
          body(r, column, columns, value, std::true_type{});
        } else {
          body(r, column, columns, value, std::false_type{});
        }
      }
    }
  }

  // Plain: as in `Places`.
  template <bool Whole, bool Plain>
  FASTLSTM_INLINE void cell(const Places& p, int d, int64_t t, int buffer, int64_t slot, int64_t unit, int64_t units,
                            Vec<Acc> dh) {
    using V = Vec<Acc>;
    const int64_t row = p.rows[slot], H = p.H;
    const bool cut = !Plain && rec_.cut_entering(d, t, row, plan_.lengths[slot]);
    const IO* tape = p.gates + row * 4 * p.cells_stride + unit;
    const Gates<V> gates{load<Acc, Whole>(tape, units), load<Acc, Whole>(tape + H, units),
                         load<Acc, Whole>(tape + 2 * H, units), load<Acc, Whole>(tape + 3 * H, units)};
    const int64_t place = row * p.cells_stride + unit;
    const V c = load<Acc, Whole>(p.cells + place, units);
    Acc* dc_row = p.dc + slot * p.c_stride + unit;
    V dc = load_raw<V>(dc_row);
    if (p.dcells != nullptr) dc += load<Acc, Whole>(p.dcells + place, units);

    const V tanh_c = Math<Acc>::tanh(c);
    V c_entering;
    if constexpr (Plain) {
      c_entering = load<Acc, Whole>(p.cells_before + place, units);
    } else {
      c_entering = this->template cell_entering<Whole>(d, t, slot, unit, units, cut);
    }
    const CellGradient<V> grad = lstm_cell_backward(gates, tanh_c, c_entering, dh, dc);
    if (!Plain && a_.unprojected != nullptr) {
      store<Acc, Whole>(this->template row_of<Acc>(a_.unprojected, a_.unprojected_strides, d, t, row) + unit,
                        gates.o * tanh_c, units);
    }

    GX* dgates_x = p.dgates_x + row * p.dgates_x_stride + unit;
    store<Acc, Whole>(dgates_x, grad.gates.i, units);
    store<Acc, Whole>(dgates_x + H, grad.gates.f, units);
    store<Acc, Whole>(dgates_x + 2 * H, grad.gates.g, units);
    store<Acc, Whole>(dgates_x + 3 * H, grad.gates.o, units);
    Acc* dgates = p.dgates + slot * p.dgates_stride + unit;
    const auto keep = [&](int64_t first, V dgate) FASTLSTM_INLINE_LAMBDA {
      const V entering = cut ? V{} : dgate;
      store<Acc, Whole>(dgates + first, entering, units);
      dgates_parts_.store(state_row(buffer, d, slot), unit + first, units, entering);
    };
    keep(0, grad.gates.i);
    keep(H, grad.gates.f);
    keep(2 * H, grad.gates.g);
    keep(3 * H, grad.gates.o);
    store_raw(dc_row, cut ? V{} : grad.c_in);
  }

  int64_t dgates_stride_, c_stride_, p_stride_;
  Acc* dgates_;                            // [2, D, slots, 4H]
  typename Product::States dgates_parts_;  // dgates_ in the form of the product, if that is another one
  Acc* dc_;                                // [D, slots, H padded]
  Acc* dprojected_;                        // [D, slots, P padded]
};

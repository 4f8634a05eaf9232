// The cells of the forward loop over steps, and the states that they read and write. Included inside a namespace of an
// instruction set.
//
// Acc computes; IO is the tensors' type, GX that of gates_x (IO or Acc); Product is how h is multiplied by W_hh.

template <class Acc, class IO, class GX, class Product>
class ForwardCells {
 protected:
  ForwardCells(const ForwardArgs& args, const Plan& plan)
      : a_(args), s_(args.sizes), plan_(plan), rec_{s_, plan_, args.reset_mask} {}

  static constexpr int L = lanes<Acc>;

  bool projected() const { return a_.weight_hr[0] != nullptr; }

  int64_t state_row(int buffer, int d, int64_t slot) const { return (buffer * s_.D + d) * s_.N + slot; }
  Acc* h_state(int buffer, int d, int64_t slot) { return h_ + state_row(buffer, d, slot) * h_stride_; }
  Acc* c_state(int d, int64_t slot) { return c_ + (d * s_.N + slot) * c_stride_; }
  Acc* unprojected(int d, int64_t slot) { return unprojected_ + (d * s_.N + slot) * c_stride_; }

  // Where (t, row, d) is in an array [T, N, D, width].
  int64_t at(int64_t t, int64_t row, int d, int64_t width) const { return ((t * s_.N + row) * s_.D + d) * width; }

  // Where step t of a direction has its rows, computed once for all of them: of row r, and of slot s of a state, at r or
  // s times the stride. All that a cell needs is here: a store of a vector may write anything, as far as the compiler
  // knows, but for a copy of this on the stack.
  struct Places {
    const int64_t* rows;  // of each slot
    const GX* x;
    const Acc* bias;  // [4, H padded]
    IO *output, *gates;
    Acc *cells, *c, *h_next;
    int64_t H, x_stride, output_stride, cells_stride, c_stride, h_stride;
    bool plain;  // no projection, no row takes its last step, and none is cut after it
  };

  Places places(int d, int64_t t, int buffer, int64_t end) {
    const auto of = [&](auto* data, int64_t width) { return data == nullptr ? nullptr : data + at(t, 0, d, width); };
    Places p{};
    p.rows = plan_.rows.data();
    p.x = gates_x_[d] + t * a_.gates_strides.t;
    p.bias = bias_ + d * 4 * c_stride_;
    p.output = of(static_cast<IO*>(a_.output), s_.P);
    p.gates = of(static_cast<IO*>(a_.gates), 4 * s_.H);
    p.cells = of(static_cast<Acc*>(a_.cells), s_.H);
    p.c = c_state(d, 0);
    p.h_next = h_state(1 - buffer, d, 0);
    p.H = s_.H;
    p.x_stride = a_.gates_strides.n;
    p.output_stride = s_.D * s_.P;
    p.cells_stride = s_.D * s_.H;
    p.c_stride = c_stride_;
    p.h_stride = h_stride_;
    // The last of the rows that have this step is the first to end.
    p.plain = !projected() && end > 0 && a_.reset_mask == nullptr && t != rec_.last_step(d, plan_.lengths[end - 1]);
    return p;
  }

  // Products whose cells are still to be made. The cells of one product are few, with one row a single vector: a chain
  // of some fifty dependent operations, longer than the processor looks ahead. Those of several products overlap.
  struct Batch {
    static constexpr int kVectors = std::max(24, Product::kRows);  // at least one product's
    // The units from `unit` on of a slot.
    struct Place {
      int64_t slot, unit;
    };

    int vectors = 0;
    bool whole = true;  // all lanes of all vectors are units
    Place place[kVectors];
    alignas(64) Acc sums[kVectors * kPanel * L];  // of the four gates of each vector

    bool has_room(int rows) const { return vectors + rows <= kVectors; }
    // For slots [slot, slot + rows) at the `units` units from `unit` on: where their sums go.
    FASTLSTM_INLINE Acc* add(int64_t slot, int rows, int64_t unit, int64_t units) {
      Acc* first = sums + vectors * kPanel * L;
      whole &= units >= L;
      for (int r = 0; r < rows; ++r) place[vectors + r] = {slot + r, unit};
      vectors += rows;
      return first;
    }
    void clear() {
      vectors = 0;
      whole = true;
    }
  };

  // Prefetches what the cells of a block of rows will read, while its product is made: the hardware prefetcher does not
  // follow so many streams.
  FASTLSTM_INLINE void prefetch_cells(const Places& p, int64_t slot, int rows, int64_t unit) {
    for (int64_t k = slot; k < slot + rows; ++k) {
      const int64_t row = p.rows[k];
      for (int g = 0; g < 4; ++g) __builtin_prefetch(p.x + row * p.x_stride + g * p.H + unit);
      __builtin_prefetch(p.c + k * p.c_stride + unit, 1);
      if (!projected()) __builtin_prefetch(p.output + row * p.output_stride + unit, 1);
    }
  }

  // The cells of a batch in two rounds, first c of all, then h: in one round each row's second activation would wait
  // for its first. c and the output gate overwrite two of a row's sums.
  void finish(const Places& places, int d, int64_t t, int buffer, Batch& batch) {
    if (places.plain && batch.whole) {
      finish_plain(places, d, t, buffer, batch);
    } else {
      finish_any(places, d, t, buffer, batch);
    }
    batch.clear();
  }

  void finish_plain(const Places& places, int d, int64_t t, int buffer, Batch& batch) {
    if (places.gates != nullptr || places.cells != nullptr) {
      plain_cells<true>(places, batch);
    } else {
      plain_cells<false>(places, batch);
    }
    plain_hidden(places, d, buffer, batch);
  }

  // The rounds by themselves, so that the compiler keeps what all vectors share in registers. GCC 12 takes a function
  // that stores by an index alone for one without effects, and leaves out its calls, but for `has_effects`.
  template <bool Tape>
  __attribute__((noinline)) void plain_cells(const Places& places, Batch& batch) {
    using V = Vec<Acc>;
    has_effects();
    const Places p = places;
    // The gates' rows, each by a pointer of its own: an index is then all that a vector works out.
    const GX* x[4];
    for (int g = 0; g < 4; ++g) x[g] = opaque(p.x + g * p.H);
    const Acc* bias[4];
    for (int g = 0; g < 4; ++g) bias[g] = opaque(p.bias + g * p.c_stride);
    const int64_t vectors = batch.vectors;
    for (int64_t k = 0; k < vectors; ++k) {
      Acc* sums = batch.sums + k * kPanel * L;
      const int64_t slot = batch.place[k].slot, unit = batch.place[k].unit, row = p.rows[slot];
      const int64_t column = row * p.x_stride + unit, place = slot * p.c_stride + unit;
      const auto preactivation = [&](const GX* gate_x, const Acc* gate_bias, int g) FASTLSTM_INLINE_LAMBDA {
        return load<Acc, true>(gate_x + column, L) + (load_raw<V>(gate_bias) + load_raw<V>(sums + g * L));
      };
      Gates<V> gates{preactivation(x[0], bias[0] + unit, 0), preactivation(x[1], bias[1] + unit, 1),
                     preactivation(x[2], bias[2] + unit, 2), preactivation(x[3], bias[3] + unit, 3)};
      const V c = lstm_cell_state<Math<Acc>>(gates, load_raw<V>(p.c + place));
      if constexpr (Tape) store_tape<true>(p, row, unit, L, gates, c);
      store_raw(p.c + place, c);
      store_raw(sums, c);
      store_raw(sums + L, gates.o);
    }
  }

  __attribute__((noinline)) void plain_hidden(const Places& places, int d, int buffer, const Batch& batch) {
    has_effects();
    const Places p = places;
    const int64_t vectors = batch.vectors;
    for (int64_t k = 0; k < vectors; ++k) {
      hidden<true, true>(p, d, 0, buffer, batch.place[k].slot, batch.place[k].unit, L, batch.sums + k * kPanel * L);
    }
  }

  __attribute__((noinline)) void finish_any(const Places& places, int d, int64_t t, int buffer, Batch& batch) {
    const Places p = places;
    // visit(slot, unit, units, sums, Whole) for every vector.
    const auto for_vectors = [&](const auto& visit) FASTLSTM_INLINE_LAMBDA {
      for (int k = 0; k < batch.vectors; ++k) {
        const typename Batch::Place place = batch.place[k];
        const int64_t units = std::min<int64_t>(L, p.H - place.unit);
        Acc* sums = batch.sums + k * kPanel * L;
        if (units == L) {
          visit(place.slot, place.unit, units, sums, std::true_type{});
        } else {
          visit(place.slot, place.unit, units, sums, std::false_type{});
        }
      }
    };
    for_vectors([&](int64_t slot, int64_t unit, int64_t units, Acc* sums, auto whole)
                    FASTLSTM_INLINE_LAMBDA { cell<whole.value>(p, d, t, slot, unit, units, sums); });
    for_vectors([&](int64_t slot, int64_t unit, int64_t units, Acc* sums, auto whole)
                    FASTLSTM_INLINE_LAMBDA { hidden<whole.value, false>(p, d, t, buffer, slot, unit, units, sums); });
  }

  template <bool Whole>
  FASTLSTM_INLINE void cell(const Places& p, int d, int64_t t, int64_t slot, int64_t unit, int64_t units, Acc* sums) {
    using V = Vec<Acc>;
    const int64_t row = p.rows[slot], H = p.H;
    const GX* x = p.x + row * p.x_stride + unit;
    const Acc* bias = p.bias + unit;
    const auto preactivation = [&](int g) FASTLSTM_INLINE_LAMBDA {
      return load<Acc, Whole>(x + g * H, units) + (load_raw<V>(bias + g * p.c_stride) + load_raw<V>(sums + g * L));
    };
    Gates<V> gates{preactivation(0), preactivation(1), preactivation(2), preactivation(3)};
    Acc* c_state_row = p.c + slot * p.c_stride + unit;
    const V c = lstm_cell_state<Math<Acc>>(gates, load_raw<V>(c_state_row));
    store_tape<Whole>(p, row, unit, units, gates, c);
    const int64_t length = plan_.lengths[slot];
    const bool last = t == rec_.last_step(d, length);
    if (last) store_either<Acc, Whole, IO>(a_.c_n, a_.wide_states, (d * s_.N + row) * H + unit, c, units);
    store_raw(c_state_row, cut_after(d, t, row, length) ? V{} : c);
    store_raw(sums, c);
    store_raw(sums + L, gates.o);
  }

  // What the backward reads, and the cells that the caller asked for.
  template <bool Whole>
  FASTLSTM_INLINE void store_tape(const Places& p, int64_t row, int64_t unit, int64_t units,
                                  const Gates<Vec<Acc>>& gates, Vec<Acc> c) {
    if (p.gates != nullptr) {
      IO* tape = p.gates + row * 4 * p.cells_stride + unit;
      store<Acc, Whole>(tape, gates.i, units);
      store<Acc, Whole>(tape + p.H, gates.f, units);
      store<Acc, Whole>(tape + 2 * p.H, gates.g, units);
      store<Acc, Whole>(tape + 3 * p.H, gates.o, units);
    }
    if (p.cells != nullptr) store<Acc, Whole>(p.cells + row * p.cells_stride + unit, c, units);
  }

  template <bool Whole, bool Plain>
  FASTLSTM_INLINE void hidden(const Places& p, int d, int64_t t, int buffer, int64_t slot, int64_t unit, int64_t units,
                              const Acc* sums) {
    using V = Vec<Acc>;
    const V h = lstm_cell_hidden<Math<Acc>>(load_raw<V>(sums + L), load_raw<V>(sums));
    if constexpr (Plain) {
      store<Acc, Whole>(p.output + p.rows[slot] * p.output_stride + unit, h, units);
      const V entering = rounded_to<Acc, IO>(h);
      store_raw(p.h_next + slot * p.h_stride + unit, entering);
      h_parts_.store(state_row(1 - buffer, d, slot), unit, units, entering);
    } else if (projected()) {
      store_raw(unprojected(d, slot) + unit, h);
    } else {
      emit<Whole>(d, t, buffer, slot, unit, units, h);
    }
  }

  // Whether the state that leaves step t is reset before this row's next step.
  bool cut_after(int d, int64_t t, int64_t row, int64_t length) const {
    return t != rec_.last_step(d, length) && rec_.cut_entering(d, rec_.step_after(d, t), row, length);
  }

  // Stores h_t to the output, to h_n at the row's last step, and to the next step's product unless the row is cut
  // there.
  template <bool Whole>
  FASTLSTM_INLINE void emit(int d, int64_t t, int buffer, int64_t slot, int64_t first, int64_t count, Vec<Acc> h) {
    const int64_t row = plan_.rows[slot], length = plan_.lengths[slot];
    store<Acc, Whole>(static_cast<IO*>(a_.output) + at(t, row, d, s_.P) + first, h, count);
    if (t == rec_.last_step(d, length))
      store<Acc, Whole>(static_cast<IO*>(a_.h_n) + (d * s_.N + row) * s_.P + first, h, count);
    const Vec<Acc> entering = cut_after(d, t, row, length) ? Vec<Acc>{} : rounded_to<Acc, IO>(h);
    store_raw(h_state(1 - buffer, d, slot) + first, entering);
    h_parts_.store(state_row(1 - buffer, d, slot), first, count, entering);
  }

  const ForwardArgs& a_;
  const Sizes& s_;
  const Plan& plan_;
  const Recurrence rec_;
  int64_t h_stride_, c_stride_;
  const GX* gates_x_[2];              // of each direction; step t is at t * stride
  Acc* bias_;                         // [D, 4, H padded], b_ih + b_hh
  Acc* h_;                            // [2, D, slots, P padded]
  typename Product::States h_parts_;  // h_ in the form of the product, if that is another one
  Acc* c_;                            // [D, slots, H padded]
  Acc* unprojected_;                  // [D, slots, H padded]
};

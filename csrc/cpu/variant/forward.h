// The variants' forward loop over steps. Included inside a namespace of an instruction set.

template <class Acc, class IO, class GX>
class VariantForward : VariantFrame<Acc, ForwardArgs> {
  using Frame = VariantFrame<Acc, ForwardArgs>;
  using Frame::a_, Frame::v_, Frame::s_, Frame::plan_, Frame::rec_, Frame::p_stride_, Frame::h_stride_;
  using Frame::L, Frame::at, Frame::row_of, Frame::normed, Frame::projected;
  using typename Frame::V;

 public:
  VariantForward(const ForwardArgs& args, const Variant& variant, const Threads& threads, const Plan& plan)
      : Frame(args, variant, threads, plan),
        hh_{{(s_.H + L - 1) / L, 1, plan_.U, s_.P, L, kPanel}},
        hr_{Frame::columns_of(projected() ? s_.P : 0, s_.H)} {
    Frame::lay_out_workspace([&](Layout& layout) { lay_out(layout); });
  }

  void run() {
    Frame::template pack<IO>(
        hh_, hr_,
        [&](const Panel& panel, const IO* weight, Acc* out) { pack_gates<Acc>(panel, weight, s_.H, s_.P, out); },
        [&](const Panel& panel, const IO* weight, Acc* out) { pack_projection<Acc>(panel, weight, s_.H, s_.P, out); });
    Frame::for_blocks([this](int d, int64_t begin, int64_t end, int u0, int u1, const auto& meet) {
      if (u0 == 0) start_rows(d, begin, end);
      meet();
      for (int64_t k = 0; k < s_.T; ++k) {
        const int64_t t = rec_.step_at(d, k), count = plan_.active(begin, end, t);
        for (int u = u0; u < u1; ++u) multiply(d, begin, count, u);
        if (u0 == 0) leave_out(d, t, begin + count, end);
        meet();
        Frame::for_rows(begin, count, u0, u1, [&](int64_t slot) { cell(d, t, slot); });
        meet();
        if (projected()) {
          for (int u = u0; u < u1; ++u) project(d, t, begin, count, u);
          meet();
        }
      }
    });
  }

 private:
  void lay_out(Layout& layout) {
    hh_.data = layout.array<Acc>(s_.D * hh_.panels.elements);
    hr_.data = layout.array<Acc>(s_.D * hr_.panels.elements);
    factor_ = layout.array<Acc>(s_.D * s_.N * p_stride_);
    h_ = layout.array<Acc>(s_.D * s_.N * p_stride_);
    c_ = layout.array<Acc>(s_.D * s_.N * h_stride_);
    products_ = layout.array<Acc>(s_.D * s_.N * 4 * h_stride_);
    hidden_ = layout.array<Acc>(s_.D * s_.N * h_stride_);
  }

  void start_rows(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = plan_.rows[slot], length = plan_.lengths[slot], state = d * s_.N + row;
      const IO* h0 = static_cast<const IO*>(a_.h0) + state * s_.P;
      const bool cut = length > 0 && rec_.cut_entering(d, rec_.first_step(d, length), row, length);
      for_row<Acc>(s_.P, [&](int64_t j, int64_t count, auto whole) {
        enter_h(d, slot, row, j, count, whole, cut ? V{} : load<Acc, whole.value>(h0 + j, count));
      });
      Acc* c = row_of(c_, d, slot, h_stride_);
      for (int64_t j = 0; j < s_.H; ++j) {
        c[j] = cut ? Acc{0} : convert_either<Acc, IO>(a_.c0, a_.wide_states, state * s_.H + j);
      }
      if (length == 0) {
        __builtin_memcpy(static_cast<IO*>(a_.h_n) + state * s_.P, h0, s_.P * sizeof(IO));
        const int64_t bytes = s_.H * (a_.wide_states ? sizeof(Acc) : sizeof(IO));
        __builtin_memcpy(static_cast<char*>(a_.c_n) + state * bytes, static_cast<const char*>(a_.c0) + state * bytes,
                         bytes);
      }
    }
  }

  // Stores h for the next step: as it is, and as the factor of the product.
  template <class Whole>
  FASTLSTM_INLINE void enter_h(int d, int64_t slot, int64_t row, int64_t j, int64_t count, Whole, V h) {
    store_raw(row_of(h_, d, slot, p_stride_) + j, h);
    if (v_.h_mask != nullptr) {
      const Acc* mask = static_cast<const Acc*>(v_.h_mask) + (d * s_.N + row) * s_.P + j;
      h = rounded_to<Acc, IO>(h * load<Acc, Whole::value>(mask, count));
    }
    store_raw(row_of(factor_, d, slot, p_stride_) + j, h);
  }

  // Writes zeros to every result of rows that do not have step t.
  void leave_out(int d, int64_t t, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = plan_.rows[slot];
      __builtin_memset(static_cast<IO*>(a_.output) + at(t, row, d, s_.P), 0, s_.P * sizeof(IO));
      if (a_.cells != nullptr) {
        __builtin_memset(static_cast<Acc*>(a_.cells) + at(t, row, d, s_.H), 0, s_.H * sizeof(Acc));
      }
      if (a_.gates != nullptr) {
        __builtin_memset(static_cast<IO*>(a_.gates) + at(t, row, d, 4 * s_.H), 0, 4 * s_.H * sizeof(IO));
      }
    }
  }

  void multiply(int d, int64_t begin, int64_t count, int u) {
    const auto put = [&](int64_t slot, const Panel& panel, const Acc* sums) {
      Acc* out = row_of(products_, d, slot, 4 * h_stride_) + panel.vector * L;
      for (int g = 0; g < 4; ++g) store_raw(out + g * h_stride_, load_raw<V>(sums + g * L));
    };
    Frame::template multiply<Frame::Product::kGates>(hh_, d, u, factor_, p_stride_, s_.P, begin, count, put);
  }

  // Gates and c of one row, and without a projection its h.
  void cell(int d, int64_t t, int64_t slot) {
    const int64_t row = plan_.rows[slot], length = plan_.lengths[slot], H = s_.H, state = d * s_.N + row;
    const bool last = t == rec_.last_step(d, length);
    const bool cut = !last && rec_.cut_entering(d, rec_.step_after(d, t), row, length);
    Acc *products = row_of(products_, d, slot, 4 * h_stride_), *hidden = row_of(hidden_, d, slot, h_stride_);
    const Moments<Acc> of_products = normed() ? moments(products, 4, h_stride_, H) : Moments<Acc>{};
    const GX* x =
        static_cast<const GX*>(a_.gates_x) + d * a_.gates_strides.d + t * a_.gates_strides.t + row * a_.gates_strides.n;
    const IO* gain = normed() ? static_cast<const IO*>(v_.norm_hh) + d * 4 * H : nullptr;
    const Zone<Acc, 1> zone(v_, d, row, t);
    Acc* c_state = row_of(c_, d, slot, h_stride_);
    for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      const auto preactivation = [&](int g) FASTLSTM_INLINE_LAMBDA {
        V product = load_raw<V>(products + g * h_stride_ + j);
        if (normed())
          product = load<Acc, kWhole>(gain + g * H + j, count) * ((product - of_products.mean) * of_products.scale);
        return load<Acc, kWhole>(x + g * H + j, count) + product;
      };
      Gates<V> gates{preactivation(0), preactivation(1), preactivation(2), preactivation(3)};
      const V c_in = load_raw<V>(c_state + j);
      const CellState<V> candidate = lstm_cell_forward<Math<Acc>>(gates, c_in);
      const V c = zone.mix(j, c_in, candidate.c);
      if (a_.gates != nullptr) {
        IO* tape = static_cast<IO*>(a_.gates) + at(t, row, d, 4 * H) + j;
        store<Acc, kWhole>(tape, gates.i, count);
        store<Acc, kWhole>(tape + H, gates.f, count);
        store<Acc, kWhole>(tape + 2 * H, gates.g, count);
        store<Acc, kWhole>(tape + 3 * H, gates.o, count);
      }
      if (a_.cells != nullptr) store<Acc, kWhole>(static_cast<Acc*>(a_.cells) + at(t, row, d, H) + j, c, count);
      if (last) store_either<Acc, kWhole, IO>(a_.c_n, a_.wide_states, state * H + j, c, count);
      store_raw(c_state + j, cut ? V{} : c);
      store_raw(hidden + j, normed() ? candidate.c : candidate.h);
      store_raw(products + j, gates.o);
    });
    if (normed()) show(d, hidden, products);
    if (!projected()) {
      const Zone<Acc, 0> zone_h(v_, d, row, t);
      for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
        emit(d, t, slot, j, count, whole, load_raw<V>(hidden + j), zone_h, last, cut);
      });
    }
  }

  // Replaces c~ by h~ = o tanh(LN(c~)).
  void show(int d, Acc* hidden, const Acc* o) {
    const int64_t H = s_.H;
    const Moments<Acc> of_cell = moments(hidden, 1, 0, H);
    const IO* gain = static_cast<const IO*>(v_.norm_c) + d * H;
    const IO* bias = v_.bias_c == nullptr ? nullptr : static_cast<const IO*>(v_.bias_c) + d * H;
    for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
      V shown = load<Acc, whole.value>(gain + j, count) * ((load_raw<V>(hidden + j) - of_cell.mean) * of_cell.scale);
      if (bias != nullptr) shown += load<Acc, whole.value>(bias + j, count);
      store_raw(hidden + j, load_raw<V>(o + j) * Math<Acc>::tanh(shown));
    });
  }

  // Makes h_t from y~ and stores it to the output, to h_n at the row's last step, and for the next step unless the row
  // is cut there.
  template <class Whole>
  FASTLSTM_INLINE void emit(int d, int64_t t, int64_t slot, int64_t j, int64_t count, Whole whole, V y,
                            const Zone<Acc, 0>& zone, bool last, bool cut) {
    const int64_t row = plan_.rows[slot];
    const V h = rounded_to<Acc, IO>(zone.mix(j, load_raw<V>(row_of(h_, d, slot, p_stride_) + j), y));
    store<Acc, Whole::value>(static_cast<IO*>(a_.output) + at(t, row, d, s_.P) + j, h, count);
    if (last) store<Acc, Whole::value>(static_cast<IO*>(a_.h_n) + (d * s_.N + row) * s_.P + j, h, count);
    enter_h(d, slot, row, j, count, whole, cut ? V{} : h);
  }

  void project(int d, int64_t t, int64_t begin, int64_t total, int u) {
    const auto emit_row = [&](int64_t slot, const Panel& panel, const Acc* sums) {
      const int64_t row = plan_.rows[slot], length = plan_.lengths[slot], column0 = panel.vector * L;
      const bool last = t == rec_.last_step(d, length);
      const bool cut = !last && rec_.cut_entering(d, rec_.step_after(d, t), row, length);
      const Zone<Acc, 0> zone(v_, d, row, t);
      for_row<Acc>(std::min<int64_t>(panel.vectors * L, s_.P - column0), [&](int64_t j, int64_t count, auto whole) {
        emit(d, t, slot, column0 + j, count, whole, load_raw<V>(sums + j), zone, last, cut);
      });
    };
    Frame::template multiply<Frame::Product::kProjection>(hr_, d, u, hidden_, h_stride_, s_.H, begin, total, emit_row);
  }

  PackedMatrix<Acc> hh_, hr_;
  Acc* factor_;    // [D, slots, P padded], what W_hh multiplies
  Acc* h_;         // [D, slots, P padded]
  Acc* c_;         // [D, slots, H padded]
  Acc* products_;  // [D, slots, 4, H padded]; the cell replaces the first by the output gate
  Acc* hidden_;    // [D, slots, H padded], h~
};

// The variants' backward loop over steps. Included inside a namespace of an instruction set.

template <class Acc, class IO, class GX>
class VariantBackward : VariantFrame<Acc, BackwardArgs> {
  using Frame = VariantFrame<Acc, BackwardArgs>;
  using Frame::a_, Frame::v_, Frame::s_, Frame::plan_, Frame::rec_, Frame::p_stride_, Frame::h_stride_;
  using Frame::L, Frame::at, Frame::row_of, Frame::normed, Frame::projected;
  using typename Frame::V;

 public:
  VariantBackward(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, const Threads& threads,
                  const Plan& plan)
      : Frame(args, variant, threads, plan),
        tape_(tape),
        hh_{Frame::columns_of(s_.P, 4 * s_.H)},
        hr_{Frame::columns_of(projected() ? s_.H : 0, s_.P)} {
    Frame::lay_out_workspace([&](Layout& layout) { lay_out(layout); });
  }

  void run() {
    Frame::template pack<IO>(
        hh_, hr_,
        [&](const Panel& panel, const IO* weight, Acc* out) { pack_columns<Acc>(panel, weight, 4 * s_.H, s_.P, out); },
        [&](const Panel& panel, const IO* weight, Acc* out) { pack_columns<Acc>(panel, weight, s_.P, s_.H, out); });
    Frame::for_blocks([this](int d, int64_t begin, int64_t end, int u0, int u1, const auto& meet) {
      if (u0 == 0) start_rows(d, begin, end);
      meet();
      for (int64_t k = s_.T - 1; k >= 0; --k) {
        const int64_t t = rec_.step_at(d, k), count = plan_.active(begin, end, t);
        for (int u = u0; u < u1; ++u) hidden_gradients(d, t, begin, count, u);
        meet();
        if (projected()) {
          for (int u = u0; u < u1; ++u) unproject(d, begin, count, u);
          meet();
        }
        Frame::for_rows(begin, count, u0, u1, [&](int64_t slot) { cell(d, t, slot); });
        if (u0 == 0) leave_out(d, t, begin + count, end);
        meet();
      }
      for (int u = u0; u < u1; ++u) initial_hidden_gradients(d, begin, end, u);
      if (u0 == 0) initial_cell_gradients(d, begin, end);
      meet();
    });
  }

 private:
  void lay_out(Layout& layout) {
    hh_.data = layout.array<Acc>(s_.D * hh_.panels.elements);
    hr_.data = layout.array<Acc>(s_.D * hr_.panels.elements);
    dproducts_ = layout.array<Acc>(s_.D * s_.N * 4 * s_.H);
    kept_ = layout.array<Acc>(s_.D * s_.N * p_stride_);
    dprojected_ = layout.array<Acc>(s_.D * s_.N * p_stride_);
    dhidden_ = layout.array<Acc>(s_.D * s_.N * h_stride_);
    dc_ = layout.array<Acc>(s_.D * s_.N * h_stride_);
    work_ = layout.array<Acc>(s_.D * s_.N * 4 * h_stride_);
  }

  const Acc* tape_row(const void* data, int64_t t, int64_t row, int d, int64_t width) const {
    return static_cast<const Acc*>(data) + at(t, row, d, width);
  }

  void start_rows(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      __builtin_memset(row_of(dproducts_, d, slot, 4 * s_.H), 0, 4 * s_.H * sizeof(Acc));
      __builtin_memset(row_of(kept_, d, slot, p_stride_), 0, p_stride_ * sizeof(Acc));
      Acc* dc = row_of(dc_, d, slot, h_stride_);
      __builtin_memset(dc, 0, h_stride_ * sizeof(Acc));
      if (a_.dc_n != nullptr) {
        const int64_t first = (d * s_.N + plan_.rows[slot]) * s_.H;
        for (int64_t j = 0; j < s_.H; ++j) dc[j] = convert_either<Acc, IO>(a_.dc_n, a_.wide_states, first + j);
      }
    }
  }

  void leave_out(int d, int64_t t, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = plan_.rows[slot];
      __builtin_memset(static_cast<GX*>(a_.dgates_x) + at(t, row, d, 4 * s_.H), 0, 4 * s_.H * sizeof(GX));
      // These rows' gradients are zeros, but a product of zero and NaN would be NaN.
      if (projected()) __builtin_memset(static_cast<Acc*>(a_.dhidden) + at(t, row, d, s_.P), 0, s_.P * sizeof(Acc));
      if (normed()) {
        __builtin_memset(static_cast<GX*>(tape_.dproducts) + at(t, row, d, 4 * s_.H), 0, 4 * s_.H * sizeof(GX));
        __builtin_memset(static_cast<Acc*>(tape_.dshown) + at(t, row, d, s_.H), 0, s_.H * sizeof(Acc));
      }
    }
  }

  // body(slot, column, columns, whole, dh) for each vector of dh, the gradient of the rows' h (or h0) from the later
  // step.
  template <class Body>
  FASTLSTM_INLINE void through_hh(int d, int64_t begin, int64_t total, int u, const Body& body) {
    const int64_t H4 = 4 * s_.H;
    const auto body_of_row = [&](int64_t slot, const Panel& panel, const Acc* sums) {
      const int64_t column0 = panel.vector * L, row = plan_.rows[slot];
      for_row<Acc>(std::min<int64_t>(panel.vectors * L, s_.P - column0), [&](int64_t j, int64_t count, auto whole) {
        const int64_t column = column0 + j;
        V dh = load_raw<V>(sums + j);
        if (v_.h_mask != nullptr) {
          const Acc* mask = static_cast<const Acc*>(v_.h_mask) + (d * s_.N + row) * s_.P + column;
          dh *= load<Acc, decltype(whole)::value>(mask, count);
        }
        body(slot, column, count, whole, dh + load_raw<V>(row_of(kept_, d, slot, p_stride_) + column));
      });
    };
    Frame::template multiply<Frame::Product::kGradients>(hh_, d, u, dproducts_, H4, H4, begin, total, body_of_row);
  }

  // The gradient of h_t, split by zoneout between y~_t and h_{t-1}.
  void hidden_gradients(int d, int64_t t, int64_t begin, int64_t total, int u) {
    through_hh(d, begin, total, u, [&](int64_t slot, int64_t column, int64_t count, auto whole, V dh) {
      constexpr bool kWhole = decltype(whole)::value;
      const int64_t row = plan_.rows[slot], length = plan_.lengths[slot];
      if (a_.doutput != nullptr) {
        const IO* doutput = static_cast<const IO*>(a_.doutput) + t * a_.doutput_stride_t + row * a_.doutput_stride_n;
        dh += load<Acc, kWhole>(doutput + d * s_.P + column, count);
      }
      if (a_.dh_n != nullptr && t == rec_.last_step(d, length)) {
        dh += load_either<Acc, kWhole, IO>(a_.dh_n, a_.wide_states, (d * s_.N + row) * s_.P + column, count);
      }
      V kept, dy;
      Zone<Acc, 0>(v_, d, row, t).share(column, dh, &kept, &dy);
      store_raw(row_of(kept_, d, slot, p_stride_) + column, rec_.cut_entering(d, t, row, length) ? V{} : kept);
      if (projected()) {
        store_raw(row_of(dprojected_, d, slot, p_stride_) + column, dy);
        store<Acc, kWhole>(static_cast<Acc*>(a_.dhidden) + at(t, row, d, s_.P) + column, dy, count);
      } else {
        store_raw(row_of(dhidden_, d, slot, h_stride_) + column, dy);
      }
    });
  }

  void unproject(int d, int64_t begin, int64_t total, int u) {
    const auto put = [&](int64_t slot, const Panel& panel, const Acc* sums) {
      Acc* out = row_of(dhidden_, d, slot, h_stride_) + panel.vector * L;
      for (int v = 0; v < panel.vectors; ++v) store_raw(out + v * L, load_raw<V>(sums + v * L));
    };
    Frame::template multiply<Frame::Product::kGradients>(hr_, d, u, dprojected_, p_stride_, s_.P, begin, total, put);
  }

  template <bool kWhole>
  FASTLSTM_INLINE V cell_entering(int d, int64_t t, int64_t slot, int64_t j, int64_t count, bool cut) const {
    const int64_t row = plan_.rows[slot];
    if (cut) return V{};
    if (t == rec_.first_step(d, plan_.lengths[slot])) {
      return load_either<Acc, kWhole, IO>(a_.c0, a_.wide_states, (d * s_.N + row) * s_.H + j, count);
    }
    return load<Acc, kWhole>(tape_row(a_.cells, rec_.step_before(d, t), row, d, s_.H) + j, count);
  }

  void cell(int d, int64_t t, int64_t slot) {
    const int64_t row = plan_.rows[slot], H = s_.H;
    const bool cut = rec_.cut_entering(d, t, row, plan_.lengths[slot]);
    Acc *dhidden = row_of(dhidden_, d, slot, h_stride_), *dc_state = row_of(dc_, d, slot, h_stride_);
    Acc *work = row_of(work_, d, slot, 4 * h_stride_), *dproducts = row_of(dproducts_, d, slot, 4 * H);
    const IO* gates_row = static_cast<const IO*>(a_.gates) + at(t, row, d, 4 * H);
    const Acc* candidates = tape_row(tape_.candidates, t, row, d, H);
    GX* dgates_x = static_cast<GX*>(a_.dgates_x) + at(t, row, d, 4 * H);

    // dhidden: the gradient of h~, which becomes that of the argument of tanh, or of LN(c~) in it. The output gate's
    // gradient is stored in work.
    const IO* gain = normed() ? static_cast<const IO*>(v_.norm_c) + d * H : nullptr;
    const IO* bias = v_.bias_c == nullptr ? nullptr : static_cast<const IO*>(v_.bias_c) + d * H;
    const Acc* hat = normed() ? tape_row(tape_.cell_hat, t, row, d, H) : nullptr;
    V sum = {}, sum_hat = {};
    for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      V shown;
      if (normed()) {
        shown = load<Acc, kWhole>(gain + j, count) * load<Acc, kWhole>(hat + j, count);
        if (bias != nullptr) shown += load<Acc, kWhole>(bias + j, count);
      } else {
        shown = load<Acc, kWhole>(candidates + j, count);
      }
      const V o = load<Acc, kWhole>(gates_row + 3 * H + j, count), tanh_c = Math<Acc>::tanh(shown);
      const V dh = load_raw<V>(dhidden + j);
      V dshown = dh * o * (1 - tanh_c * tanh_c);
      store_raw(work + 3 * h_stride_ + j, dh * tanh_c * o * (1 - o));
      if (normed()) {
        store<Acc, kWhole>(static_cast<Acc*>(tape_.dshown) + at(t, row, d, H) + j, dshown, count);
        dshown *= load<Acc, kWhole>(gain + j, count);
        if (!kWhole) dshown = first_lanes<Acc>(dshown, count);
        sum += dshown;
        sum_hat += dshown * load<Acc, kWhole>(hat + j, count);
      }
      store_raw(dhidden + j, dshown);
    });
    const Acc mean = sum_of<Acc>(sum) / static_cast<Acc>(H), mean_hat = sum_of<Acc>(sum_hat) / static_cast<Acc>(H);
    const Acc scale = normed() ? *tape_row(tape_.cell_scale, t, row, d, 1) : Acc{0};
    const Zone<Acc, 1> zone(v_, d, row, t);
    for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
      constexpr bool kWhole = decltype(whole)::value;
      V dc = load_raw<V>(dc_state + j), kept, dcandidate;
      if (a_.dcells != nullptr) dc += load<Acc, kWhole>(tape_row(a_.dcells, t, row, d, H) + j, count);
      zone.share(j, dc, &kept, &dcandidate);
      const V dshown = load_raw<V>(dhidden + j);
      if (normed()) {
        // This is the difference of stored products: contracted with a multiplication it would not be 0 where it
        // should.
        dcandidate += scale * (dshown - mean - load<Acc, kWhole>(hat + j, count) * mean_hat);
      } else {
        dcandidate += dshown;
      }
      const V i = load<Acc, kWhole>(gates_row + j, count), f = load<Acc, kWhole>(gates_row + H + j, count);
      const V g = load<Acc, kWhole>(gates_row + 2 * H + j, count);
      const V grads[4] = {dcandidate * g * i * (1 - i),
                          dcandidate * cell_entering<kWhole>(d, t, slot, j, count, cut) * f * (1 - f),
                          dcandidate * i * (1 - g * g), load_raw<V>(work + 3 * h_stride_ + j)};
      for (int gate = 0; gate < 4; ++gate) {
        store<Acc, kWhole>(dgates_x + gate * H + j, grads[gate], count);
        if (normed()) {
          store_raw(work + gate * h_stride_ + j, grads[gate]);
        } else {
          store<Acc, kWhole>(dproducts + gate * H + j, cut ? V{} : grads[gate], count);
        }
      }
      store_raw(dc_state + j, cut ? V{} : dcandidate * f + kept);
    });
    if (normed()) through_norm(d, t, row, work, dproducts, cut);
  }

  // The gradient of W_hh h from that of the gates, through layer normalisation.
  void through_norm(int d, int64_t t, int64_t row, Acc* dgates, Acc* dproducts, bool cut) {
    const int64_t H = s_.H;
    const IO* gain = static_cast<const IO*>(v_.norm_hh) + d * 4 * H;
    const Acc* hat = tape_row(tape_.product_hat, t, row, d, 4 * H);
    V sum = {}, sum_hat = {};
    for (int gate = 0; gate < 4; ++gate) {
      for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        V dhat = load<Acc, kWhole>(gain + gate * H + j, count) * load_raw<V>(dgates + gate * h_stride_ + j);
        if (!kWhole) dhat = first_lanes<Acc>(dhat, count);
        store_raw(dgates + gate * h_stride_ + j, dhat);
        sum += dhat;
        sum_hat += dhat * load<Acc, kWhole>(hat + gate * H + j, count);
      });
    }
    const Acc mean = sum_of<Acc>(sum) / static_cast<Acc>(4 * H),
              mean_hat = sum_of<Acc>(sum_hat) / static_cast<Acc>(4 * H);
    const Acc scale = *tape_row(tape_.product_scale, t, row, d, 1);
    GX* out = static_cast<GX*>(tape_.dproducts) + at(t, row, d, 4 * H);
    for (int gate = 0; gate < 4; ++gate) {
      for_row<Acc>(H, [&](int64_t j, int64_t count, auto whole) {
        constexpr bool kWhole = decltype(whole)::value;
        const V of_hat = load<Acc, kWhole>(hat + gate * H + j, count) * mean_hat;
        const V dproduct = scale * (load_raw<V>(dgates + gate * h_stride_ + j) - mean - of_hat);
        store<Acc, kWhole>(out + gate * H + j, dproduct, count);
        store<Acc, kWhole>(dproducts + gate * H + j, cut ? V{} : dproduct, count);
      });
    }
  }

  void initial_hidden_gradients(int d, int64_t begin, int64_t end, int u) {
    through_hh(d, begin, end - begin, u, [&](int64_t slot, int64_t column, int64_t count, auto whole, V dh) {
      constexpr bool kWhole = decltype(whole)::value;
      const int64_t place = (d * s_.N + plan_.rows[slot]) * s_.P + column;
      if (plan_.lengths[slot] == 0 && a_.dh_n != nullptr) {
        dh = load_either<Acc, kWhole, IO>(a_.dh_n, a_.wide_states, place, count);
      }
      store_either<Acc, kWhole, IO>(a_.dh0, a_.wide_states, place, dh, count);
    });
  }

  void initial_cell_gradients(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t first = (d * s_.N + plan_.rows[slot]) * s_.H;
      const Acc* dc = row_of(dc_, d, slot, h_stride_);
      for_row<Acc>(s_.H, [&](int64_t j, int64_t count, auto whole) {
        store_either<Acc, decltype(whole)::value, IO>(a_.dc0, a_.wide_states, first + j, load_raw<V>(dc + j), count);
      });
    }
  }

  const VariantTape& tape_;
  PackedMatrix<Acc> hh_, hr_;
  Acc* dproducts_;   // [D, slots, 4H], of the later step; zeros where it was cut
  Acc* kept_;        // [D, slots, P padded], what zoneout passes to the previous h
  Acc* dprojected_;  // [D, slots, P padded]
  Acc* dhidden_;     // [D, slots, H padded], gradient of h~, then of the argument of its tanh
  Acc* dc_;          // [D, slots, H padded]
  Acc* work_;        // [D, slots, 4, H padded]
};

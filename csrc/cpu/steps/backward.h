// The backward loop over steps. Included inside a namespace of an instruction set.
//
// Acc computes; IO is the tensors' type, GX that of dgates_x (IO or Acc); Product is how dgates are multiplied by W_hh.
// For each row, a step takes the later step's dgates_{t+1} W_hh, adds the output's gradient, and goes through the cell.
// With a projection a step has two halves with a barrier between them: the whole gradient of h_t (P wide), then its
// product with W_hr and the cell.

template <class Acc, class IO, class GX, class Product>
class Backward : BackwardTape<Acc, IO, GX> {
  using Tape = BackwardTape<Acc, IO, GX>;
  using Tape::a_, Tape::s_, Tape::plan_, Tape::rec_, Tape::first_, Tape::L, Tape::at;
  using typename Tape::Places;

 public:
  Backward(const BackwardArgs& args, const Threads& threads, const Plan& plan)
      : Tape(args, plan),
        threads_(threads),
        hh_panels_((s_.P + L - 1) / L, kPanel, plan_.U, Product::packed_depth(4 * s_.H), L, 1, !Product::kTiled),
        hr_panels_(args.weight_hr[0] == nullptr ? 0 : (s_.H + L - 1) / L, kPanel, plan_.U, s_.P, L, 1) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  void run() {
    pack();
    const Chunks& chunks = a_.chunks;
    const int64_t steps = chunks.visit == nullptr ? s_.T : chunks.steps;
    for (int64_t k0 = (s_.T - 1) / steps * steps; k0 >= 0; k0 -= steps) {
      const int64_t k1 = std::min(s_.T, k0 + steps);
      run_chunk(k0, k1);
      if (chunks.visit != nullptr) chunks.visit(chunks.context, k0, k1, plan_.U);
    }
  }

 private:
  bool projected() const { return a_.weight_hr[0] != nullptr; }

  void run_chunk(int64_t k0, int64_t k1) {
    for (int d = 0; d < s_.D; ++d) first_[d] = a_.chunks.visit == nullptr ? 0 : rec_.earliest(d, k0, k1);
    run_plan(plan_, threads_, [=](int d, int group, int u0, int u1, Barrier& barrier) {
      int64_t meetings = 0;
      const auto meet = [&] {
        if (plan_.U > 1) barrier.arrive_and_wait(u1 - u0, ++meetings * plan_.U);
      };
      rec_.for_blocks(group, [&](int64_t begin, int64_t end) {
        if (k1 == s_.T) {
          if (u0 == 0) start_rows(d, begin, end);
          meet();
        }
        for (int64_t k = k1 - 1; k >= k0; --k) {
          const int64_t t = rec_.step_at(d, k), active = begin + plan_.active(begin, end, t);
          for (int u = u0; u < u1; ++u) hidden_gradients(d, t, k & 1, begin, active, u);
          if (projected()) {
            meet();
            for (int u = u0; u < u1; ++u) unproject(d, t, k & 1, begin, active, u);
          }
          if (u0 == 0) leave_out(d, t, active, end);
          meet();
        }
        if (k0 == 0) {
          if (u0 == 0) gather_last(d, begin, end);
          meet();
          for (int u = u0; u < u1; ++u) initial_hidden_gradients(d, begin, end, u);
          if (u0 == 0) initial_cell_gradients(d, begin, end);
        }
      });
    });
  }

  void lay_out(Layout& layout) {
    c_stride_ = spread<Acc>(s_.H);
    p_stride_ = padded<Acc>(s_.P);
    packed_hh_ = layout.array<typename Product::Packed>(s_.D * hh_panels_.elements);
    packed_hr_ = layout.array<Acc>(s_.D * hr_panels_.elements);
    dgates_stride_ = spread<Acc>(4 * s_.H);
    dgates_ = layout.array<Acc>(2 * s_.D * s_.N * dgates_stride_);
    dgates_parts_.lay_out(layout, 2 * s_.D * s_.N, 4 * s_.H);
    dc_ = layout.array<Acc>(s_.D * s_.N * c_stride_);
    dprojected_ = layout.array<Acc>(projected() ? s_.D * s_.N * p_stride_ : 0);
  }

  int64_t state_row(int buffer, int d, int64_t slot) const { return (buffer * s_.D + d) * s_.N + slot; }
  Acc* dgates_state(int buffer, int d, int64_t slot) { return dgates_ + state_row(buffer, d, slot) * dgates_stride_; }
  Places places_of(int d, int64_t t, int buffer, int64_t end) {
    return this->places(d, t, dgates_state(buffer, d, 0), dgates_stride_, dc_state(d, 0), c_stride_, end);
  }
  Acc* dc_state(int d, int64_t slot) { return dc_ + (d * s_.N + slot) * c_stride_; }
  Acc* dprojected(int d, int64_t slot) { return dprojected_ + (d * s_.N + slot) * p_stride_; }
  static int buffer_of(int64_t k) { return k & 1; }

  void pack() {
    const int64_t hh = hh_panels_.panels.size(), hr = hr_panels_.panels.size();
    share_out(threads_, plan_.workers(), s_.D * (hh + hr), s_.D * 4 * s_.H * s_.P, [&](int64_t n) {
      const int64_t d = n / (hh + hr), k = n % (hh + hr);
      if (k < hh) {
        Product::pack_backward(hh_panels_.panels[k], static_cast<const IO*>(a_.weight_hh[d]), 4 * s_.H, s_.P,
                               packed_hh_ + d * hh_panels_.elements);
      } else {
        pack_columns<Acc, false>(hr_panels_.panels[k - hh], static_cast<const IO*>(a_.weight_hr[d]), s_.P, s_.H,
                                 packed_hr_ + d * hr_panels_.elements);
      }
    });
  }

  void start_rows(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      for (int b = 0; b < 2; ++b) {
        __builtin_memset(dgates_state(b, d, slot), 0, 4 * s_.H * sizeof(Acc));
        dgates_parts_.clear(state_row(b, d, slot));
      }
      Acc* dc = dc_state(d, slot);
      __builtin_memset(dc, 0, c_stride_ * sizeof(Acc));
      if (a_.dc_n != nullptr) {
        const int64_t first = (d * s_.N + plan_.rows[slot]) * s_.H;
        for (int64_t j = 0; j < s_.H; ++j) dc[j] = convert_either<Acc, IO>(a_.dc_n, a_.wide_states, first + j);
      }
    }
  }

  void leave_out(int d, int64_t t, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = plan_.rows[slot];
      __builtin_memset(this->template row_of<GX>(a_.dgates_x, a_.dgates_strides, d, t, row), 0, 4 * s_.H * sizeof(GX));
      // These rows' dgates are zeros, but a product of zero and NaN would be NaN.
      if (a_.dhidden != nullptr) {
        __builtin_memset(this->template row_of<Acc>(a_.dhidden, a_.dhidden_strides, d, t, row), 0, s_.P * sizeof(Acc));
      }
      if (a_.h_entering != nullptr) {
        __builtin_memset(this->template row_of<GX>(a_.h_entering, a_.h_entering_strides, d, t, row), 0,
                         s_.P * sizeof(GX));
      }
      if (a_.unprojected != nullptr) {
        __builtin_memset(this->template row_of<Acc>(a_.unprojected, a_.unprojected_strides, d, t, row), 0,
                         s_.H * sizeof(Acc));
      }
    }
  }

  // The product of the rows' dgates in `buffer` and a panel of W_hh.
  void multiply(typename Product::Engine& engine, int d, int buffer, int64_t slot, int rows, const Panel& panel,
                Ahead ahead, Acc* sums) {
    const typename Product::Packed* packed = packed_hh_ + d * hh_panels_.elements + panel.offset;
    if constexpr (Product::kTiled) {
      Product::multiply(engine, rows, panel.vectors, dgates_parts_, state_row(buffer, d, slot), packed, sums);
      // Doubtful sums are made again from the numbers themselves.
      for (int k = 0; k < rows * panel.vectors; ++k) {
        if (!Product::doubtful(load_raw<Vec<Acc>>(sums + k * L))) continue;
        const int64_t column = (panel.vector + k % panel.vectors) * L, columns = std::min<int64_t>(L, s_.P - column);
        const Acc* dgates = dgates_state(buffer, d, slot + k / panel.vectors);
        const IO* weight = static_cast<const IO*>(a_.weight_hh[d]) + column;
        Vec<Acc> sum = {};
        for (int64_t j = 0; j < 4 * s_.H; ++j) sum += dgates[j] * load_part<Acc>(weight + j * s_.P, columns);
        store_raw(sums + k * L, sum);
      }
    } else {
      product<Acc, typename Product::Packed>(rows, panel.vectors, dgates_state(buffer, d, slot), dgates_stride_, packed,
                                             4 * s_.H, sums, ahead);
    }
  }

  // dh_t = dgates_{t+1} W_hh + doutput_t, plus dh_n at a row's last step; passed on to the cell, or to dprojected.
  void hidden_gradients(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    alignas(64) Acc sums[Product::kRows * kPanel * L];
    typename Product::Engine engine;
    if (!Product::kTiled && plan_.U > 1)
      fetch_rows(dgates_state(1 - buffer, d, begin), dgates_stride_, end - begin, 4 * s_.H);
    const typename Product::Packed* packed = packed_hh_ + d * hh_panels_.elements;
    const int64_t share_bytes = hh_panels_.elements / plan_.U * static_cast<int64_t>(sizeof(*packed));
    const Places p = places_of(d, t, buffer, end);
    FetchNext<typename Product::Packed> fetch(share_bytes, Product::packed_depth(4 * s_.H) * kPanel * L, 4 * s_.H,
                                              end - begin);
    hh_panels_.for_share(u, buffer == 1, [&](const Panel& panel, const Panel* next) {
      fetch.begin(packed, next);
      for_row_blocks<Product::kRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        if (!projected()) this->prefetch_tape(p, slot, rows, panel);
        multiply(engine, d, 1 - buffer, slot, rows, panel, fetch.part(), sums);
        steps(p, d, t, buffer, slot, rows, panel, sums);
      });
    });
  }

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

  void unproject(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    alignas(64) Acc sums[kMaxRows * kPanel * L];
    const Acc* packed = packed_hr_ + d * hr_panels_.elements;
    const Places at_t = places_of(d, t, buffer, end);
    for (int64_t p = hr_panels_.share_begin[u]; p < hr_panels_.share_begin[u + 1]; ++p) {
      const Panel& panel = hr_panels_.panels[p];
      for_row_blocks<kMaxRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        product<Acc, Acc>(rows, panel.vectors, dprojected(d, slot), p_stride_, packed + panel.offset, s_.P, sums);
        for_vectors(rows, panel, s_.H, sums, [&](int r, int64_t unit, int64_t units, Vec<Acc> dh, auto whole) {
          cell<whole.value, false>(at_t, d, t, buffer, slot + r, unit, units, dh);
        });
      });
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

  // Copies every row's dgates of its first step to buffer 0, whichever buffer the loop left them in.
  void gather_last(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t length = plan_.lengths[slot];
      if (length == 0) continue;  // both buffers hold zeros
      const int64_t t = rec_.first_step(d, length);
      if (buffer_of(d == 0 ? t : s_.T - 1 - t) == 1) {
        __builtin_memcpy(dgates_state(0, d, slot), dgates_state(1, d, slot), 4 * s_.H * sizeof(Acc));
        dgates_parts_.copy(state_row(0, d, slot), state_row(1, d, slot));
      }
    }
  }

  void initial_hidden_gradients(int d, int64_t begin, int64_t end, int u) {
    alignas(64) Acc sums[Product::kRows * kPanel * L];
    typename Product::Engine engine;
    for (int64_t p = hh_panels_.share_begin[u]; p < hh_panels_.share_begin[u + 1]; ++p) {
      const Panel& panel = hh_panels_.panels[p];
      for_row_blocks<Product::kRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        multiply(engine, d, 0, slot, rows, panel, {}, sums);
        for_vectors(rows, panel, s_.P, sums, [&](int r, int64_t column, int64_t columns, Vec<Acc> dh, auto whole) {
          const int64_t place = (d * s_.N + plan_.rows[slot + r]) * s_.P + column;
          if (plan_.lengths[slot + r] == 0 && a_.dh_n != nullptr) {
            dh = load_either<Acc, whole.value, IO>(a_.dh_n, a_.wide_states, place, columns);
          }
          store_either<Acc, whole.value, IO>(a_.dh0, a_.wide_states, place, dh, columns);
        });
      });
    }
  }

  void initial_cell_gradients(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t first = (d * s_.N + plan_.rows[slot]) * s_.H;
      const Acc* dc = dc_state(d, slot);
      int64_t j = 0;
      const auto keep = [&](int64_t count, auto whole) {
        store_either<Acc, whole.value, IO>(a_.dc0, a_.wide_states, first + j, load_raw<Vec<Acc>>(dc + j), count);
      };
      for (; j + L <= s_.H; j += L) keep(L, std::true_type{});
      if (j < s_.H) keep(s_.H - j, std::false_type{});
    }
  }

  const Threads& threads_;
  const Panels hh_panels_, hr_panels_;
  int64_t dgates_stride_, c_stride_, p_stride_;
  typename Product::Packed* packed_hh_;
  Acc* packed_hr_;
  Acc* dgates_;                            // [2, D, slots, 4H]
  typename Product::States dgates_parts_;  // dgates_ in the form of the product, if that is another one
  Acc* dc_;                                // [D, slots, H padded]
  Acc* dprojected_;                        // [D, slots, P padded]
};

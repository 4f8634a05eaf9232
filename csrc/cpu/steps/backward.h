// The backward loop over steps. Included inside a namespace of an instruction set.
//
// The types are as in backward_cells.h. For each row, a step takes the later step's dgates_{t+1} W_hh, adds the output's
// gradient, and goes through the cell. With a projection a step has two halves with a barrier between them: the whole
// gradient of h_t (P wide), then its product with W_hr and the cell.

template <class Acc, class IO, class GX, class Product>
class Backward : BackwardCells<Acc, IO, GX, Product> {
  using Cells = BackwardCells<Acc, IO, GX, Product>;
  using Cells::a_, Cells::s_, Cells::plan_, Cells::rec_, Cells::first_, Cells::L, Cells::projected;
  using Cells::dc_, Cells::dc_state, Cells::c_stride_, Cells::dprojected_, Cells::dprojected, Cells::p_stride_;
  using Cells::dgates_, Cells::dgates_parts_, Cells::dgates_state, Cells::dgates_stride_, Cells::state_row;
  using Cells::for_vectors, Cells::places_of, Cells::steps;
  using typename Cells::Places;

 public:
  Backward(const BackwardArgs& args, const Threads& threads, const Plan& plan)
      : Cells(args, plan),
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

  static int buffer_of(int64_t k) { return k & 1; }

  void pack() {
    const int64_t hh = hh_panels_.panels.size(), hr = hr_panels_.panels.size();
    share_out(threads_, plan_.workers(), s_.D * (hh + hr), s_.D * 4 * s_.H * s_.P, [&](int64_t n) {
      const int64_t d = n / (hh + hr), k = n % (hh + hr);
      if (k < hh) {
        Product::pack_backward(hh_panels_.panels[k], static_cast<const IO*>(a_.weight_hh[d]), 4 * s_.H, s_.P,
                               packed_hh_ + d * hh_panels_.elements);
      } else {
        pack_columns<Acc>(hr_panels_.panels[k - hh], static_cast<const IO*>(a_.weight_hr[d]), s_.P, s_.H,
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
          this->template cell<whole.value, false>(at_t, d, t, buffer, slot + r, unit, units, dh);
        });
      });
    }
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
  typename Product::Packed* packed_hh_;
  Acc* packed_hr_;
};

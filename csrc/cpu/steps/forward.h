// The forward loop over steps. Included inside a namespace of an instruction set.
//
// W is the type of the weight matrices; the others are as in forward_cells.h.

template <class Acc, class IO, class GX, class W, class Product>
class Forward : ForwardCells<Acc, IO, GX, Product> {
  using Cells = ForwardCells<Acc, IO, GX, Product>;
  using Cells::a_, Cells::s_, Cells::plan_, Cells::rec_, Cells::L, Cells::projected, Cells::at, Cells::state_row;
  using Cells::c_, Cells::c_state, Cells::c_stride_, Cells::unprojected_, Cells::unprojected;
  using Cells::finish, Cells::places, Cells::prefetch_cells;
  using Cells::gates_x_, Cells::bias_, Cells::h_, Cells::h_parts_, Cells::h_state, Cells::h_stride_;
  using typename Cells::Batch, typename Cells::Places;

 public:
  Forward(const ForwardArgs& args, const Threads& threads, const Plan& plan)
      : Cells(args, plan),
        threads_(threads),
        gate_panels_((s_.H + L - 1) / L, 1, plan_.U, Product::packed_depth(s_.P), L, kPanel),
        out_panels_(args.weight_hr[0] == nullptr ? 0 : (s_.P + L - 1) / L, kPanel, plan_.U, s_.H, L, 1) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  void run() {
    pack();
    const Chunks& chunks = a_.chunks;
    const int64_t steps = chunks.visit == nullptr ? s_.T : chunks.steps;
    for (int64_t k0 = 0; k0 < s_.T; k0 += steps) {
      const int64_t k1 = std::min(s_.T, k0 + steps);
      if (chunks.visit != nullptr) chunks.visit(chunks.context, k0, k1, plan_.U);
      run_chunk(k0, k1);
    }
  }

 private:
  void run_chunk(int64_t k0, int64_t k1) {
    for (int d = 0; d < s_.D; ++d) {
      const int64_t first = a_.chunks.visit == nullptr ? 0 : rec_.earliest(d, k0, k1);
      gates_x_[d] = static_cast<const GX*>(a_.gates_x) + d * a_.gates_strides.d - first * a_.gates_strides.t;
    }
    run_plan(plan_, threads_, [=](int d, int group, int u0, int u1, Barrier& barrier) {
      int64_t meetings = 0;
      const auto meet = [&] {
        if (plan_.U > 1) barrier.arrive_and_wait(u1 - u0, ++meetings * plan_.U);
      };
      rec_.for_blocks(group, [&](int64_t begin, int64_t end) {
        if (k0 == 0) {
          if (u0 == 0) start_rows(d, begin, end);
          meet();
        }
        for (int64_t k = k0; k < k1; ++k) {
          const int64_t t = rec_.step_at(d, k), active = begin + plan_.active(begin, end, t);
          for (int u = u0; u < u1; ++u) step(d, t, k & 1, begin, active, u);
          if (u0 == 0) leave_out(d, t, active, end);
          meet();
          if (projected()) {
            for (int u = u0; u < u1; ++u) project(d, t, k & 1, begin, active, u);
            meet();
          }
        }
      });
    });
  }

  void lay_out(Layout& layout) {
    h_stride_ = spread<Acc>(s_.P);
    c_stride_ = spread<Acc>(s_.H);
    packed_hh_ = layout.array<typename Product::Packed>(s_.D * gate_panels_.elements);
    packed_hr_ = layout.array<Acc>(s_.D * out_panels_.elements);
    bias_ = layout.array<Acc>(s_.D * 4 * c_stride_);
    h_ = layout.array<Acc>(2 * s_.D * s_.N * h_stride_);
    h_parts_.lay_out(layout, 2 * s_.D * s_.N, s_.P);
    c_ = layout.array<Acc>(s_.D * s_.N * c_stride_);
    unprojected_ = layout.array<Acc>(projected() ? s_.D * s_.N * c_stride_ : 0);
  }

  void pack() {
    const int64_t gates = gate_panels_.panels.size(), outs = out_panels_.panels.size();
    share_out(threads_, plan_.workers(), s_.D * (gates + outs), s_.D * 4 * s_.H * s_.P, [&](int64_t n) {
      const int64_t d = n / (gates + outs), k = n % (gates + outs);
      if (k < gates) {
        Product::pack_forward(gate_panels_.panels[k], static_cast<const W*>(a_.weight_hh[d]), s_.H, s_.P,
                              packed_hh_ + d * gate_panels_.elements);
      } else {
        pack_projection<Acc>(out_panels_.panels[k - gates], static_cast<const W*>(a_.weight_hr[d]), s_.H, s_.P,
                             packed_hr_ + d * out_panels_.elements);
      }
    });
    for (int d = 0; d < s_.D; ++d) {
      const IO *ih = static_cast<const IO*>(a_.bias_ih[d]), *hh = static_cast<const IO*>(a_.bias_hh[d]);
      for (int64_t g = 0; g < 4; ++g) {
        for (int64_t j = 0; j < s_.H; ++j) {
          const int64_t k = g * s_.H + j;
          bias_[(d * 4 + g) * c_stride_ + j] =
              (ih == nullptr ? Acc{0} : convert<Acc>(ih[k])) + (hh == nullptr ? Acc{0} : convert<Acc>(hh[k]));
        }
      }
    }
  }

  // Writes the initial states of rows to both buffers, since a row of the reverse direction may start late.
  void start_rows(int d, int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = plan_.rows[slot], length = plan_.lengths[slot];
      const IO* h0 = static_cast<const IO*>(a_.h0) + (d * s_.N + row) * s_.P;
      const int64_t c_first = (d * s_.N + row) * s_.H;
      const bool cut = length > 0 && rec_.cut_entering(d, rec_.first_step(d, length), row, length);
      for (int64_t j = 0; j < s_.P; ++j) {
        h_state(0, d, slot)[j] = h_state(1, d, slot)[j] = cut ? Acc{0} : convert<Acc>(h0[j]);
      }
      for (int b = 0; b < 2; ++b) {
        h_parts_.clear(state_row(b, d, slot));
        for (int64_t j = 0; j < s_.P; j += L) {
          const int64_t count = std::min<int64_t>(L, s_.P - j);
          h_parts_.store(state_row(b, d, slot), j, count, load_part<Acc>(h_state(b, d, slot) + j, count));
        }
      }
      for (int64_t j = 0; j < s_.H; ++j) {
        c_state(d, slot)[j] = cut ? Acc{0} : convert_either<Acc, IO>(a_.c0, a_.wide_states, c_first + j);
      }
      if (length == 0) {
        __builtin_memcpy(static_cast<IO*>(a_.h_n) + (d * s_.N + row) * s_.P, h0, s_.P * sizeof(IO));
        const int64_t bytes = a_.wide_states ? sizeof(Acc) : sizeof(IO);
        __builtin_memcpy(static_cast<char*>(a_.c_n) + c_first * bytes,
                         static_cast<const char*>(a_.c0) + c_first * bytes, s_.H * bytes);
      }
    }
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

  void step(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    if constexpr (!Product::kTiled) {
      if (end - begin == 1) return step_of_one(d, t, buffer, begin, u);
    }
    Batch batch;
    const Places at_t = places(d, t, buffer, end);
    const typename Product::Packed* packed = packed_hh_ + d * gate_panels_.elements;
    typename Product::Engine engine;
    if (!Product::kTiled && plan_.U > 1) fetch_rows(h_state(buffer, d, begin), h_stride_, end - begin, s_.P);
    const int64_t share_bytes = gate_panels_.elements / plan_.U * static_cast<int64_t>(sizeof(*packed));
    // Cells ask for what they read where weights come from the third level; elsewhere asking costs more than it saves.
    const bool far = share_bytes > 2 * second_level_bytes();
    FetchNext<typename Product::Packed> fetch(share_bytes, Product::packed_depth(s_.P) * kPanel * L, s_.P, end - begin);
    const bool backwards = buffer == 1;
    constexpr int64_t kLineVectors = std::max<int64_t>(1, 64 / FASTLSTM_SIMD_BYTES);
    gate_panels_.for_share(u, backwards, [&](const Panel& panel, const Panel* next) {
      fetch.begin(packed, next);
      const int64_t unit = panel.vector * L;
      // Two vectors of 32 bytes share a line.
      const bool begins_line = far && (panel.vector % kLineVectors == (backwards ? kLineVectors - 1 : 0));
      for_row_blocks<Product::kRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        if (!batch.has_room(rows)) finish(at_t, d, t, buffer, batch);
        Acc* sums = batch.add(slot, rows, unit, s_.H - unit);
        if (begins_line) prefetch_cells(at_t, slot, rows, unit);
        if constexpr (Product::kTiled) {
          Product::multiply(engine, rows, kPanel, h_parts_, state_row(buffer, d, slot), packed + panel.offset, sums);
          multiply_again(d, buffer, slot, rows, unit, std::min<int64_t>(L, s_.H - unit), sums);
        } else {
          product<Acc, typename Product::Packed>(rows, kPanel, h_state(buffer, d, slot), h_stride_,
                                                 packed + panel.offset, s_.P, sums, fetch.part());
        }
      });
    });
    finish(at_t, d, t, buffer, batch);
  }

  // The same for one row, two panels at a time.
  void step_of_one(int d, int64_t t, int buffer, int64_t slot, int u) {
    Batch batch;
    const Places at_t = places(d, t, buffer, slot + 1);
    const typename Product::Packed* packed = packed_hh_ + d * gate_panels_.elements;
    const Acc* h = h_state(buffer, d, slot);
    if (plan_.U > 1) fetch_rows(h, h_stride_, 1, s_.P);
    gate_panels_.template for_share<2>(u, buffer == 1, [&](const Panel& panel, const Panel* second) {
      if (!batch.has_room(2)) finish(at_t, d, t, buffer, batch);
      const auto sums_of = [&](const Panel& of) { return batch.add(slot, 1, of.vector * L, s_.H - of.vector * L); };
      Acc* sums = sums_of(panel);
      if (second == nullptr) return product<Acc>(1, kPanel, h, h_stride_, packed + panel.offset, s_.P, sums);
      product_of_two(h, packed + panel.offset, packed + second->offset, s_.P, sums, sums_of(*second));
    });
    finish(at_t, d, t, buffer, batch);
  }

  // Makes doubtful sums again from the numbers themselves.
  void multiply_again(int d, int buffer, int64_t slot, int rows, int64_t unit, int64_t units, Acc* sums) {
    for (int k = 0; k < rows * kPanel; ++k) {
      if (!Product::doubtful(load_raw<Vec<Acc>>(sums + k * L))) continue;
      DotOperand<Acc> h;
      h.set(h_state(buffer, d, slot + k / kPanel), s_.P);
      const W* weights = static_cast<const W*>(a_.weight_hh[d]) + (k % kPanel * s_.H + unit) * s_.P;
      Vec<Acc> sum;
      dot_rows<Acc, W, 1, DotOperand<Acc>>(weights, &h, nullptr, &h, units, 0, &sum);
      store_raw(sums + k * L, sum);
    }
  }

  void project(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    alignas(64) Acc sums[kMaxRows * kPanel * L];
    const Acc* packed = packed_hr_ + d * out_panels_.elements;
    for (int64_t p = out_panels_.share_begin[u]; p < out_panels_.share_begin[u + 1]; ++p) {
      const Panel& panel = out_panels_.panels[p];
      for_row_blocks<kMaxRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        project_rows(rows, panel, unprojected(d, slot), c_stride_, packed + panel.offset, s_.H, sums);
        for (int r = 0; r < rows; ++r) {
          for (int v = 0; v < panel.vectors; ++v) {
            const int64_t column = (panel.vector + v) * L, columns = std::min<int64_t>(L, s_.P - column);
            const Vec<Acc> h = load_raw<Vec<Acc>>(sums + (r * panel.vectors + v) * L);
            if (columns == L) {
              this->template emit<true>(d, t, buffer, slot + r, column, columns, h);
            } else {
              this->template emit<false>(d, t, buffer, slot + r, column, columns, h);
            }
          }
        }
      });
    }
  }

  const Threads& threads_;
  const Panels gate_panels_, out_panels_;
  typename Product::Packed* packed_hh_;
  Acc* packed_hr_;
};

// The forward loop over steps. Included inside a namespace of an instruction set.
//
// Acc computes; IO is the tensors' type, GX that of gates_x (IO or Acc), W that of the weight matrices; Product is how
// h is multiplied by W_hh.

template <class Acc, class IO, class GX, class W, class Product>
class Forward {
 public:
  Forward(const ForwardArgs& args, const Threads& threads, const Plan& plan)
      : a_(args),
        s_(args.sizes),
        threads_(threads),
        plan_(plan),
        rec_{s_, plan_, args.reset_mask},
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
  static constexpr int L = lanes<Acc>;

  bool projected() const { return a_.weight_hr[0] != nullptr; }

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

  int64_t state_row(int buffer, int d, int64_t slot) const { return (buffer * s_.D + d) * s_.N + slot; }
  Acc* h_state(int buffer, int d, int64_t slot) { return h_ + state_row(buffer, d, slot) * h_stride_; }
  Acc* c_state(int d, int64_t slot) { return c_ + (d * s_.N + slot) * c_stride_; }
  Acc* unprojected(int d, int64_t slot) { return unprojected_ + (d * s_.N + slot) * c_stride_; }

  // Where (t, row, d) is in an array [T, N, D, width].
  int64_t at(int64_t t, int64_t row, int d, int64_t width) const { return ((t * s_.N + row) * s_.D + d) * width; }

  void pack() {
    const int64_t gates = gate_panels_.panels.size(), outs = out_panels_.panels.size();
    share_out(threads_, plan_.workers(), s_.D * (gates + outs), s_.D * 4 * s_.H * s_.P, [&](int64_t n) {
      const int64_t d = n / (gates + outs), k = n % (gates + outs);
      if (k < gates) {
        Product::pack_forward(gate_panels_.panels[k], static_cast<const W*>(a_.weight_hh[d]), s_.H, s_.P,
                              packed_hh_ + d * gate_panels_.elements);
      } else {
        pack_columns<Acc, true>(out_panels_.panels[k - gates], static_cast<const W*>(a_.weight_hr[d]), s_.H, s_.P,
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
    // Rows [slot, slot + rows) at the units from `unit` on; their sums begin at `sums`, 4 vectors of each row.
    struct Part {
      int64_t slot, unit;
      int rows;
      Acc* sums;
    };

    int parts = 0, vectors = 0;
    Part part[kVectors];
    alignas(64) Acc sums[kVectors * kPanel * L];

    bool has_room(int rows) const { return vectors + rows <= kVectors; }
    Acc* add(int64_t slot, int64_t unit, int rows) {
      Acc* place = sums + vectors * kPanel * L;
      part[parts++] = {slot, unit, rows, place};
      vectors += rows;
      return place;
    }
  };

  void step(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    Batch batch;
    const Places at_t = places(d, t, buffer, end);
    const typename Product::Packed* packed = packed_hh_ + d * gate_panels_.elements;
    typename Product::Engine engine;
    if (!Product::kTiled && plan_.U > 1) fetch_rows(h_state(buffer, d, begin), h_stride_, end - begin, s_.P);
    const int64_t share_bytes = gate_panels_.elements / plan_.U * static_cast<int64_t>(sizeof(*packed));
    const bool far = share_bytes > resident_bytes();
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
        Acc* sums = batch.add(slot, unit, rows);
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

  // Makes doubtful sums again from the numbers themselves.
  void multiply_again(int d, int buffer, int64_t slot, int rows, int64_t unit, int64_t units, Acc* sums) {
    for (int k = 0; k < rows * kPanel; ++k) {
      if (!Product::doubtful(load_raw<Vec<Acc>>(sums + k * L))) continue;
      DotOperand<Acc> h;
      h.set(h_state(buffer, d, slot + k / kPanel), s_.P);
      const W* weights = static_cast<const W*>(a_.weight_hh[d]) + (k % kPanel * s_.H + unit) * s_.P;
      store_raw(sums + k * L, dot_rows<Acc, W>(weights, h, nullptr, h, units));
    }
  }

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
    const Places p = places;
    // visit(part, row of the part, units, Whole, Plain). Plain: as in `Places`.
    const auto for_rows = [&](const auto& visit) FASTLSTM_INLINE_LAMBDA {
      for (int k = 0; k < batch.parts; ++k) {
        const typename Batch::Part part = batch.part[k];
        const int64_t units = std::min<int64_t>(L, p.H - part.unit);
        const auto rows = [&](auto whole, auto is_plain) FASTLSTM_INLINE_LAMBDA {
          for (int r = 0; r < part.rows; ++r) visit(part, r, units, whole, is_plain);
        };
        if (units == L && p.plain) {
          rows(std::true_type{}, std::true_type{});
        } else if (units == L) {
          rows(std::true_type{}, std::false_type{});
        } else {
          rows(std::false_type{}, std::false_type{});
        }
      }
    };
    for_rows([&](const auto& part, int r, int64_t units, auto whole, auto plain) FASTLSTM_INLINE_LAMBDA {
      cell<whole.value, plain.value>(p, d, t, part.slot + r, part.unit, units, part.sums + r * kPanel * L);
    });
    for_rows([&](const auto& part, int r, int64_t units, auto whole, auto plain) FASTLSTM_INLINE_LAMBDA {
      hidden<whole.value, plain.value>(p, d, t, buffer, part.slot + r, part.unit, units, part.sums + r * kPanel * L);
    });
    batch.parts = batch.vectors = 0;
  }

  template <bool Whole, bool Plain>
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

    if (p.gates != nullptr) {
      IO* tape = p.gates + row * 4 * p.cells_stride + unit;
      store<Acc, Whole>(tape, gates.i, units);
      store<Acc, Whole>(tape + H, gates.f, units);
      store<Acc, Whole>(tape + 2 * H, gates.g, units);
      store<Acc, Whole>(tape + 3 * H, gates.o, units);
    }
    if (p.cells != nullptr) store<Acc, Whole>(p.cells + row * p.cells_stride + unit, c, units);
    if constexpr (Plain) {
      store_raw(c_state_row, c);
    } else {
      const int64_t length = plan_.lengths[slot];
      const bool last = t == rec_.last_step(d, length);
      if (last) store_either<Acc, Whole, IO>(a_.c_n, a_.wide_states, (d * s_.N + row) * H + unit, c, units);
      store_raw(c_state_row, cut_after(d, t, row, length) ? V{} : c);
    }
    store_raw(sums, c);
    store_raw(sums + L, gates.o);
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

  void project(int d, int64_t t, int buffer, int64_t begin, int64_t end, int u) {
    alignas(64) Acc sums[kMaxRows * kPanel * L];
    const Acc* packed = packed_hr_ + d * out_panels_.elements;
    for (int64_t p = out_panels_.share_begin[u]; p < out_panels_.share_begin[u + 1]; ++p) {
      const Panel& panel = out_panels_.panels[p];
      for_row_blocks<kMaxRows>(end - begin, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        product<Acc, Acc>(rows, panel.vectors, unprojected(d, slot), c_stride_, packed + panel.offset, s_.H, sums);
        for (int r = 0; r < rows; ++r) {
          for (int v = 0; v < panel.vectors; ++v) {
            const int64_t column = (panel.vector + v) * L, columns = std::min<int64_t>(L, s_.P - column);
            const Vec<Acc> h = load_raw<Vec<Acc>>(sums + (r * panel.vectors + v) * L);
            if (columns == L) {
              emit<true>(d, t, buffer, slot + r, column, columns, h);
            } else {
              emit<false>(d, t, buffer, slot + r, column, columns, h);
            }
          }
        }
      });
    }
  }

  const ForwardArgs& a_;
  const Sizes& s_;
  const Threads& threads_;
  const Plan& plan_;
  const Recurrence rec_;
  const Panels gate_panels_, out_panels_;
  int64_t h_stride_, c_stride_;
  typename Product::Packed* packed_hh_;
  Acc* packed_hr_;
  const GX* gates_x_[2];              // of each direction; step t is at t * stride
  Acc* bias_;                         // [D, 4, H padded], b_ih + b_hh
  Acc* h_;                            // [2, D, slots, P padded]
  typename Product::States h_parts_;  // h_ in the form of the product, if that is another one
  Acc* c_;                            // [D, slots, H padded]
  Acc* unprojected_;                  // [D, slots, H padded]
};

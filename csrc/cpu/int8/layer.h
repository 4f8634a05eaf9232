// A layer with 8-bit weights, all directions and steps. Included inside a namespace of an instruction set, after
// quantise.h and the classes that multiply.
//
// Each worker goes by itself through the steps of its rows with its blocks of units: it quantises the rows of x of a
// chunk of steps, makes their gates [rows of the chunk][blocks][4][16], then takes the steps. Where several workers
// share the units of a row, they meet after each step, and each quantises the whole of h for itself: it has to read
// the others' units anyway. h is read where it was stored, in the output; c lives in c_n.

template <class Dot>
class Int8Layer {
 public:
  Int8Layer(const Int8Args& args, const Threads& threads)
      : a_(args),
        s_(args.sizes),
        threads_(threads),
        plan_(make_plan(s_, args.lengths, 4 * s_.H * s_.P, threads.count)),
        rec_{s_, plan_, args.reset_mask},
        blocks_((s_.H + kInt8Units - 1) / kInt8Units),
        out_blocks_(projected() ? (s_.P + kInt8Units - 1) / kInt8Units : 0) {
    rows_ = 1;
    for (int r = 0; r < plan_.R; ++r) {
      rec_.for_blocks(r, [&](int64_t begin, int64_t end) { rows_ = std::max(rows_, end - begin); });
    }
    // Gates of a chunk are to be in the near cache still when its steps are taken; W_ih is read once for it.
    constexpr int64_t kLeastRows = 64;
    const int64_t row_bytes = blocks_ * kBlock * static_cast<int64_t>(sizeof(float)) / plan_.U;
    const int64_t rows = std::max(kLeastRows, second_level_bytes() / 2 / std::max<int64_t>(row_bytes, 1));
    steps_ = std::clamp<int64_t>(rows / rows_, 1, std::max<int64_t>(s_.T, 1));
    x_stride_ = Dot::kPlanes * padded(args.I);
    h_stride_ = Dot::kPlanes * padded(s_.P);
    unprojected_stride_ = padded(s_.H);
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  void run() {
    run_plan(plan_, threads_, [this](int d, int group, int u0, int u1, Barrier& barrier) {
      Worker(*this, d, group, u0, u1, barrier).run();
    });
  }

 private:
  using Activation = typename Dot::Activation;
  using Sum = typename Dot::Sum;
  using V = Vec<float>;
  static constexpr int L = lanes<float>;
  static constexpr int64_t kBlock = 4 * kInt8Units;                             // gates of a row's block
  static constexpr int64_t kLeastUnits = std::max<int64_t>(L, kInt8Units / 2);  // that a block is taken as

  // Whole vectors of tiles, whose 64 numbers are the most that a product takes at once.
  static constexpr int64_t padded(int64_t n) { return (n + 63) / 64 * 64; }

  bool projected() const { return a_.weights[0].hr != nullptr; }

  void lay_out(Layout& layout) {
    const int64_t workers = plan_.workers(), groups = plan_.D * plan_.R;
    const int64_t h_stride = std::max(h_stride_, projected() ? Dot::kPlanes * unprojected_stride_ : 0);
    x_ = layout.array<Activation>(workers * steps_ * rows_ * x_stride_);
    h_ = layout.array<Activation>(workers * rows_ * h_stride);
    x_rows_ = layout.array<ActivationRow>(workers * steps_ * rows_);
    h_rows_ = layout.array<ActivationRow>(workers * rows_);
    cut_ = layout.array<uint8_t>(workers * rows_);
    starts_ = layout.array<int64_t>(workers * steps_);
    gates_ = layout.array<float>(groups * steps_ * rows_ * blocks_ * kBlock);
    unprojected_ = layout.array<float>(projected() ? groups * rows_ * unprojected_stride_ : 0);
    h_space_ = rows_ * h_stride;
  }

  // A vector of sums as what they stand for.
  static FASTLSTM_INLINE V scaled(float activation_scale, V weight_scale, const Sum* sums) {
    if constexpr (Dot::kQuantised) {
      return (splat(activation_scale) * weight_scale) * __builtin_convertvector(load_raw<IntVec>(sums), V);
    } else {
      return weight_scale * load_raw<V>(sums);
    }
  }

  // One worker's blocks [b0, b1) of one direction and group.
  class Worker {
   public:
    Worker(Int8Layer& layer, int d, int group, int u0, int u1, Barrier& barrier)
        : l_(layer),
          a_(layer.a_),
          s_(layer.s_),
          w_(layer.a_.weights[d]),
          d_(d),
          group_(group),
          shares_(u1 - u0),
          U_(layer.plan_.U),
          b0_(layer.blocks_ * u0 / U_),
          b1_(layer.blocks_ * u1 / U_),
          p0_(layer.out_blocks_ * u0 / U_),
          p1_(layer.out_blocks_ * u1 / U_),
          barrier_(barrier) {
      const int64_t of_group = d * layer.plan_.R + group, worker = of_group * U_ + u0;
      const int64_t chunk = layer.steps_ * layer.rows_;
      x_ = layer.x_ + worker * chunk * layer.x_stride_;
      h_ = layer.h_ + worker * layer.h_space_;
      x_rows_ = layer.x_rows_ + worker * chunk;
      h_rows_ = layer.h_rows_ + worker * layer.rows_;
      cut_ = layer.cut_ + worker * layer.rows_;
      starts_ = layer.starts_ + worker * layer.steps_;
      gates_ = layer.gates_ + chunk * kBlock * (of_group * layer.blocks_ + b0_);
      unprojected_ = layer.unprojected_ + of_group * layer.rows_ * layer.unprojected_stride_;
    }

    void run() {
      l_.rec_.for_blocks(group_, [&](int64_t begin, int64_t end) {
        begin_ = begin;
        end_ = end;
        start_cells();
        for (int64_t k0 = 0; k0 < s_.T; k0 += l_.steps_) {
          const int64_t k1 = std::min(s_.T, k0 + l_.steps_);
          make_gates(k0, k1);
          for (int64_t k = k0; k < k1; ++k) step(k, starts_[k - k0]);
        }
        if (leads()) finish_rows();
      });
    }

   private:
    bool leads() const { return b0_ == 0; }
    int64_t row_of(int64_t slot) const { return l_.plan_.rows[slot]; }
    int64_t length_of(int64_t slot) const { return l_.plan_.lengths[slot]; }
    // The place of (t, row) of this direction in an array [T, N, D, width].
    int64_t at(int64_t t, int64_t row, int64_t width) const { return ((t * s_.N + row) * s_.D + d_) * width; }

    void meet() {
      if (U_ > 1) barrier_.arrive_and_wait(shares_, ++meetings_ * U_);
    }

    void start_cells() {
      const int64_t unit = b0_ * kInt8Units, units = std::min(b1_ * kInt8Units, s_.H) - unit;
      if (units <= 0) return;
      for (int64_t slot = begin_; slot < end_; ++slot) {
        const int64_t place = (d_ * s_.N + row_of(slot)) * s_.H + unit;
        if (a_.c0 == nullptr) {
          __builtin_memset(a_.c_n + place, 0, units * sizeof(float));
        } else {
          __builtin_memcpy(a_.c_n + place, a_.c0 + place, units * sizeof(float));
        }
      }
    }

    void finish_rows() {
      for (int64_t slot = begin_; slot < end_; ++slot) {
        const int64_t row = row_of(slot), length = length_of(slot), place = (d_ * s_.N + row) * s_.P;
        const float* h = length > 0         ? a_.output + at(l_.rec_.last_step(d_, length), row, s_.P)
                         : a_.h0 == nullptr ? nullptr
                                            : a_.h0 + place;
        if (h == nullptr) {
          __builtin_memset(a_.h_n + place, 0, s_.P * sizeof(float));
        } else {
          __builtin_memcpy(a_.h_n + place, h, s_.P * sizeof(float));
        }
      }
    }

    // What x gives the gates of the steps [k0, k1), biases added; rows that have the step, in slots' order.
    void make_gates(int64_t k0, int64_t k1) {
      int64_t rows = 0;
      for (int64_t k = k0; k < k1; ++k) {
        const int64_t t = l_.rec_.step_at(d_, k), active = l_.plan_.active(begin_, end_, t);
        starts_[k - k0] = rows;
        for (int64_t slot = begin_; slot < begin_ + active; ++slot, ++rows) {
          const float* x = a_.x + t * a_.x_stride_t + row_of(slot) * a_.x_stride_n;
          x_rows_[rows] = Dot::take_row(x, a_.I, x_ + rows * l_.x_stride_, l_.x_stride_);
        }
      }
      const int64_t depth = (a_.I + kInt8Depth - 1) / kInt8Depth;
      for (int64_t b = b0_; b < b1_; ++b) {
        const int8_t* weights = w_.ih + b * depth * kBlock * kInt8Depth;
        const BlockOfInput block = block_of_input(b);
        for (int64_t first = 0; first < rows; first += Dot::kRows) {
          const int count = static_cast<int>(std::min<int64_t>(Dot::kRows, rows - first));
          alignas(64) Sum sums[Dot::kRows * kBlock];
          gate_sums(b, count, x_ + first * l_.x_stride_, l_.x_stride_, x_rows_ + first, weights, depth, sums);
          // Of half a block, the other sums may not be there.
          if (s_.H - b * kInt8Units <= kLeastUnits) {
            store_gates<kLeastUnits>(block, x_rows_ + first, count, sums, gates_of(b, first));
          } else {
            store_gates<kInt8Units>(block, x_rows_ + first, count, sums, gates_of(b, first));
          }
        }
      }
    }

    // Of a block's gates; of the last one no more than is needed.
    FASTLSTM_INLINE void gate_sums(int64_t b, int rows, const Activation* a, int64_t stride, const ActivationRow* of,
                                   const int8_t* weights, int64_t depth, Sum* sums) {
      if constexpr (Dot::kHalves) {
        if (s_.H - b * kInt8Units <= kInt8Units / 2) {
          return Dot::half_sums(engine_, rows, a, stride, of, weights, depth, sums);
        }
      }
      Dot::template sums<4>(engine_, rows, a, stride, of, weights, depth, sums);
    }

    // unit, units of vector v of a block; units may be none.
    template <bool Whole>
    FASTLSTM_INLINE int64_t units_from(int64_t unit) const {
      return Whole ? L : std::clamp<int64_t>(s_.H - unit, 0, L);
    }

    float* gates_of(int64_t b, int64_t row) const { return gates_ + (row * (b1_ - b0_) + b - b0_) * kBlock; }

    // What a block's sums from x are multiples of, and what is added: zeros behind the last unit.
    struct BlockOfInput {
      alignas(64) float scale[kBlock], bias[kBlock];
    };

    BlockOfInput block_of_input(int64_t b) const {
      BlockOfInput block{};
      const int64_t unit = b * kInt8Units, bytes = std::min(kInt8Units, s_.H - unit) * sizeof(float);
      for (int64_t g = 0; g < 4; ++g) {
        __builtin_memcpy(block.scale + g * kInt8Units, w_.scale_ih + g * s_.H + unit, bytes);
        if (w_.bias != nullptr) __builtin_memcpy(block.bias + g * kInt8Units, w_.bias + g * s_.H + unit, bytes);
      }
      return block;
    }

    // Units: whole vectors of them, the first ones of each gate.
    template <int64_t Units>
    void store_gates(const BlockOfInput& block, const ActivationRow* of, int rows, const Sum* sums, float* to) {
      const int64_t stride = (b1_ - b0_) * kBlock;
      for (int r = 0; r < rows; ++r, to += stride, sums += kBlock) {
        const float scale = of[r].scale;
#pragma GCC unroll 4
        for (int64_t g = 0; g < kBlock; g += kInt8Units) {
#pragma GCC unroll 4
          for (int64_t j = g; j < g + Units; j += L) {
            store_raw(to + j, scaled(scale, load_raw<V>(block.scale + j), sums + j) + load_raw<V>(block.bias + j));
          }
        }
      }
    }

    // h as it enters step t, quantised.
    void enter(int64_t t, int64_t active) {
      for (int64_t k = 0; k < active; ++k) {
        const int64_t slot = begin_ + k, row = row_of(slot), length = length_of(slot);
        cut_[k] = l_.rec_.cut_entering(d_, t, row, length);
        const float* h = t != l_.rec_.first_step(d_, length) ? a_.output + at(l_.rec_.step_before(d_, t), row, s_.P)
                         : a_.h0 == nullptr                  ? nullptr
                                                             : a_.h0 + (d_ * s_.N + row) * s_.P;
        Activation* to = h_ + k * l_.h_stride_;
        if (h == nullptr || cut_[k]) {
          __builtin_memset(to, 0, l_.h_stride_ * sizeof(Activation));
          h_rows_[k] = {0.f, 0};
        } else {
          h_rows_[k] = Dot::take_row(h, s_.P, to, l_.h_stride_);
        }
      }
    }

    void step(int64_t k, int64_t gates_row) {
      const int64_t t = l_.rec_.step_at(d_, k), active = l_.plan_.active(begin_, end_, t);
      enter(t, active);
      const int64_t depth = (s_.P + kInt8Depth - 1) / kInt8Depth;
      // Steps take turns at going forwards and backwards: where the weights are more than the near cache holds, a step
      // begins with those that the last one ended with.
      for (int64_t n = b0_; n < b1_; ++n) {
        const int64_t b = k & 1 ? b0_ + b1_ - 1 - n : n;
        const int8_t* weights = w_.hh + b * depth * kBlock * kInt8Depth;
        for (int64_t first = 0; first < active; first += Dot::kRows) {
          const int rows = static_cast<int>(std::min<int64_t>(Dot::kRows, active - first));
          alignas(64) Sum sums[Dot::kRows * kBlock];
          gate_sums(b, rows, h_ + first * l_.h_stride_, l_.h_stride_, h_rows_ + first, weights, depth, sums);
          if ((b + 1) * kInt8Units <= s_.H) {
            cells<true>(t, b, gates_row, first, rows, sums);
          } else {
            cells<false>(t, b, gates_row, first, rows, sums);
          }
        }
      }
      if (leads()) leave_out(t, begin_ + active);
      meet();
      if (l_.projected()) {
        project(t, active);
        meet();
      }
    }

    // The cells of a block of rows in two rounds, c of all and then h of all, so that activations do not wait for each
    // other.
    template <bool Whole>
    void cells(int64_t t, int64_t b, int64_t gates_row, int64_t first, int rows, const Sum* sums) {
      alignas(64) float c_new[Dot::kRows * kInt8Units], o_new[Dot::kRows * kInt8Units];
      for (int r = 0; r < rows; ++r) {
        const int64_t row = row_of(begin_ + first + r);
        const float* x = gates_of(b, gates_row + first + r);
        const float scale = h_rows_[first + r].scale;
        for (int64_t j = 0; j < kInt8Units; j += L) {
          const int64_t unit = b * kInt8Units + j, units = units_from<Whole>(unit);
          if (units == 0) break;
          const auto preactivation = [&](int g) FASTLSTM_INLINE_LAMBDA {
            const V weight_scale = load<float, Whole>(w_.scale_hh + g * s_.H + unit, units);
            return load_raw<V>(x + g * kInt8Units + j) +
                   scaled(scale, weight_scale, sums + r * kBlock + g * kInt8Units + j);
          };
          Gates<V> gates{preactivation(0), preactivation(1), preactivation(2), preactivation(3)};
          float* state = a_.c_n + (d_ * s_.N + row) * s_.H + unit;
          const V c_in = cut_[first + r] ? V{} : load<float, Whole>(state, units);
          const V c = lstm_cell_state<Math<float>>(gates, c_in);
          store<float, Whole>(state, c, units);
          if (a_.cells != nullptr) store<float, Whole>(a_.cells + at(t, row, s_.H) + unit, c, units);
          store_raw(c_new + r * kInt8Units + j, c);
          store_raw(o_new + r * kInt8Units + j, gates.o);
        }
      }
      for (int r = 0; r < rows; ++r) {
        float* to = l_.projected() ? unprojected_ + (first + r) * l_.unprojected_stride_
                                   : a_.output + at(t, row_of(begin_ + first + r), s_.P);
        for (int64_t j = 0; j < kInt8Units; j += L) {
          const int64_t unit = b * kInt8Units + j, units = units_from<Whole>(unit);
          if (units == 0) break;
          const V h = lstm_cell_hidden<Math<float>>(load_raw<V>(o_new + r * kInt8Units + j),
                                                    load_raw<V>(c_new + r * kInt8Units + j));
          store<float, Whole>(to + unit, h, units);
        }
      }
    }

    // Rows that do not have step t: zeros in all that is returned for it.
    void leave_out(int64_t t, int64_t begin) {
      for (int64_t slot = begin; slot < end_; ++slot) {
        const int64_t row = row_of(slot);
        __builtin_memset(a_.output + at(t, row, s_.P), 0, s_.P * sizeof(float));
        if (a_.cells != nullptr) __builtin_memset(a_.cells + at(t, row, s_.H), 0, s_.H * sizeof(float));
      }
    }

    // h = W_hr (o tanh(c)), whose rows take the place of h's.
    void project(int64_t t, int64_t active) {
      const int64_t width = l_.unprojected_stride_, stride = Dot::kPlanes * width;
      const int64_t depth = (s_.H + kInt8Depth - 1) / kInt8Depth;
      for (int64_t k = 0; k < active; ++k)
        h_rows_[k] = Dot::take_row(unprojected_ + k * width, s_.H, h_ + k * stride, stride);
      for (int64_t p = p0_; p < p1_; ++p) {
        const int8_t* weights = w_.hr + p * depth * kInt8Units * kInt8Depth;
        for (int64_t first = 0; first < active; first += Dot::kRows) {
          const int rows = static_cast<int>(std::min<int64_t>(Dot::kRows, active - first));
          alignas(64) Sum sums[Dot::kRows * kInt8Units];
          Dot::template sums<1>(engine_, rows, h_ + first * stride, stride, h_rows_ + first, weights, depth, sums);
          for (int r = 0; r < rows; ++r) {
            float* out = a_.output + at(t, row_of(begin_ + first + r), s_.P);
            for (int64_t j = 0; j < kInt8Units; j += L) {
              const int64_t column = p * kInt8Units + j, columns = std::clamp<int64_t>(s_.P - column, 0, L);
              if (columns == 0) break;
              const V scale = load_part<float>(w_.scale_hr + column, columns);
              store_part<float>(out + column, scaled(h_rows_[first + r].scale, scale, sums + r * kInt8Units + j),
                                columns);
            }
          }
        }
      }
    }

    Int8Layer& l_;
    const Int8Args& a_;
    const Sizes& s_;
    const Int8Weights& w_;
    const int d_, group_, shares_, U_;
    const int64_t b0_, b1_, p0_, p1_;
    Barrier& barrier_;
    int64_t meetings_ = 0, begin_ = 0, end_ = 0;
    Activation *x_, *h_;
    ActivationRow *x_rows_, *h_rows_;
    uint8_t* cut_;
    int64_t* starts_;
    float *gates_, *unprojected_;
    typename Dot::Engine engine_;
  };

  const Int8Args& a_;
  const Sizes& s_;
  const Threads& threads_;
  const Plan plan_;
  const Recurrence rec_;
  const int64_t blocks_, out_blocks_;
  int64_t rows_, steps_;  // at most, of a block of rows and of a chunk
  int64_t x_stride_, h_stride_, unprojected_stride_, h_space_;
  Activation *x_, *h_;  // of each worker: [steps * rows, stride], [rows, stride]
  ActivationRow *x_rows_, *h_rows_;
  uint8_t* cut_;        // [rows] of each worker: whether a row enters the step with zeros
  int64_t* starts_;     // [steps] of each worker: where the rows of a step begin among a chunk's
  float* gates_;        // of each group: [blocks of a worker] for each row of a chunk, the workers' one after the other
  float* unprojected_;  // of each group: [rows, stride], o * tanh(c)
};

template <class Dot>
void int8_layer(const Int8Args& args, const Threads& threads) {
  if (args.weight_only) {
    Int8Layer<FloatDot>(args, threads).run();
  } else {
    Int8Layer<Dot>(args, threads).run();
  }
}

// What the variants' loops over steps share. Included inside a namespace of an instruction set.
//
// Layer normalisation needs whole rows. So a step has phases with barriers between them: products, which the workers of
// a group share by panels of units, and cells, which they share by rows.

// A matrix for each direction, packed for products.
template <class Acc>
struct PackedMatrix {
  const Panels panels;
  Acc* data = nullptr;

  Acc* of(int64_t d) const { return data + d * panels.elements; }
};

template <class Acc, class Args>
class VariantFrame {
 protected:
  using V = Vec<Acc>;
  static constexpr int L = lanes<Acc>;

  VariantFrame(const Args& args, const Variant& variant, const Threads& threads, const Plan& plan)
      : a_(args),
        v_(variant),
        s_(args.sizes),
        threads_(threads),
        plan_(plan),
        rec_{s_, plan_, args.reset_mask, variant},
        p_stride_(padded<Acc>(s_.P)),
        h_stride_(padded<Acc>(s_.H)) {}

  bool projected() const { return a_.weight_hr[0] != nullptr; }
  bool normed() const { return v_.norm_hh != nullptr; }

  // A slot's row in an array [D, slots, width].
  Acc* row_of(Acc* data, int d, int64_t slot, int64_t width) const { return data + (d * s_.N + slot) * width; }
  // Where (t, row, d) is in an array [T, N, D, width].
  int64_t at(int64_t t, int64_t row, int d, int64_t width) const { return ((t * s_.N + row) * s_.D + d) * width; }

  // Panels of a matrix with `columns` columns of `depth` numbers.
  Panels columns_of(int64_t columns, int64_t depth) const {
    return {(columns + L - 1) / L, kPanel, plan_.U, depth, L, 1};
  }

  // Takes the workspace that lay_out(Layout&) describes.
  template <class LayOut>
  static void lay_out_workspace(const LayOut& lay_out) {
    Layout size(nullptr);
    lay_out(size);
    Layout layout(Workspace::take(size.used()));
    lay_out(layout);
  }

  // pack_hh(panel, weights of a direction, packed) for every panel of W_hh, and pack_hr for every panel of W_hr.
  template <class IO, class PackHH, class PackHR>
  void pack(const PackedMatrix<Acc>& hh, const PackedMatrix<Acc>& hr, const PackHH& pack_hh, const PackHR& pack_hr) {
    const int64_t of_hh = hh.panels.panels.size(), of_hr = hr.panels.panels.size();
    share_out(threads_, plan_.workers(), s_.D * (of_hh + of_hr), s_.D * 4 * s_.H * s_.P, [&](int64_t n) {
      const int64_t d = n / (of_hh + of_hr), k = n % (of_hh + of_hr);
      if (k < of_hh) {
        pack_hh(hh.panels.panels[k], static_cast<const IO*>(a_.weight_hh[d]), hh.of(d));
      } else {
        pack_hr(hr.panels.panels[k - of_hh], static_cast<const IO*>(a_.weight_hr[d]), hr.of(d));
      }
    });
  }

  // body(d, begin, end, u0, u1, meet) on each worker, which has shares [u0, u1) of the units, for each block of slots
  // [begin, end) of direction d, which goes through all steps. meet() waits for the block's other workers.
  template <class Body>
  void for_blocks(const Body& body) {
    run_plan(plan_, threads_, [&](int d, int group, int u0, int u1, Barrier& barrier) {
      int64_t meetings = 0;
      const auto meet = [&] {
        if (plan_.U > 1) barrier.arrive_and_wait(u1 - u0, ++meetings * plan_.U);
      };
      rec_.for_blocks(group, [&](int64_t begin, int64_t end) { body(d, begin, end, u0, u1, meet); });
    });
  }

  // row(slot) for those of `count` slots that belong to shares [u0, u1).
  template <class Row>
  void for_rows(int64_t begin, int64_t count, int u0, int u1, const Row& row) const {
    for (int64_t slot = begin + count * u0 / plan_.U; slot < begin + count * u1 / plan_.U; ++slot) row(slot);
  }

  enum class Product { kGates, kProjection, kGradients };

  // out(slot, panel, sums) for rows [begin, begin + count) of `factor` [D, slots, stride] times the panels of a share.
  // sums: of one row, the panel's vectors one after the other; for panels of gates i, f, g and o of a vector of units.
  template <Product kProduct, class Out>
  FASTLSTM_INLINE void multiply(const PackedMatrix<Acc>& matrix, int d, int u, Acc* factor, int64_t stride,
                                int64_t depth, int64_t begin, int64_t count, const Out& out) {
    alignas(64) Acc sums[kMaxRows * kPanel * L];
    for (int64_t p = matrix.panels.share_begin[u]; p < matrix.panels.share_begin[u + 1]; ++p) {
      const Panel& panel = matrix.panels.panels[p];
      const int vectors = kProduct == Product::kGates ? kPanel : panel.vectors;
      for_row_blocks(count, [&](int64_t first, int rows) {
        const int64_t slot = begin + first;
        const Acc *from = row_of(factor, d, slot, stride), *packed = matrix.of(d) + panel.offset;
        if constexpr (kProduct == Product::kProjection) {
          project_rows(rows, panel, from, stride, packed, depth, sums);
        } else {
          product<Acc, Acc>(rows, vectors, from, stride, packed, depth, sums);
        }
        for (int r = 0; r < rows; ++r) out(slot + r, panel, sums + r * vectors * L);
      });
    }
  }

  const Args& a_;
  const Variant& v_;
  const Sizes& s_;
  const Threads& threads_;
  const Plan& plan_;
  const VariantRecurrence rec_;
  const int64_t p_stride_, h_stride_;
};

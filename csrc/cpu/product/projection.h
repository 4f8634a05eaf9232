// The projection of hidden units. Included inside a namespace of an instruction set, after product.h.
//
// Its sums are outputs as they are, while those of gates pass through functions that flatten. One chain of additions
// over more than a hundred units has several times the error of a BLAS library's sum, which is of several chains
// (benchmarks/log.md). So a sum is made slab by slab: its bits depend on H alone.

// The hidden units in slabs, as even as possible.
struct ProjectionSlabs {
  static constexpr int64_t kMost = 96;
  int64_t H, count;

  explicit ProjectionSlabs(int64_t H) : H(H), count((H + kMost - 1) / kMost) {}
  int64_t begin(int64_t slab) const { return H * slab / count; }
  int64_t units(int64_t slab) const { return begin(slab + 1) - begin(slab); }
};

// A panel of outputs, from weight [P, H]: [slab], each as `pack_columns` lays it out.
template <class Acc, class W>
void pack_projection(const Panel& panel, const W* weight, int64_t H, int64_t P, Acc* packed) {
  const ProjectionSlabs slabs(H);
  for (int64_t slab = 0; slab < slabs.count; ++slab) {
    const int64_t begin = slabs.begin(slab);
    pack_lines_as_columns<Acc>(panel, weight + begin, H, slabs.units(slab), P,
                               packed + begin * panel.vectors * lanes<Acc>);
  }
}

// out[r][v] for `rows` (1..kMaxRows) rows of hidden units and the vectors of a panel that begins at `packed`.
template <class Acc>
inline void project_rows(int rows, const Panel& panel, const Acc* hidden, int64_t stride, const Acc* packed, int64_t H,
                         Acc* out) {
  constexpr int L = lanes<Acc>;
  const ProjectionSlabs slabs(H);
  alignas(64) Acc more[kMaxRows * kPanel * L];
  for (int64_t slab = 0; slab < slabs.count; ++slab) {
    const int64_t begin = slabs.begin(slab);
    product<Acc, Acc>(rows, panel.vectors, hidden + begin, stride, packed + begin * panel.vectors * L,
                      slabs.units(slab), slab == 0 ? out : more);
    if (slab == 0) continue;
    for (int k = 0; k < rows * panel.vectors * L; k += L) {
      store_raw(out + k, load_raw<Vec<Acc>>(out + k) + load_raw<Vec<Acc>>(more + k));
    }
  }
}

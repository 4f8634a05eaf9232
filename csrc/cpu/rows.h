// What the forward and the backward loops share: which row a slot is, and where its state is cut. Included inside a namespace
// of an instruction set.

constexpr int64_t kChunkRows = 96;  // rows that go through all steps together: their states stay in the second-level cache

template <class Acc>
constexpr int64_t padded(int64_t n) {
  return (n + lanes<Acc> - 1) / lanes<Acc> * lanes<Acc>;
}

struct Recurrence {
  const Sizes& s;
  const Plan& plan;
  const bool* reset_mask;

  // Whether direction d of this row enters step t with zeros; `length` is the row's. At a row's first step the reverse
  // direction never does.
  bool cut_entering(int d, int64_t t, int64_t row, int64_t length) const {
    if (reset_mask == nullptr) return false;
    if (d == 0) return reset_mask[t * s.N + row];
    return t + 1 < length && reset_mask[(t + 1) * s.N + row];
  }

  // The steps that direction d takes in the stretch [k0, k1) start at this t.
  int64_t earliest(int d, int64_t k0, int64_t k1) const { return d == 0 ? k0 : s.T - k1; }

  int64_t step_at(int d, int64_t k) const { return d == 0 ? k : s.T - 1 - k; }
  // The first and the last step that direction d takes in a row of this length.
  int64_t first_step(int d, int64_t length) const { return d == 0 ? 0 : length - 1; }
  int64_t last_step(int d, int64_t length) const { return d == 0 ? length - 1 : 0; }
  int64_t step_before(int d, int64_t t) const { return d == 0 ? t - 1 : t + 1; }
  int64_t step_after(int d, int64_t t) const { return d == 0 ? t + 1 : t - 1; }

  // [begin, end) of every chunk of a group's slots, in order.
  template <class Body>
  void for_chunks(int group, const Body& body) const {
    const int64_t begin = plan.group_begin[group], total = plan.group_begin[group + 1] - begin;
    const int64_t chunks = (total + kChunkRows - 1) / kChunkRows;
    for (int64_t c = 0; c < chunks; ++c) body(begin + total * c / chunks, begin + total * (c + 1) / chunks);
  }
};

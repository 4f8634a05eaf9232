// What the forward and backward loops share: which row a slot is, and where its state is cut. Included inside a
// namespace of an instruction set.

constexpr int64_t kBlockRows =
    96;  // rows of a block, which goes through all steps: their states stay in the second-level cache

template <class Acc>
constexpr int64_t padded(int64_t n) {
  return (n + lanes<Acc> - 1) / lanes<Acc> * lanes<Acc>;
}

// A stride of rows of n numbers that are read side by side: with a power of two their lines would share a few sets of the
// first-level cache.
template <class Acc>
constexpr int64_t spread(int64_t n) {
  return padded<Acc>(n) + 64 / static_cast<int64_t>(sizeof(Acc));
}

// Prefetches rows that other cores wrote, all at once: a product would come to their lines one after another, and wait
// for each. Always inline: GCC leaves out the calls of a function that only prefetches.
template <class T>
FASTLSTM_INLINE void fetch_rows(const T* first, int64_t stride, int64_t rows, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < width; k += kLine) __builtin_prefetch(first + r * stride + k, 0, 2);
  }
}

struct Recurrence : Steps {
  const Plan& plan;

  Recurrence(const Sizes& s, const Plan& plan_of_rows, const bool* mask) : Steps{s.T, s.N, mask}, plan(plan_of_rows) {}

  // The earliest t of the steps that direction d takes in the chunk [k0, k1).
  int64_t earliest(int d, int64_t k0, int64_t k1) const { return d == 0 ? k0 : T - k1; }

  // body(begin, end) for every block of a group's slots, in order.
  template <class Body>
  void for_blocks(int group, const Body& body) const {
    const int64_t begin = plan.group_begin[group], total = plan.group_begin[group + 1] - begin;
    const int64_t blocks = (total + kBlockRows - 1) / kBlockRows;
    for (int64_t b = 0; b < blocks; ++b) body(begin + total * b / blocks, begin + total * (b + 1) / blocks);
  }
};

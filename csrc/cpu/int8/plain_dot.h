// Products of quantised rows with a block of 16 units in plain C++. Included inside a namespace of an instruction set.
//
// The members that every such class has: the type of a row's numbers, how a row of floats becomes such (take_row), how
// many rows one call takes at most, and sums<G>: out[r][g][u] = the sum over k of row r times weight [k][g][u], G
// vectors of 16 units beside each other.

struct PlainDot : QuantisedRows {
  struct Engine {};
  static constexpr int kRows = 4;

  template <int G>
  static void sums(Engine&, int rows, const int8_t* a, int64_t stride, const ActivationRow*, const int8_t* weights,
                   int64_t depth, int32_t* out) {
    __builtin_memset(out, 0, rows * G * kInt8Units * sizeof(int32_t));
    for (int64_t k = 0; k < depth; ++k) {
      for (int r = 0; r < rows; ++r) {
        const int8_t* four = a + r * stride + k * kInt8Depth;
        int32_t* sum = out + r * G * kInt8Units;
        for (int u = 0; u < G * kInt8Units; ++u) {
          const int8_t* w = weights + (k * G * kInt8Units + u) * kInt8Depth;
          sum[u] += w[0] * four[0] + w[1] * four[1] + w[2] * four[2] + w[3] * four[3];
        }
      }
    }
  }
};

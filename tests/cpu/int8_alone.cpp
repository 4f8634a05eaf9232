// The CPU's layers with 8-bit weights as a program by themselves, as kernels_alone.cpp: those that this machine runs
// against the plain sums of the generic ones, whose bits they are to give, since sums are integers and the rest is the
// same arithmetic; and these, step by step, against the same in double. Exit status 1 if anything is over its budget.

#include <array>

#include "budget.h"
#include "cpu/isa/choice.h"
#include "cpu/isa/int8.h"

using namespace fastlstm;

namespace {

std::vector<int8_t> bytes(int64_t count) {
  std::vector<int8_t> v(count);
  for (int8_t& x : v) x = static_cast<int8_t>(static_cast<int>(generator() % 255) - 127);
  return v;
}

int64_t in(int64_t n, int64_t of) { return (n + of - 1) / of; }

// A matrix of G gates, plain [G * H, K], packed as cpu/int8_recurrence.h says.
std::vector<int8_t> pack(const std::vector<int8_t>& q, int64_t gates, int64_t K) {
  const int64_t H = static_cast<int64_t>(q.size()) / gates / K;
  std::vector<int8_t> packed(in(H, 16) * in(K, 4) * gates * 64);
  for (int64_t g = 0; g < gates; ++g) {
    for (int64_t j = 0; j < H; ++j) {
      for (int64_t k = 0; k < K; ++k) {
        const int64_t of_block = (j / 16 * in(K, 4) + k / 4) * gates + g;
        packed[(of_block * 16 + j % 16) * 4 + k % 4] = q[(g * H + j) * K + k];
      }
    }
  }
  return packed;
}

struct Quantised {
  float scale;
  std::vector<int64_t> q;
};

Quantised quantised(const float* row, int64_t n) {
  float most = 0;
  for (int64_t k = 0; k < n; ++k) most = std::max(most, std::abs(row[k]));
  const float scale = most / 127.f, inverse = most == 0 ? 0 : 1.f / scale;
  Quantised r{scale, {}};
  for (int64_t k = 0; k < n; ++k) {
    volatile float product = row[k] * inverse;  // rounded by itself
    r.q.push_back(static_cast<int64_t>(std::nearbyint(product)));
  }
  return r;
}

struct Layer {
  int64_t T, N, I, H, P;
  std::vector<int8_t> ih, hh, hr;
  std::vector<float> scale_ih, scale_hh, scale_hr, bias, x, h0, c0;

  Layer(int64_t steps, int64_t rows, int64_t inputs, int64_t units, int64_t outputs)
      : T(steps), N(rows), I(inputs), H(units), P(outputs) {
    ih = bytes(4 * H * I), hh = bytes(4 * H * P), hr = bytes(P == H ? 0 : P * H);
    const auto scales = [](int64_t n, int64_t K) {
      auto s = numbers<float>(n, 1 / (127 * std::sqrt(static_cast<double>(K))));
      for (float& v : s) v = std::abs(v);
      return s;
    };
    scale_ih = scales(4 * H, I), scale_hh = scales(4 * H, P), scale_hr = scales(P, H);
    bias = numbers<float>(4 * H), x = numbers<float>(T * N * I);
    h0 = numbers<float>(N * P), c0 = numbers<float>(N * H);
  }

  struct Results {
    std::vector<float> output, h_n, c_n, cells;
    bool operator==(const Results& o) const {
      const auto same = [](const std::vector<float>& a, const std::vector<float>& b) {
        return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
      };
      return same(output, o.output) && same(h_n, o.h_n) && same(c_n, o.c_n) && same(cells, o.cells);
    }
  };

  template <class Run>
  Results by(const Run& run, bool weight_only, int threads) const {
    Results r{poison<float>(T * N * P), poison<float>(N * P), poison<float>(N * H), poison<float>(T * N * H)};
    const auto packed_ih = pack(ih, 4, I), packed_hh = pack(hh, 4, P);
    const auto packed_hr = P == H ? std::vector<int8_t>() : pack(hr, 1, H);
    Int8Args args{};
    args.sizes = {T, N, 1, H, P}, args.I = I, args.weight_only = weight_only;
    args.x = x.data(), args.x_stride_t = N * I, args.x_stride_n = I, args.h0 = h0.data(), args.c0 = c0.data();
    args.weights[0] = {packed_ih.data(), packed_hh.data(), P == H ? nullptr : packed_hr.data(),
                       scale_ih.data(),  scale_hh.data(),  scale_hr.data(),
                       bias.data()};
    args.output = r.output.data(), args.h_n = r.h_n.data(), args.c_n = r.c_n.data(), args.cells = r.cells.data();
    run(args, {threads, on_threads});
    return r;
  }

  // The largest share of its budget of any number of c, and without a projection of h. Budgets: of a sum of products 5
  // roundings, of an activation 3 ULP (tests/cpu/test_math.py).
  double share(const Results& r) const {
    constexpr double kUnit = 0x1p-24;
    double most = 0;
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t n = 0; n < N; ++n) {
        const float* before = t == 0 ? h0.data() + n * P : r.output.data() + ((t - 1) * N + n) * P;
        const Quantised qx = quantised(x.data() + (t * N + n) * I, I), qh = quantised(before, P);
        for (int64_t j = 0; j < H; ++j) {
          double g[4], e[4];
          for (int k = 0; k < 4; ++k) {
            const int64_t row = k * H + j;
            int64_t sum_x = 0, sum_h = 0;
            for (int64_t i = 0; i < I; ++i) sum_x += ih[row * I + i] * qx.q[i];
            for (int64_t p = 0; p < P; ++p) sum_h += hh[row * P + p] * qh.q[p];
            const double of_x = double{qx.scale} * scale_ih[row] * static_cast<double>(sum_x);
            const double of_h = double{qh.scale} * scale_hh[row] * static_cast<double>(sum_h);
            const double z = of_x + of_h + bias[row];
            const double e_z = 7 * kUnit * (std::abs(of_x) + std::abs(of_h) + std::abs(bias[row]));
            g[k] = k == 2 ? std::tanh(z) : 1 / (1 + std::exp(-z));
            e[k] = (k == 2 ? e_z : e_z / 4) + 6 * kUnit * std::abs(g[k]);
          }
          const double c_in = t == 0 ? c0[n * H + j] : r.cells[((t - 1) * N + n) * H + j];
          const double kept = g[1] * c_in, added = g[0] * g[2], c = r.cells[(t * N + n) * H + j];
          const double e_c = e[1] * std::abs(c_in) + e[0] * std::abs(g[2]) + e[2] * g[0] +
                             3 * kUnit * (std::abs(kept) + std::abs(added));
          most = std::max(most, std::abs(c - (kept + added)) / e_c);
          if (P != H) continue;
          const double h = g[3] * std::tanh(c), e_h = e[3] * std::abs(std::tanh(c)) + 8 * kUnit * std::abs(h);
          most = std::max(most, std::abs(r.output[(t * N + n) * H + j] - h) / e_h);
        }
      }
    }
    return most;
  }
};

}  // namespace

int main() {
  std::printf("%s: %s\n", cpu_kernels().isa, cpu_choice().why.c_str());
  bool failed = false;
  const auto judge = [&](const char* what, const std::array<int64_t, 5>& s, bool good, double share) {
    std::printf("%s, T %d N %d I %d H %d P %d: %s", what, int(s[0]), int(s[1]), int(s[2]), int(s[3]), int(s[4]),
                good ? "as it should be" : "WRONG");
    std::printf(share > 0 ? " (%.2f of its budget)\n" : "\n", share);
    failed = failed || !good;
  };
  for (const auto& s : {std::array<int64_t, 5>{1, 1, 1, 1, 1},
                        {4, 1, 5, 21, 21},
                        {3, 2, 130, 16, 16},
                        {3, 3, 7, 33, 33},
                        {2, 4, 64, 40, 40},
                        {3, 9, 13, 70, 70},
                        {3, 7, 12, 37, 11}}) {
    const Layer layer(s[0], s[1], s[2], s[3], s[4]);
    for (const bool weight_only : {false, true}) {
      const auto generic = layer.by(*int8_layer_generic, weight_only, 1);
      const double share = weight_only ? 0 : layer.share(generic);
      judge(weight_only ? "generic, weights only" : "generic", s, share <= 1, share);
      for (const int threads : {1, 2}) {
        const auto here = layer.by(cpu_kernels().int8_layer, weight_only, threads);
        judge(threads == 1 ? "the same bits" : "the same bits by two threads", s, here == generic, 0);
      }
    }
  }
  std::printf(failed ? "some are over their budget\n" : "all as they should be\n");
  return failed;
}

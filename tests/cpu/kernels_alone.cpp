// The CPU's kernels as a program by themselves, without torch and Python: for machines that have neither, such as an
// emulator. Sequences forward and backward, single steps and large products, in every dtype, with lengths, resets,
// projections and two threads, against the same in long double. Prints a line for each problem with the share of its
// error budget (budget.h); exit status 1 if one is over it.

#include <array>

#include "budget.h"
#include "cpu/isa/choice.h"

using namespace fastlstm;

namespace {

template <class IO>
struct Problem {
  Sizes s;
  bool projected;
  std::vector<int64_t> lengths;
  std::vector<char> resets;
  std::vector<IO> gates_x, h0, c0, weight_hh, weight_hr, doutput, dh_n, dc_n;

  Problem(Sizes sizes, bool cut) : s(sizes), projected(sizes.P != sizes.H) {
    const double scale = 1 / std::sqrt(static_cast<double>(s.H));
    gates_x = numbers<IO>(s.D * s.T * s.N * 4 * s.H), h0 = numbers<IO>(s.D * s.N * s.P);
    c0 = numbers<IO>(s.D * s.N * s.H), weight_hh = numbers<IO>(s.D * 4 * s.H * s.P, scale);
    weight_hr = numbers<IO>(projected ? s.D * s.P * s.H : 0, scale);
    doutput = numbers<IO>(s.T * s.N * s.D * s.P), dh_n = numbers<IO>(s.D * s.N * s.P),
    dc_n = numbers<IO>(s.D * s.N * s.H);
    if (!cut) return;
    for (int64_t n = 0; n < s.N; ++n) lengths.push_back(n == 0 ? s.T : static_cast<int64_t>(generator() % (s.T + 1)));
    for (int64_t k = 0; k < s.T * s.N; ++k) resets.push_back(generator() % 4 == 0);
  }

  // Equations of fastlstm/reference/lstm.py in Real; what is stored is rounded to IO unless Real is the truth's type.
  template <class Real>
  Tensors plain() const {
    const auto store = [](Real x) { return rounded<IO>(x); };
    const auto sigmoid = [](Real x) { return 1 / (1 + std::exp(-x)); };
    const auto at = [](const std::vector<IO>& v, int64_t k) { return static_cast<Real>(Type<IO>::load(v[k])); };
    Tensors r;
    for (const char* name : {"output"}) r[name].resize(s.T * s.N * s.D * s.P);
    for (const char* name : {"h_n", "dh0"}) r[name].resize(s.D * s.N * s.P);
    for (const char* name : {"c_n", "dc0"}) r[name].resize(s.D * s.N * s.H);
    r["dgates"].resize(gates_x.size());
    const int64_t H = s.H, P = s.P;
    for (int64_t d = 0; d < s.D; ++d) {
      for (int64_t n = 0; n < s.N; ++n) {
        const int64_t length = lengths.empty() ? s.T : lengths[n], row = d * s.N + n;
        std::vector<Real> h(P), c(H), dh(P), dc(H);
        std::vector<std::vector<Real>> gates, before, after;
        std::vector<bool> cuts;
        for (int64_t p = 0; p < P; ++p) h[p] = at(h0, row * P + p), dh[p] = at(dh_n, row * P + p);
        for (int64_t j = 0; j < H; ++j) c[j] = at(c0, row * H + j), dc[j] = at(dc_n, row * H + j);
        for (int64_t k = 0; k < length; ++k) {
          const int64_t t = d == 0 ? k : length - 1 - k, boundary = d == 0 ? t : t + 1;
          const bool cut = !resets.empty() && boundary < length && resets[boundary * s.N + n];
          if (cut) std::fill(h.begin(), h.end(), Real{}), std::fill(c.begin(), c.end(), Real{});
          std::vector<Real> g(4 * H), u(H);
          before.push_back(c);
          for (int64_t j = 0; j < 4 * H; ++j) {
            Real sum = at(gates_x, ((d * s.T + t) * s.N + n) * 4 * H + j);
            for (int64_t p = 0; p < P; ++p) sum += h[p] * at(weight_hh, (d * 4 * H + j) * P + p);
            g[j] = j / H == 2 ? std::tanh(sum) : sigmoid(sum);
          }
          for (int64_t j = 0; j < H; ++j) {
            c[j] = g[H + j] * c[j] + g[j] * g[2 * H + j];
            u[j] = g[3 * H + j] * std::tanh(c[j]);
          }
          for (int64_t p = 0; p < P; ++p) {
            Real sum = projected ? 0 : u[p];
            for (int64_t j = 0; projected && j < H; ++j) sum += u[j] * at(weight_hr, (d * P + p) * H + j);
            h[p] = store(sum), r["output"][((t * s.N + n) * s.D + d) * P + p] = h[p];
          }
          for (Real& x : g) x = store(x);
          gates.push_back(g), after.push_back(c), cuts.push_back(cut);
        }
        std::copy(h.begin(), h.end(), r["h_n"].begin() + row * P);
        std::copy(c.begin(), c.end(), r["c_n"].begin() + row * H);
        for (int64_t k = length - 1; k >= 0; --k) {
          const int64_t t = d == 0 ? k : length - 1 - k, base = ((d * s.T + t) * s.N + n) * 4 * H;
          const std::vector<Real>& g = gates[k];
          std::vector<Real> du(H), dg(4 * H);
          for (int64_t p = 0; p < P; ++p) dh[p] += at(doutput, ((t * s.N + n) * s.D + d) * P + p);
          for (int64_t j = 0; j < H; ++j) {
            du[j] = projected ? 0 : dh[j];
            for (int64_t p = 0; projected && p < P; ++p) du[j] += dh[p] * at(weight_hr, (d * P + p) * H + j);
            const Real i = g[j], f = g[H + j], z = g[2 * H + j], o = g[3 * H + j], tc = std::tanh(after[k][j]);
            const Real dcell = dc[j] + du[j] * o * (1 - tc * tc);
            dg[j] = dcell * z * i * (1 - i), dg[H + j] = dcell * before[k][j] * f * (1 - f);
            dg[2 * H + j] = dcell * i * (1 - z * z), dg[3 * H + j] = du[j] * tc * o * (1 - o);
            dc[j] = cuts[k] ? 0 : dcell * f;
          }
          for (int64_t p = 0; p < P; ++p) {
            Real sum = 0;
            for (int64_t j = 0; j < 4 * H; ++j) sum += dg[j] * at(weight_hh, (d * 4 * H + j) * P + p);
            dh[p] = cuts[k] ? 0 : sum;
          }
          std::copy(dg.begin(), dg.end(), r["dgates"].begin() + base);
        }
        std::copy(dh.begin(), dh.end(), r["dh0"].begin() + row * P);
        std::copy(dc.begin(), dc.end(), r["dc0"].begin() + row * H);
      }
    }
    return r;
  }

  Tensors by_kernels(const Threads& threads) const {
    using Acc = typename Type<IO>::Acc;
    auto output = poison<IO>(s.T * s.N * s.D * s.P), h_n = poison<IO>(h0.size()), c_n = poison<IO>(c0.size());
    auto gates = poison<IO>(gates_x.size()), dh = poison<IO>(h0.size()), dc = poison<IO>(c0.size());
    auto cells = poison<Acc>(s.T * s.N * s.D * s.H), dgates = poison<Acc>(gates_x.size());
    auto dhidden = poison<Acc>(s.D * s.T * s.N * s.P);
    const Strides strides{s.T * s.N * 4 * s.H, s.N * 4 * s.H, 4 * s.H};
    ForwardArgs forward{};
    forward.sizes = s, forward.dtype = Type<IO>::kDType, forward.float32_parts = 3;
    forward.gates_x = gates_x.data(), forward.gates_strides = strides, forward.h0 = h0.data(), forward.c0 = c0.data();
    BackwardArgs backward{};
    backward.sizes = s, backward.dtype = Type<IO>::kDType, backward.float32_parts = 3, backward.wide_gates = true;
    for (int64_t d = 0; d < s.D; ++d) {
      forward.weight_hh[d] = backward.weight_hh[d] = weight_hh.data() + d * 4 * s.H * s.P;
      if (projected) forward.weight_hr[d] = backward.weight_hr[d] = weight_hr.data() + d * s.P * s.H;
    }
    forward.lengths = backward.lengths = lengths.empty() ? nullptr : lengths.data();
    forward.reset_mask = backward.reset_mask = resets.empty() ? nullptr : reinterpret_cast<const bool*>(resets.data());
    forward.output = output.data(), forward.h_n = h_n.data(), forward.c_n = c_n.data();
    forward.cells = cells.data(), forward.gates = gates.data();
    cpu_kernels().forward(forward, threads);
    backward.doutput = doutput.data(), backward.doutput_stride_t = s.N * s.D * s.P,
    backward.doutput_stride_n = s.D * s.P;
    backward.dh_n = dh_n.data(), backward.dc_n = dc_n.data(), backward.h0 = h0.data(), backward.c0 = c0.data();
    backward.output = output.data(), backward.cells = cells.data(), backward.gates = gates.data();
    backward.dh0 = dh.data(), backward.dc0 = dc.data(), backward.dgates_x = dgates.data();
    backward.dgates_strides = strides;
    if (projected) backward.dhidden = dhidden.data(), backward.dhidden_strides = {s.T * s.N * s.P, s.N * s.P, s.P};
    cpu_kernels().backward(backward, threads);
    return {{"output", wide(output)}, {"h_n", wide(h_n)}, {"c_n", wide(c_n)},
            {"dh0", wide(dh)},        {"dc0", wide(dc)},  {"dgates", wide(dgates)}};
  }
};

// The gradients' errors are not those of the results.
Tensors part(const Tensors& all, bool gradients) {
  Tensors found;
  for (const auto& each : all) {
    if ((each.first[0] == 'd') == gradients) found.insert(each);
  }
  return found;
}

template <class IO>
void sequences(const char* dtype) {
  const struct {
    Sizes s;
    bool cut;
    int threads;
  } cases[] = {{{5, 1, 1, 7, 7}, false, 1},   {{6, 5, 2, 13, 13}, true, 1}, {{4, 9, 1, 20, 6}, true, 1},
               {{3, 7, 1, 48, 48}, false, 2}, {{4, 2, 2, 33, 33}, true, 2}, {{1, 1, 1, 1, 1}, false, 1}};
  for (const auto& each : cases) {
    const Problem<IO> problem(each.s, each.cut);
    const Tensors truth = problem.template plain<Truth>(), plain = problem.template plain<typename Type<IO>::Acc>(),
                  got = problem.by_kernels({each.threads, on_threads});
    const Sizes& s = each.s;
    char name[200];
    for (const bool gradients : {false, true}) {
      std::snprintf(name, sizeof name, "%s %s, T %d N %d D %d H %d P %d%s, %d threads", dtype,
                    gradients ? "gradients" : "results", int(s.T), int(s.N), int(s.D), int(s.H), int(s.P),
                    each.cut ? ", lengths and resets" : "", each.threads);
      judge(name, part(got, gradients), part(plain, gradients), part(truth, gradients), Type<IO>::unit());
    }
  }
}

// One step from the weights as they lie.
template <class IO>
void steps(const char* dtype) {
  using Acc = typename Type<IO>::Acc;
  const int64_t N = 3, I = 5, H = 21;
  const auto x = numbers<IO>(N * I), h = numbers<IO>(N * H), c = numbers<IO>(N * H), bias = numbers<IO>(4 * H);
  const auto weight_ih = numbers<IO>(4 * H * I, 0.2), weight_hh = numbers<IO>(4 * H * H, 0.2);
  auto h_out = poison<IO>(N * H), c_out = poison<IO>(N * H);
  const auto by_loops = [&](auto kind) {
    using Real = decltype(kind);
    const auto at = [](const std::vector<IO>& v, int64_t k) { return static_cast<Real>(Type<IO>::load(v[k])); };
    Tensors r;
    for (int64_t n = 0; n < N; ++n) {
      std::vector<Real> g(4 * H);
      for (int64_t j = 0; j < 4 * H; ++j) {
        g[j] = at(bias, j);
        for (int64_t k = 0; k < I; ++k) g[j] += at(x, n * I + k) * at(weight_ih, j * I + k);
        for (int64_t k = 0; k < H; ++k) g[j] += at(h, n * H + k) * at(weight_hh, j * H + k);
        g[j] = j / H == 2 ? std::tanh(g[j]) : 1 / (1 + std::exp(-g[j]));
      }
      for (int64_t j = 0; j < H; ++j) {
        const Real cell = g[H + j] * at(c, n * H + j) + g[j] * g[2 * H + j];
        r["c"].push_back(rounded<IO>(cell)), r["h"].push_back(rounded<IO>(g[3 * H + j] * std::tanh(cell)));
      }
    }
    return r;
  };
  StepArgs args{};
  args.N = N, args.I = I, args.H = args.P = H, args.dtype = Type<IO>::kDType;
  args.x = x.data(), args.h = h.data(), args.c = c.data(), args.bias_ih = bias.data();
  args.weight_ih = weight_ih.data(), args.weight_hh = weight_hh.data();
  args.h_out = h_out.data(), args.c_out = c_out.data();
  cpu_kernels().step(args, {1, on_threads});
  judge(std::string(dtype) + " step", {{"h", wide(h_out)}, {"c", wide(c_out)}}, by_loops(Acc{}), by_loops(Truth{}),
        Type<IO>::unit());
}

template <class Real>
void products(const char* dtype) {
  const MatrixProducts* kernels = sizeof(Real) == 8 ? cpu_kernels().double_products : cpu_kernels().products;
  for (const auto [rows, columns, depth] : {std::array<int64_t, 3>{7, 33, 300}, {64, 20, 5}, {1, 1, 1}}) {
    const auto a = numbers<Real>(rows * depth), b = numbers<Real>(columns * depth);
    auto out = poison<Real>(rows * columns);
    std::vector<Truth> truth(out.size()), plain(out.size());
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t n = 0; n < columns; ++n) {
        Real sum = 0;
        for (int64_t k = 0; k < depth; ++k) {
          sum += a[m * depth + k] * b[n * depth + k];
          truth[m * columns + n] += Truth{a[m * depth + k]} * b[n * depth + k];
        }
        plain[m * columns + n] = sum;
      }
    }
    const Target target{{b.data(), Type<Real>::kDType, columns, depth, 1, 3}, nullptr, out.data(), columns, false};
    kernels->multiply({depth, {a.data(), Type<Real>::kDType, rows, depth, 1, 3}, &target, 1}, {1, on_threads});
    const std::string name = std::string(dtype) + " product " + std::to_string(rows) + " x " + std::to_string(columns) +
                             " of depth " + std::to_string(depth);
    judge(name, {{"out", wide(out)}}, {{"out", plain}}, {{"out", truth}}, Type<Real>::unit());
  }
}

}  // namespace

int main() {
  std::printf("%s: %s\n", cpu_kernels().isa, cpu_choice().why.c_str());
  sequences<float>("float32");
  sequences<double>("float64");
  sequences<BFloat16>("bfloat16");
  sequences<Float16>("float16");
  steps<float>("float32");
  steps<double>("float64");
  steps<BFloat16>("bfloat16");
  steps<Float16>("float16");
  products<float>("float32");
  products<double>("float64");
  std::printf(failed ? "some are over their budget\n" : "all as they should be\n");
  return failed;
}

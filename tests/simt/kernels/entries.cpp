// Runs the kernels of this folder on the arrays of a problem.
#include "kernels.h"
#include "simt/problem.h"

namespace {

using simt::Problem;

std::string message(cudaError_t error) { return error == cudaSuccess ? "" : cudaGetErrorString(error); }

int number(const Problem& p, const char* name) { return static_cast<int>(p.integer(name)); }

Dtype dtype(const Problem& p) { return static_cast<Dtype>(p.integer("dtype")); }

std::string gemm(Problem& p) {
  return message(launch_gemm(dtype(p), p.array<void>("a"), p.array<void>("b"), p.array<float>("c"), number(p, "M"),
                             number(p, "N"), number(p, "K"), number(p, "lda"), number(p, "ldb"), number(p, "broken"),
                             nullptr));
}

std::string ring(Problem& p) {
  return message(launch_ring(p.array<uint32_t>("x"), number(p, "clusters"), number(p, "size"), number(p, "steps"),
                             number(p, "broken"), nullptr));
}

std::string grid_ring(Problem& p) {
  return message(launch_grid_ring(p.array<int>("x"), p.array<int>("arrived"), number(p, "blocks"), number(p, "steps"),
                                  number(p, "broken"), nullptr));
}

InstructionArgs instruction_args(const Problem& p) {
  InstructionArgs args = {};
  args.a = p.array<uint32_t>("a");
  args.b = p.array<uint32_t>("b");
  args.d = p.array<float>("d");
  args.matrices = number(p, "matrices");
  args.tile = p.array<uint16_t>("tile");
  args.fragments = p.array<uint32_t>("fragments");
  args.floats = p.array<float>("floats");
  args.halves = p.array<uint16_t>("halves");
  args.to_bf16 = p.array<uint32_t>("to_bf16");
  args.to_f16 = p.array<uint32_t>("to_f16");
  args.to_tf32 = p.array<uint32_t>("to_tf32");
  args.from_bf16 = p.array<float>("from_bf16");
  args.from_f16 = p.array<float>("from_f16");
  args.count = number(p, "count");
  args.lanes = p.array<int>("lanes");
  args.shuffled = p.array<int>("shuffled");
  return args;
}

std::string mma(Problem& p) { return message(launch_mma(dtype(p), instruction_args(p), nullptr)); }
std::string ldmatrix(Problem& p) { return message(launch_ldmatrix(instruction_args(p), nullptr)); }
std::string conversions(Problem& p) { return message(launch_conversions(instruction_args(p), nullptr)); }
std::string shuffles(Problem& p) { return message(launch_shuffles(instruction_args(p), nullptr)); }

std::string atomics(Problem& p) {
  return message(launch_atomics(p.array<int>("values"), number(p, "n"), p.array<int>("counts"),
                                p.array<double>("total"), p.array<int>("lock"), p.array<int>("most"), nullptr));
}

std::string misuse(Problem& p) { return message(launch_misuse(number(p, "which"), p.array<int>("memory"), nullptr)); }

// shape: grid, block and cluster, three each, cooperative, bytes of shared memory, bytes asked for. error: what came,
// then what the next question for the last error says, twice.
std::string shapes(Problem& p) {
  const int64_t* s = p.array<int64_t>("shapes");
  int64_t* errors = p.array<int64_t>("errors");
  for (int i = 0; i < number(p, "n"); ++i, s += 12, errors += 3) {
    const auto extent = [&](int at) {
      return dim3(static_cast<unsigned>(s[at]), static_cast<unsigned>(s[at + 1]), static_cast<unsigned>(s[at + 2]));
    };
    errors[0] = launch_shape(extent(0), extent(3), extent(6), static_cast<int>(s[9]), static_cast<size_t>(s[10]),
                             static_cast<size_t>(s[11]));
    errors[1] = cudaGetLastError();
    errors[2] = cudaGetLastError();
  }
  return "";
}

constexpr simt::NamedEntry kEntries[] = {
    {"gemm", gemm},         {"ring", ring},         {"grid_ring", grid_ring},
    {"mma", mma},           {"ldmatrix", ldmatrix}, {"conversions", conversions},
    {"shuffles", shuffles}, {"atomics", atomics},   {"misuse", misuse},
    {"shapes", shapes},
};

}  // namespace

int main(int argc, char** argv) { return simt::runner_main(argc, argv, kEntries, std::size(kEntries)); }

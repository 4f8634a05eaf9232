// Runs csrc/cuda's recurrence on the arrays of a problem, each in memory of its own and of exactly its size, the
// workspace too: built with AddressSanitizer, this sees what the kernels read or write beside any of them.
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>

#include "cuda/recurrence.h"
#include "simt/problem.h"

namespace {

using namespace fastlstm;
using simt::Problem;

// Filled with 0xFF: what is used before it was written shows as NaN.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    if (posix_memalign(&data_, 256, bytes) != 0) std::abort();
    std::memset(data_, 0xff, bytes);
  }
  ~Workspace() { std::free(data_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// Where the parts of a [D, ...] array start, so many numbers each.
void put_directions(const char* whole, const Sizes& s, DType dtype, int64_t count, const void* (&parts)[2]) {
  const int64_t bytes = dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  for (int64_t d = 0; whole != nullptr && d < s.D; ++d) parts[d] = whole + d * count * bytes;
}

template <class Args>
void set_common(const Problem& p, Args& args) {
  args.sizes = {p.integer("T"), p.integer("N"), p.integer("D"), p.integer("H"), p.integer("P")};
  args.dtype = static_cast<DType>(p.integer("dtype"));
  args.tf32 = p.integer("tf32") != 0;
  args.wide_gates = p.integer("wide") != 0;
  args.wide_states = p.integer("wide_states") != 0;
  args.c0 = p.array<void>("c0");
  const Sizes& s = args.sizes;
  put_directions(p.array<char>("weight_hh"), s, args.dtype, 4 * s.H * s.P, args.weight_hh);
  put_directions(p.array<char>("weight_hr"), s, args.dtype, s.P * s.H, args.weight_hr);
  args.cells = p.array<void>("cells");
  args.gates = p.array<void>("gates");
  args.lengths = p.array<int64_t>("lengths");
  args.reset_mask = p.array<bool>("reset_mask");
}

std::string forward(Problem& p) {
  cuda::ForwardArgs args{};
  set_common(p, args);
  args.gates_x = p.array<void>("gates_x");
  args.gates_strides.d = 4 * p.integer("H");
  args.gates_strides.n = p.integer("D") * args.gates_strides.d;
  args.gates_strides.t = p.integer("N") * args.gates_strides.n;
  args.h0 = p.array<void>("h0");
  args.output = p.array<void>("output");
  args.h_n = p.array<void>("h_n");
  args.c_n = p.array<void>("c_n");
  const cuda::Choice choice = cuda::choose(args);
  const Workspace workspace(choice.workspace);
  return cuda::forward(args, choice, workspace.data(), nullptr).text;
}

std::string backward(Problem& p) {
  cuda::BackwardArgs args{};
  set_common(p, args);
  args.doutput = p.array<void>("doutput");
  args.doutput_stride_n = p.integer("D") * p.integer("P");
  args.doutput_stride_t = p.integer("N") * args.doutput_stride_n;
  args.dh_n = p.array<void>("dh_n");
  args.dc_n = p.array<void>("dc_n");
  args.dcells = p.array<void>("dcells");
  args.dgates_x = p.array<void>("dgates_x");
  args.dh0 = p.array<void>("dh0");
  args.dc0 = p.array<void>("dc0");
  args.dhidden = p.array<void>("dhidden");
  const cuda::Choice choice = cuda::choose(args);
  const Workspace workspace(choice.workspace);
  return cuda::backward(args, choice, workspace.data(), nullptr).text;
}

constexpr simt::NamedEntry kEntries[] = {{"forward", forward}, {"backward", backward}};

}  // namespace

int main(int argc, char** argv) { return simt::runner_main(argc, argv, kEntries, std::size(kEntries)); }

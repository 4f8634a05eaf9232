// The forward recurrence in steps with weights at given places, its workspace between guards: for a library loaded by
// Python.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "device.h"
#include "cuda/recurrence.h"

namespace {

using namespace fastlstm;

constexpr Sizes kSizes{2, 3, 1, 64, 16};
constexpr size_t kGuard = 1 << 16;
constexpr unsigned char kMark = 0xa5;

// Numbers that begin so many bytes after a multiple of 256.
class Floats {
 public:
  Floats(int64_t count, int64_t offset) : memory_(static_cast<char*>(std::aligned_alloc(256, bytes(count)))) {
    std::fill_n(memory_, bytes(count), 0);
    data_ = memory_ + offset;
  }
  ~Floats() { std::free(memory_); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  void* data() const { return data_; }

 private:
  static size_t bytes(int64_t count) { return (static_cast<size_t>(count) * 4 + 511) / 256 * 256; }

  char *memory_, *data_;
};

}  // namespace

// Runs the call with weight_hh and weight_hr so many bytes from an aligned place, by the choice made for weights at
// those other distances. Gives how many bytes beside the workspace were written to; `said` gets what the status says.
extern "C" SIMT_EXPORT int64_t simt_run_placed(int64_t hh, int64_t hr, int64_t chosen_hh, int64_t chosen_hr,
                                               int64_t size, char* said) {
  const Sizes& s = kSizes;
  const Floats gates_x(s.T * s.N * 4 * s.H, 0), output(s.T * s.N * s.P, 0), h_n(s.N * s.P, 0), c_n(s.N * s.H, 0);
  const int64_t of_hh = 4 * s.H * s.P, of_hr = s.P * s.H;
  const Floats weight_hh(of_hh, hh), weight_hr(of_hr, hr), other_hh(of_hh, chosen_hh), other_hr(of_hr, chosen_hr);
  cuda::ForwardArgs args{};
  args.dtype = DType::kFloat32;
  args.sizes = s;
  args.gates_x = gates_x.data();
  args.gates_strides.d = args.gates_strides.n = 4 * s.H;
  args.gates_strides.t = s.N * 4 * s.H;
  args.output = output.data();
  args.h_n = h_n.data();
  args.c_n = c_n.data();
  args.weight_hh[0] = other_hh.data();
  args.weight_hr[0] = other_hr.data();
  const cuda::Choice choice = cuda::choose(args);
  args.weight_hh[0] = weight_hh.data();
  args.weight_hr[0] = weight_hr.data();
  std::vector<unsigned char> memory(choice.workspace + 3 * kGuard, kMark);
  const size_t before = kGuard - reinterpret_cast<uintptr_t>(memory.data()) % 256, after = before + choice.workspace;
  const cuda::Status status = cuda::forward(args, choice, memory.data() + before, nullptr);
  std::snprintf(said, static_cast<size_t>(size), "%s", status.text);
  const auto written = [](unsigned char byte) { return byte != kMark; };
  return std::count_if(memory.begin(), memory.begin() + static_cast<int64_t>(before), written) +
         std::count_if(memory.begin() + static_cast<int64_t>(after), memory.end(), written);
}

// Launches of the kernels around a layer's recurrence, by the tensors' dtype.

#include <algorithm>

#include "cuda/around/kernels.h"
#include "cuda/launch.h"

namespace fastlstm::cuda {

namespace {

template <class IO_, class Acc_>
struct Numbers {
  using IO = IO_;
  using Acc = Acc_;
};

// What launch(numbers, launcher) ends with, numbers being a Numbers for the dtype.
template <class Launch>
Status with_numbers(const Around& around, const Launch& launch) {
  cudaSetDevice(around.device);  // for this library's own CUDA runtime
  Launcher launcher(around.sizes, around.stream);
  switch (around.dtype) {
    case DType::kBFloat16:
      launch(Numbers<BFloat16, float>(), launcher);
      break;
    case DType::kFloat16:
      launch(Numbers<Float16, float>(), launcher);
      break;
    case DType::kFloat64:
      launch(Numbers<double, double>(), launcher);
      break;
    case DType::kFloat32:
      launch(Numbers<float, float>(), launcher);
      break;
  }
  return launcher.status();
}

unsigned blocks_of(int64_t rows) {
  constexpr int64_t kMost = int64_t{1} << 20;
  return static_cast<unsigned>(rows < kMost ? rows : kMost);
}

// Threads for rows of so many numbers.
int threads_of(int64_t width) { return width > 128 ? 256 : width > 32 ? 128 : 32; }

}  // namespace

Status add_biases(const Around& around, const Biases& biases, int64_t count, int64_t width, void* sums) {
  return with_numbers(around, [&](auto numbers, Launcher& launch) {
    using IO = typename decltype(numbers)::IO;
    const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(std::min<int64_t>((width + 255) / 256, 64)));
    launch("lstm_kernel_add_biases", lstm_kernel_add_biases<IO, typename decltype(numbers)::Acc>, grid, 256, 0, biases,
           width, static_cast<IO*>(sums));
  });
}

Status keep_existing(const Around& around, const void* x, int64_t width, void* into) {
  const Sizes& s = around.sizes;
  return with_numbers(around, [&](auto numbers, Launcher& launch) {
    using IO = typename decltype(numbers)::IO;
    launch("lstm_kernel_keep_existing", lstm_kernel_keep_existing<IO>, dim3(blocks_of(s.T * s.N)), threads_of(width), 0,
           static_cast<const IO*>(x), static_cast<IO*>(into), s.T, s.N, width, around.lengths);
  });
}

Status entering_states(const Around& around, const void* output, const void* h0, void* into) {
  const Sizes& s = around.sizes;
  return with_numbers(around, [&](auto numbers, Launcher& launch) {
    using IO = typename decltype(numbers)::IO;
    launch("lstm_kernel_entering_states", lstm_kernel_entering_states<IO>, dim3(blocks_of(s.D * s.T * s.N)),
           threads_of(s.P), 0, static_cast<const IO*>(output), static_cast<const IO*>(h0), static_cast<IO*>(into), s,
           Steps{s.T, s.N, around.reset_mask}, around.lengths);
  });
}

Status unprojected(const Around& around, const void* cells, const void* gates, void* into) {
  const Sizes& s = around.sizes;
  return with_numbers(around, [&](auto numbers, Launcher& launch) {
    using IO = typename decltype(numbers)::IO;
    using Acc = typename decltype(numbers)::Acc;
    launch("lstm_kernel_unprojected", lstm_kernel_unprojected<IO, Acc>, dim3(blocks_of(s.D * s.T * s.N)),
           threads_of(s.H), 0, static_cast<const Acc*>(cells), static_cast<const IO*>(gates), static_cast<Acc*>(into),
           s);
  });
}

}  // namespace fastlstm::cuda

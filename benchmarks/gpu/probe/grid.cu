// How fast the blocks of a grid give each other a step's state through the second-level cache: by the counter that the
// kernels use, and by words that say themselves of which step they are.
#include "cuda/costs.h"
#include "cuda/grid/exchange.h"
#include "probe.h"

namespace probe {

namespace {

using fastlstm::BFloat16;
using fastlstm::cuda::GridMemory;
using fastlstm::cuda::GridStates;
namespace ptx = fastlstm::ptx;

constexpr int kMostBlocks = 128;

// Sixteen units a block, eight rows: a number for half of the threads.
struct Shape {
  using IO = BFloat16;
  static constexpr int kThreads = 256, kUnits = 16, kRows = 8, kK = kMostBlocks * kUnits;
  static constexpr int kStateStride = kK * sizeof(IO) + 16, kStatesAt = 0;
};

__global__ void __launch_bounds__(Shape::kThreads) by_counter(GridMemory memory, int rounds, long long* clocks) {
  FASTLSTM_SHARED(shared);
  const int blocks = static_cast<int>(gridDim.x), row = threadIdx.x / Shape::kUnits, unit = threadIdx.x % Shape::kUnits;
  GridStates<Shape> states(shared, memory, 0, blocks, Shape::kRows, blocks * Shape::kUnits);
  BFloat16 x{static_cast<uint16_t>(threadIdx.x)};
  states.ready();
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) {
    const unsigned char* state = states.wait(k);
    if (k > 0) x = reinterpret_cast<const BFloat16*>(state)[threadIdx.x % Shape::kUnits];
    if (row < Shape::kRows) states.send(k + 1, row, blockIdx.x * Shape::kUnits + unit, x);
    states.sent();
  }
  states.wait(rounds);
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
}

// A word is 16 bits of the step's number and 16 of the state: two bytes in four, and no counter. As many words are
// under way at once as a thread reads.
__global__ void __launch_bounds__(Shape::kThreads) by_words(int* memory, int rounds, long long* clocks) {
  constexpr int kWords = Shape::kRows * Shape::kUnits;  // a block's
  const int words = static_cast<int>(gridDim.x) * kWords;
  int x = static_cast<int>(threadIdx.x);
  const long long start = clock64();
  for (int k = 1; k <= rounds; ++k) {
    const int step = k % 32767 + 1;
    int* to = memory + k % 2 * words;
    if (threadIdx.x < kWords) ptx::st_relaxed_gpu(to + blockIdx.x * kWords + threadIdx.x, step << 16 | (x & 0xffff));
    constexpr int kAtOnce = 8;
    for (int first = threadIdx.x; first < words; first += kAtOnce * Shape::kThreads) {
      int got[kAtOnce] = {};
      bool all = false;
      while (!all) {
        all = true;
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int at = first + i * Shape::kThreads;
          if (at < words && got[i] >> 16 != step) got[i] = ptx::ld_relaxed_gpu(to + at);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) all = all && (first + i * Shape::kThreads >= words || got[i] >> 16 == step);
      }
      x += got[0];
    }
    __syncthreads();  // the state is whole: the product may begin
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start + (x == -1);
}

}  // namespace

void probe_grid() {
  const double step = static_cast<double>(fastlstm::cuda::costs::kGridStep);
  for (int blocks : {8, 32, 64, 128}) {
    if (blocks > attribute(cudaDevAttrMultiProcessorCount)) continue;
    Launch launch;
    launch.grid = static_cast<unsigned>(blocks);
    launch.block = Shape::kThreads;
    launch.cooperative = true;
    char detail[80];
    std::snprintf(detail, sizeof detail, "%d blocks, 256 bytes from each", blocks);
    // Counters and step numbers begin anew with each launch.
    DeviceArray<int> words(2 * kMostBlocks * Shape::kRows * Shape::kUnits);
    launch.before = [&] { words.clear(); };
    say("all-gather over the grid, words with their step", detail, clocks_a_round(by_words, launch, words.get()),
        "clocks", step);

    DeviceArray<unsigned char> states(2 * Shape::kRows * GridStates<Shape>::kRowBytes);
    DeviceArray<int> counters(GridMemory::kCounterStride);
    launch.before = [&] { counters.clear(); };
    launch.shared_bytes = Shape::kRows * Shape::kStateStride;
    const GridMemory memory{states.get(), counters.get()};
    say("all-gather over the grid, a counter", detail, clocks_a_round(by_counter, launch, memory), "clocks", step);
  }
}

}  // namespace probe

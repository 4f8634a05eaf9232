// What the choice between the families of kernels assumes of the device, in one place: clocks, and bytes a clock, of
// one multiprocessor. `./run gpu probe` measures each beside the value here. Unmeasured so far: published figures of
// H100s.
#pragma once

#include <cstdint>

namespace fastlstm::cuda::costs {

constexpr int64_t kSchedulers = 4;
// From one mma.sync of a scheduler to its next: m16n8k16 of 16-bit factors, or m16n8k8 of tf32.
constexpr int64_t kMma = 7;
// From one mma.sync to the next that adds to the same sums.
constexpr int64_t kMmaLatency = 33;
// Fused multiply-adds of float32.
constexpr int64_t kMultipliersPerClock = 128;
constexpr int64_t kSharedBytesPerClock = 128;
// From the second-level cache into one multiprocessor, and into all of them together: 5.5 TB/s at 1.8 GHz, which 48 of
// them reach.
constexpr int64_t kCacheBytesPerClock = 64, kCacheBytesPerClockTogether = 3050;

// Clocks until `blocks` blocks, each on its own multiprocessor, have read `bytes` bytes each from the cache.
constexpr int64_t cache_clocks(int64_t blocks, int64_t bytes) {
  const int64_t alone = bytes / kCacheBytesPerClock, together = blocks * bytes / kCacheBytesPerClockTogether;
  return alone > together ? alone : together;
}

// From the other blocks of a cluster of `blocks` into the shared memory of one: published for 2 and 4, a fifth less for
// each doubling.
constexpr int64_t received_bytes_per_clock(int64_t blocks) {
  return blocks <= 2 ? 16 : blocks <= 4 ? 13 : blocks <= 8 ? 11 : 9;
}
// A step apart from its product and its bytes: sums, cell and synchronisation within a cluster; the same over the whole
// grid.
constexpr int64_t kClusterStep = 900, kGridStep = 2300;
// A launch until its first bytes have arrived: the step kernels pay it at each step.
constexpr int64_t kLaunch = 4500;
// A load from global memory.
constexpr int64_t kMemory = 1100;

}  // namespace fastlstm::cuda::costs

// What the choice between the families of kernels assumes of the device: clocks, and bytes a clock, of one multiprocessor. The one
// place for them; `./run gpu probe` measures each beside the value here. Unmeasured so far: published figures of H100s.
#pragma once

#include <cstdint>

namespace fastlstm::cuda::costs {

constexpr int64_t kSchedulers = 4;
// From one mma.sync of a scheduler to its next: m16n8k16 of 16-bit factors, or m16n8k8 of tf32 ones.
constexpr int64_t kMma = 7;
// Fused multiply-adds of float32 numbers.
constexpr int64_t kMultipliersPerClock = 128;
constexpr int64_t kSharedBytesPerClock = 128;
// From the second-level cache into one multiprocessor.
constexpr int64_t kCacheBytesPerClock = 64;
// From the other blocks of a cluster into one's shared memory.
constexpr int64_t kReceivedBytesPerClock = 18;
// A step beside its product and its bytes: sums, cell and readiness within a cluster; the same over the whole grid.
constexpr int64_t kClusterStep = 900, kGridStep = 2300;
// A launch, until its first bytes are there: each step of the step kernels has one.
constexpr int64_t kLaunch = 4500;
// From asking for bytes of global memory until they are there.
constexpr int64_t kMemory = 1100;

}  // namespace fastlstm::cuda::costs

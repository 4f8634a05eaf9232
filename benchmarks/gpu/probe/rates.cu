// What one multiprocessor does a clock: tensor cores, shared memory, the second-level cache; and how long memory takes.
#include "cuda/costs.h"
#include "cuda/device/numbers.h"
#include "probe.h"

namespace probe {

namespace {

namespace ptx = fastlstm::ptx;
namespace costs = fastlstm::cuda::costs;

// kChains of mma.sync a warp that do not wait for each other.
template <int kChains, bool kTF32>
__global__ void products(float* sink, int rounds, long long* clocks) {
  float sums[kChains][4] = {};
  const uint32_t a[4] = {threadIdx.x, 1, 2, 3}, b[2] = {threadIdx.x, 5};
  __syncthreads();
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) {
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
      if (kTF32) {
        ptx::mma_tf32(sums[chain], a, b);
      } else {
        ptx::mma_bf16(sums[chain], a, b);
      }
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
  float total = 0;
  for (int chain = 0; chain < kChains; ++chain) total += sums[chain][0];
  if (total == 1.25f) *sink = total;
}

constexpr int kReads = 8;

// Each thread reads 16 bytes at a time, a warp 512 in a row.
__global__ void shared_reads(float* sink, int rounds, long long* clocks) {
  constexpr int kThreads = 256;
  FASTLSTM_SHARED(shared);
  float4* memory = reinterpret_cast<float4*>(shared);
  for (int k = 0; k < kReads; ++k) memory[k * kThreads + threadIdx.x] = float4{1, 2, 3, 4};
  __syncthreads();
  float total = 0;
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) {
#pragma unroll
    for (int i = 0; i < kReads; ++i) {
      const volatile float* from = reinterpret_cast<const volatile float*>(memory + i * kThreads + threadIdx.x);
      total += from[0] + from[1] + from[2] + from[3];
    }
  }
  __syncthreads();
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
  if (total == 1.25f) *sink = total;
}

// Every block copies `bytes` in a round, from one place or each from its own.
__global__ void cache_reads(const unsigned char* from, int bytes, bool own, int rounds, long long* clocks) {
  FASTLSTM_SHARED(shared);
  if (own) from += static_cast<size_t>(blockIdx.x) * bytes;
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) {
    for (int at = threadIdx.x * 16; at < bytes; at += static_cast<int>(blockDim.x) * 16)
      ptx::cp_async_16(shared + at, from + at, true);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *clocks = clock64() - start;
}

// One thread, each address from the word before; all words are zero, which the compiler does not know.
__global__ void memory_chain(const unsigned* words, unsigned mask, int rounds, long long* clocks) {
  unsigned at = 1;
  const long long start = clock64();
  for (int k = 0; k < rounds; ++k) at = (at * 1664525u + 1013904223u + words[at]) & mask;
  *clocks = clock64() - start + (at > mask ? 1 : 0);
}

template <int kChains, bool kTF32>
void probe_products(const char* type) {
  DeviceArray<float> sink(1);
  char detail[80];
  for (int warps : {4, 8, 16}) {
    Launch launch;
    launch.block = static_cast<unsigned>(32 * warps);
    const double clocks = clocks_a_round(products<kChains, kTF32>, launch, sink.get());
    if (kChains == 1 && warps == costs::kSchedulers) {
      say("from an mma.sync to the next that adds to its sums", type, clocks, "clocks", costs::kMmaLatency);
    }
    std::snprintf(detail, sizeof detail, "%s, %d warps, %d chains", type, warps, kChains);
    say("mma.sync of a scheduler", detail, clocks / (kChains * warps / costs::kSchedulers), "clocks", costs::kMma);
  }
}

}  // namespace

void probe_rates() {
  probe_products<1, false>("bfloat16");
  probe_products<4, false>("bfloat16");
  probe_products<4, true>("tf32");

  Launch launch;
  launch.shared_bytes = 256 * kReads * sizeof(float4);
  DeviceArray<float> sink(1);
  say("read from shared memory", "8 warps", 256.0 * 16 * kReads / clocks_a_round(shared_reads, launch, sink.get()),
      "bytes a clock", costs::kSharedBytesPerClock);

  constexpr int kBytes = 64 << 10;
  const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  launch.grid = static_cast<unsigned>(multiprocessors);
  launch.shared_bytes = kBytes;
  DeviceArray<unsigned char> memory(static_cast<size_t>(kBytes) * multiprocessors);
  for (bool own : {false, true}) {
    const unsigned char* from = memory.get();
    const double clocks = clocks_a_round(cache_reads, launch, from, kBytes, own);
    say("from the second-level cache into a multiprocessor", own ? "each its own 64 KiB" : "all the same 64 KiB",
        kBytes / clocks, "bytes a clock", costs::kCacheBytesPerClock);
    say("from the second-level cache into all multiprocessors", own ? "each its own 64 KiB" : "all the same 64 KiB",
        multiprocessors * kBytes / clocks, "bytes a clock", costs::kCacheBytesPerClockTogether);
  }

  // More than any second-level cache holds; little where the numbers say nothing.
  const unsigned words = rounds() < 100 ? 1u << 10 : 1u << 27;
  DeviceArray<unsigned> far(words);
  Launch alone;
  alone.block = 1;
  say("from asking global memory until it answers", "one word after the other",
      clocks_a_round(memory_chain, alone, far.get(), words - 1), "clocks", costs::kMemory);
}

}  // namespace probe

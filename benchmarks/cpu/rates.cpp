// What the cores of this machine can do at most: multiply-adds and bfloat16 dot products a second, bytes read a second.
//
//   rates peaks SECONDS THREADS...     float32 multiply-adds and bfloat16 dot products, by every instruction set that
//   is here rates reads SECONDS THREADS...     half of each cache rates reads SECONDS THREADS... -- BYTES...    buffers
//   of these sizes
//
// Each rate is a line of JSON: what ("float32", "bfloat16" or "read"), with (the instructions, or the cache's name),
// threads, bytes (of the buffer, of all threads together), per_second (flops or bytes). SECONDS is spent on each; the
// best of many short repetitions counts.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa/processor.h"

#if defined(__linux__)
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Twelve sums that do not wait for each other hide the latency of two units of six clocks; with the factors, 14 of 16
// registers.
constexpr int kSums = 12;
// Loops begin with these, which the compiler must not know: a sum tends to kAddend / (1 - kFactor), and never to a
// denormal number.
volatile float kFactor = 0.5f, kAddend = 1.0f;
volatile float sink;

// One function for each instruction set: `type` with `set` (a number in every place) and `update` (of a sum). Sums are
// variables and no array, which some compilers would keep in memory.
#define PRODUCT_LOOP(name, attributes, type, set, update)                                                           \
  attributes void name(int64_t rounds) {                                                                            \
    const float factor = kFactor, addend = kAddend;                                                                 \
    const type a = set(factor), b = set(addend);                                                                    \
    type s0 = set(0), s1 = set(1), s2 = set(2), s3 = set(3), s4 = set(4), s5 = set(5);                              \
    type s6 = set(6), s7 = set(7), s8 = set(8), s9 = set(9), s10 = set(10), s11 = set(11);                          \
    for (int64_t r = 0; r < rounds; ++r) {                                                                          \
      update(s0) update(s1) update(s2) update(s3) update(s4) update(s5) update(s6) update(s7) update(s8) update(s9) \
          update(s10) update(s11)                                                                                   \
    }                                                                                                               \
    const type total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;                                 \
    float first;                                                                                                    \
    std::memcpy(&first, &total, sizeof(first));                                                                     \
    sink = first;                                                                                                   \
  }

// A loop over a buffer whose parts are gathered by "or", so that loads alone are what it waits for.
#define READ_LOOP(name, attributes, type)                             \
  attributes void name(const char* from, int64_t bytes) {             \
    constexpr int64_t kStep = 4 * sizeof(type);                       \
    type sums[4] = {};                                                \
    for (int64_t at = 0; at + kStep <= bytes; at += kStep) {          \
      const type* vectors = reinterpret_cast<const type*>(from + at); \
      for (int k = 0; k < 4; ++k) sums[k] |= vectors[k];              \
    }                                                                 \
    sums[0] |= sums[1] | sums[2] | sums[3];                           \
    int32_t first;                                                    \
    std::memcpy(&first, &sums[0], sizeof(first));                     \
    sink = static_cast<float>(first);                                 \
  }

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16), may_alias));

inline Float4 set_4(float x) { return Float4{x, x, x, x}; }
#define UPDATE_GENERIC(sum) sum = sum * a + b;
PRODUCT_LOOP(multiply_add_generic, , Float4, set_4, UPDATE_GENERIC)
READ_LOOP(read_generic, , Int4)

#if defined(__x86_64__)
#define TARGET(isa) __attribute__((target(isa)))
using Int8 = int32_t __attribute__((vector_size(32), may_alias));
using Int16 = int32_t __attribute__((vector_size(64), may_alias));

#define UPDATE_AVX2(sum) sum = _mm256_fmadd_ps(sum, a, b);
PRODUCT_LOOP(multiply_add_avx2, TARGET("avx2,fma"), __m256, _mm256_set1_ps, UPDATE_AVX2)
READ_LOOP(read_avx2, TARGET("avx2,fma"), Int8)

#define UPDATE_AVX512(sum) sum = _mm512_fmadd_ps(sum, a, b);
PRODUCT_LOOP(multiply_add_avx512, TARGET("avx512f"), __m512, _mm512_set1_ps, UPDATE_AVX512)
READ_LOOP(read_avx512, TARGET("avx512f"), Int16)

// By its mnemonic, since compilers came to know it, and to ask for it, at different times. Factors are the pairs (0,
// 0.5) and (0, 1).
#define UPDATE_PAIRS(sum) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
PRODUCT_LOOP(dot_avx512bf16, TARGET("avx512f"), __m512, _mm512_set1_ps, UPDATE_PAIRS)

// Four tiles of sums, two of each factor: as many as there are. A product is 16 x 16 sums of 32 products.
constexpr int64_t kTileFlops = 2 * 16 * 16 * 32, kTileProducts = 4;

void dot_amx(int64_t rounds) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) uint16_t factor[16 * 32];
  std::fill(std::begin(factor), std::end(factor), uint16_t{0x3f00});  // 0.5
  const int64_t stride = 64;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
  __asm__ volatile("tilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3" ::);
  __asm__ volatile(
      "tileloadd (%0,%1,1), %%tmm4\n\ttileloadd (%0,%1,1), %%tmm5\n\t"
      "tileloadd (%0,%1,1), %%tmm6\n\ttileloadd (%0,%1,1), %%tmm7" ::"r"(factor),
      "r"(stride)
      : "memory");
  for (int64_t r = 0; r < rounds; ++r) {
    __asm__ volatile(
        "tdpbf16ps %%tmm6, %%tmm4, %%tmm0\n\ttdpbf16ps %%tmm7, %%tmm4, %%tmm1\n\t"
        "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\n\ttdpbf16ps %%tmm7, %%tmm5, %%tmm3" ::);
  }
  __asm__ volatile("tilerelease" ::: "memory");
}
#endif

struct Loop {
  const char *what, *with;
  double flops;  // of a round
  void (*run)(int64_t rounds);
};

std::vector<Loop> product_loops() {
  std::vector<Loop> loops{{"float32", "generic", 2.0 * 4 * kSums, multiply_add_generic}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    loops.push_back({"float32", "avx2", 2.0 * 8 * kSums, multiply_add_avx2});
  }
  if (__builtin_cpu_supports("avx512f")) loops.push_back({"float32", "avx512", 2.0 * 16 * kSums, multiply_add_avx512});
  if (__builtin_cpu_supports("avx512bf16"))
    loops.push_back({"bfloat16", "avx512bf16", 2.0 * 32 * kSums, dot_avx512bf16});
  if (fastlstm::Processor::here().amx)
    loops.push_back({"bfloat16", "amx", double(kTileFlops * kTileProducts), dot_amx});
#endif
  return loops;
}

void (*read_loop())(const char*, int64_t) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_generic;
}

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// All threads leave when the last has come.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}
  void wait() {
    const int turn = turn_.load();
    if (arrived_.fetch_add(1) + 1 == count_) {
      arrived_.store(0);
      turn_.fetch_add(1);
    } else {
      while (turn_.load() == turn) std::this_thread::yield();
    }
  }

 private:
  const int count_;
  std::atomic<int> arrived_{0}, turn_{0};
};

// The shortest time from the first thread's start to the last one's end in which all do their `work` once, over
// `seconds` after as long a warm-up as lets a core rise to its clock. `prepare` gives a thread its work.
double best_seconds(int threads, double seconds, const std::function<std::function<void()>()>& prepare) {
  Barrier barrier(threads);
  std::vector<double> starts(threads), ends(threads);
  double best = 1e300;
  std::atomic<bool> more{true};
  constexpr int kLeast = 5;
  const double warm_until = now() + std::min(seconds, 0.05), stop = warm_until + seconds;
  const auto member = [&](int mine) {
    const std::function<void()> work = prepare();
    do work();
    while (now() < warm_until);
    for (int done = 1; more.load(); ++done) {
      barrier.wait();
      starts[mine] = now();
      work();
      ends[mine] = now();
      barrier.wait();
      if (mine == 0) {
        best = std::min(best,
                        *std::max_element(ends.begin(), ends.end()) - *std::min_element(starts.begin(), starts.end()));
        more.store(done < kLeast || now() < stop);
      }
      barrier.wait();
    }
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(member, t);
  member(0);
  for (std::thread& other : others) other.join();
  return best;
}

// So many rounds that one repetition takes about a millisecond, which is long beside reading the clock and short beside
// a time slice.
int64_t rounds_of(const Loop& loop) {
  int64_t rounds = 256;
  double took = 0;
  while (took < 2e-4) {
    rounds *= 2;
    const double start = now();
    loop.run(rounds);
    took = now() - start;
  }
  return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(rounds) * 1e-3 / took));
}

void print(const char* what, const char* with, int threads, int64_t bytes, double per_second) {
  std::printf("{\"what\": \"%s\", \"with\": \"%s\", \"threads\": %d, \"bytes\": %lld, \"per_second\": %.6g}\n", what,
              with, threads, static_cast<long long>(bytes), per_second);
  std::fflush(stdout);
}

void peaks(double seconds, const std::vector<int>& threads) {
  for (const Loop& loop : product_loops()) {
    const int64_t rounds = rounds_of(loop);
    for (const int count : threads) {
      const double took = best_seconds(count, seconds, [&] { return [&] { loop.run(rounds); }; });
      print(loop.what, loop.with, count, 0, loop.flops * static_cast<double>(rounds) * count / took);
    }
  }
}

// Each thread walks its own share of `bytes` again and again, 16 MiB in a repetition.
void read(const char* with, double seconds, int threads, int64_t bytes) {
  constexpr int64_t kLeastRead = int64_t{16} << 20, kAlignment = 4096, kStep = 256;
  const int64_t share = std::max(kStep, bytes / threads / kStep * kStep),
                passes = std::max<int64_t>(1, kLeastRead / share);
  const auto loop = read_loop();
  const double took = best_seconds(threads, seconds, [&]() -> std::function<void()> {
    const auto room =
        std::make_shared<std::vector<char>>(share + kAlignment, 1);  // touched by the thread that reads it
    const auto address = (reinterpret_cast<uintptr_t>(room->data()) + kAlignment - 1) / kAlignment * kAlignment;
    const char* from = reinterpret_cast<const char*>(address);
    return [=] {
      (void)room;  // kept as long as this is
      for (int64_t pass = 0; pass < passes; ++pass) loop(from, share);
    };
  });
  print("read", with, threads, bytes, static_cast<double>(share * passes * threads) / took);
}

// Of one instance of it; 0 where nothing tells. The processor is asked first: sysconf sums some AMD processors' third
// levels up.
int64_t cache_bytes(unsigned level) {
#if defined(__x86_64__)
  constexpr unsigned kData = 1, kUnified = 3;
  for (const unsigned leaf : {4u, 0x8000001du}) {
    unsigned a, b, c, d;
    for (unsigned index = 0; __get_cpuid_count(leaf, index, &a, &b, &c, &d) && (a & 31) != 0; ++index) {
      if ((a >> 5 & 7) != level || ((a & 31) != kData && (a & 31) != kUnified)) continue;
      return int64_t{1} * ((b >> 22) + 1) * ((b >> 12 & 1023) + 1) * ((b & 4095) + 1) *
             (int64_t{c} + 1);  // ways, partitions, line, sets
    }
  }
#endif
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return std::max<int64_t>(0, sysconf(names[level - 1]));
#else
  return 0;
#endif
}

// Half of it, which leaves room for what else is there; the third level is shared by the threads, the others are a
// core's own.
void read_caches(double seconds, int threads) {
  constexpr const char* kNames[] = {"L1", "L2", "L3"};
  for (unsigned level = 1; level <= 3; ++level) {
    const int64_t bytes = cache_bytes(level) / 2;
    if (bytes > 0) read(kNames[level - 1], seconds, threads, level == 3 ? bytes : bytes * threads);
  }
}

int main(int count, char** arguments) {
  const std::vector<std::string> given(arguments + 1, arguments + count);
  const auto divider = std::find(given.begin(), given.end(), "--");
  std::vector<int> threads;
  for (auto each = given.begin() + std::min<size_t>(2, given.size()); each < divider; ++each)
    threads.push_back(std::atoi(each->c_str()));
  if (threads.empty() || *std::min_element(threads.begin(), threads.end()) < 1 ||
      (given[0] != "peaks" && given[0] != "reads")) {
    std::fprintf(stderr, "usage: rates peaks|reads SECONDS THREADS... [-- BYTES...]\n");
    return 2;
  }
  const double seconds = std::atof(given[1].c_str());
  if (given[0] == "peaks") {
    peaks(seconds, threads);
    return 0;
  }
  for (const int each : threads) {
    if (divider == given.end()) read_caches(seconds, each);
    for (auto bytes = divider; bytes != given.end() && ++bytes != given.end();)
      read("buffer", seconds, each, std::atoll(bytes->c_str()));
  }
  return 0;
}

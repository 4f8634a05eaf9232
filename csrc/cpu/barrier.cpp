#include "cpu/barrier.h"

#include <algorithm>
#include <chrono>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastlstm {

namespace {

// How long a wait spins before it sleeps: as long as waking a thread took lately, from the call to the first
// instruction after it. Spinning that long before sleeping costs at most twice the better of the two. Never less than
// kLeast: workers of a step differ by some microseconds at every meeting, and would sleep through them
// (benchmarks/log.md).
class WakeUp {
 public:
  int64_t ns() const { return ns_.load(std::memory_order_relaxed); }

  void saw(int64_t ns) {
    const int64_t before = ns_.load(std::memory_order_relaxed);
    ns_.store(std::clamp(std::min(ns, before + before / 16), kLeast, kMost), std::memory_order_relaxed);
  }

 private:
  static constexpr int64_t kLeast = 50'000, kMost = 200'000;
  std::atomic<int64_t> ns_{kLeast};  // until a longer one is seen
};

WakeUp wake_up;

#if defined(__linux__)
void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
}
#else
void sleep_while(std::atomic<uint32_t>&, uint32_t) { std::this_thread::yield(); }
void wake_all(std::atomic<uint32_t>&) {}
#endif

}  // namespace

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t& waited_ns() {
  thread_local int64_t waited = 0;
  return waited;
}

void Barrier::wait_long(int64_t target) {
  const int64_t began = now_ns(), limit = began + wake_up.ns();
  int64_t now = began;
  while (!reached(arrived_.load(std::memory_order_acquire), target) && now < limit) {
    for (int k = 0; k < 16; ++k) pause();
    now = now_ns();
  }
  if (now >= limit) {
    sleepers_.fetch_add(1);
    bool slept = false;
    for (uint32_t count; !reached(count = arrived_.load(), target); slept = true) sleep_while(arrived_, count);
    sleepers_.fetch_sub(1);
    now = now_ns();
    const int64_t woken = woken_ns_.load(std::memory_order_relaxed);
    if (slept && woken > began) wake_up.saw(now - woken);
  }
  waited_ns() += now - began;
}

void Barrier::wake() {
  woken_ns_.store(now_ns(), std::memory_order_relaxed);
  wake_all(arrived_);
}

}  // namespace fastlstm

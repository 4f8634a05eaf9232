// Barrier of a group's workers. A wait checks a few times, then spins (50 us, or as long as waking a thread takes
// here), then sleeps, so that the worker it waits for can have its core.
#pragma once

#include <atomic>
#include <cstdint>

namespace fastlstm {

// Monotonic clock.
int64_t now_ns();

// Time this thread has waited at barriers so far, without the first checks.
int64_t& waited_ns();

// The count of arrivals only grows and may wrap, so targets are compared by distance; a worker that runs ahead does no
// harm. With fewer workers than shares, one worker stands for several and arrives for all of them.
class alignas(64) Barrier {
 public:
  void arrive_and_wait(int arriving, int64_t target) {
    arrive(arriving, target);
    wait(target);
  }

  // `target` is the count at which this meeting is complete.
  void arrive(int arriving, int64_t target) {
    const uint32_t count = arrived_.fetch_add(arriving) + arriving;
    if (reached(count, target) && sleepers_.load() > 0) wake();
  }

  void wait(int64_t target) {
    constexpr int kLooks = 64;
    for (int looks = 0; !reached(arrived_.load(std::memory_order_acquire), target); ++looks) {
      if (looks == kLooks) return wait_long(target);
      pause();
    }
  }

 private:
  static bool reached(uint32_t count, int64_t target) {
    return static_cast<int32_t>(count - static_cast<uint32_t>(target)) >= 0;
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void wait_long(int64_t target);
  void wake();

  std::atomic<uint32_t> arrived_{0};  // the word that sleepers wait on
  std::atomic<int> sleepers_{0};
  std::atomic<int64_t> woken_ns_{0};
};

}  // namespace fastlstm

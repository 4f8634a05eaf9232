// Workers that meet many times, some of them late; and the account of what sharing gains. Exits with the number of
// failures.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/team.h"

namespace {

int failures = 0;

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("%s\n", what);
  ++failures;
}

// Between two meetings every worker adds to its own place what it reads at the others' of the meeting before.
void meetings(int workers, int count, int late_every) {
  std::vector<int64_t> values[2] = {std::vector<int64_t>(workers, 1), std::vector<int64_t>(workers, 0)};
  fastlstm::Barrier barrier;
  std::atomic<bool> right{true};
  std::vector<std::thread> threads;
  for (int w = 0; w < workers; ++w) {
    threads.emplace_back([&, w] {
      for (int64_t m = 0; m < count; ++m) {
        if (late_every > 0 && (m + w) % late_every == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        const auto& before = values[m % 2];
        for (int64_t v : before) {
          if (v != m + 1) right = false;
        }
        values[(m + 1) % 2][w] = m + 2;
        barrier.arrive_and_wait(1, (m + 1) * workers);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  expect(right, "a worker went on before the others had come");
}

// Counts near the end of 32 bits.
void wrapping() {
  fastlstm::Barrier barrier;
  const int64_t far = (int64_t{1} << 32) - 3;
  for (int64_t come = 0, step = 1 << 30; come < far; come += step) {
    if (come + step > far) step = far - come;
    barrier.arrive_and_wait(static_cast<int>(step), come + step);
  }
  std::thread other([&] { barrier.arrive_and_wait(2, far + 5); });
  barrier.arrive_and_wait(3, far + 5);
  other.join();
}

void waiting_is_counted() {
  fastlstm::Barrier barrier;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    barrier.arrive(1, 2);
  });
  const int64_t before = fastlstm::waited_ns();
  barrier.arrive_and_wait(1, 2);
  other.join();
  expect(fastlstm::waited_ns() > before, "a wait was not counted");
}

void credit() {
  using fastlstm::Credit;
  Credit fresh;
  expect(fresh.good(), "the first call is not shared");
  Credit free;
  for (int k = 0; k < 100; ++k) free.shared(1'100'000, 1'000'000, 2, 1);
  free.shared(Credit::kMost / 2, 1'000, 2, 1);
  expect(free.good(), "one hiccup counts");
  Credit crowded;
  int64_t lost = 0;
  while (crowded.good()) {
    crowded.shared(6'000'000, 1'000'000, 2, 1);
    lost += 4'000'000;
  }
  expect(lost <= Credit::kMost + 4'000'000, "it is shared for too long");
  int64_t alone = 0;
  for (; !crowded.good(); alone += 1'000'000) crowded.alone(1'000'000);
  expect(alone >= Credit::kPayment * (lost - Credit::kMost - 1'000'000), "it is tried again too soon");
  expect(alone <= Credit::kPayment * lost, "it is never tried again");
  crowded.shared(6'000'000, 1'000'000, 2, 1);
  expect(!crowded.good(), "a loss after it counts for nothing");
  Credit thirds;  // two of three shares are the caller's: alone it takes half as long again
  for (int k = 0; k < 1'000'000 && thirds.good(); ++k) thirds.shared(1'400'000, 1'000'000, 3, 2);
  expect(thirds.good(), "uneven shares are taken for a loss");
}

}  // namespace

int main() {
  meetings(1, 100, 0);
  meetings(2, 20'000, 0);
  meetings(8, 500, 0);  // more than there are cores
  meetings(3, 300, 3);
  wrapping();
  waiting_is_counted();
  credit();
  return failures;
}

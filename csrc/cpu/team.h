// How many workers a call is planned for, and whether a team of them runs its parts or the calling thread alone.
//
// The plan, and with it every bit of the results, depends on the number of workers planned for, never on who runs the
// parts. So a thread whose workers keep being late, because other processes have the cores, may go on alone at any
// time.
#pragma once

#include <cstdint>

#include "cpu/threads.h"

namespace fastlstm {

// The time that sharing has saved against the caller working alone. Credit has an upper limit, and a single delay does
// not use it up. Once it is negative, calls run alone until they have taken kPayment times what was lost; so sharing
// costs a thread at most 1 / kPayment of its time on a busy machine, and is tried again soon.
class Credit {
 public:
  static constexpr int64_t kMost = 50'000'000, kPayment = 20;  // ns

  bool good() const { return ns_ >= 0; }
  // A region of `shares`, of which the caller ran `own`; these took it `busy` of the `total` time.
  void shared(int64_t total, int64_t busy, int64_t shares, int64_t own) {
    ns_ += busy * shares / own - total;
    if (ns_ > kMost) ns_ = kMost;
  }
  void alone(int64_t total) {
    if (ns_ < 0) ns_ += total / kPayment + 1;
  }

 private:
  int64_t ns_ = kMost;
};

// The number of workers to plan for when torch's thread count is `asked`: at most the number of cores, and one in a
// thread that has no workers (openmp.h).
int planned_workers(int asked);

// fn over [0, n) as ParallelFor says, run by `team` (torch's threads, `asked` of them) or by the caller.
void run_by_team(ParallelFor team, int asked, int64_t n, void (*fn)(int64_t, int64_t, void*), void* context);

}  // namespace fastlstm

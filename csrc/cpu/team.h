// How many workers a call is planned for, and whether its parts are then run by a team of them or by the calling thread
// alone.
//
// The plan of a call, and with it every bit of its results, depends on the number of workers that it is made for, never
// on who runs the parts. So a thread whose workers keep being late, because others have the cores, may go on alone at
// any time.
#pragma once

#include <cstdint>

#include "cpu/threads.h"

namespace fastlstm {

// What sharing has gained, on a clock, against what the caller alone would have taken. Credit is kept up to a limit, so
// that a hiccup does not count; once it is used up, the calls that follow are run alone until they have taken kPayment
// times what was lost. Sharing then costs a thread at most a share of 1 / kPayment of its time, however full the
// machine is, and is tried again soon.
class Credit {
 public:
  static constexpr int64_t kMost = 50'000'000, kPayment = 20;  // ns

  bool good() const { return ns_ >= 0; }
  // A region of `shares`, `own` of them the caller's, which took it `busy` of `total`.
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

// How many workers a call is planned for where torch's thread count is `asked`: no more than there are cores for, and
// one in a thread that has no workers (openmp.h).
int planned_workers(int asked);

// fn over [0, n) as ParallelFor says, by `team` (torch's threads, `asked` of them) or by the caller.
void run_by_team(ParallelFor team, int asked, int64_t n, void (*fn)(int64_t, int64_t, void*), void* context);

}  // namespace fastlstm

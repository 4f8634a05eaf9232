#include "cpu/team.h"

#include <algorithm>

#include "cpu/barrier.h"
#include "cpu/cores.h"
#include "cpu/openmp.h"

namespace fastlstm {

namespace {

struct Region {
  void (*const fn)(int64_t, int64_t, void*);
  void* const context;
  const int64_t shares;
  Barrier finish{};
  // The caller's part:
  int64_t own = 0, began = 0, ended = 0, waited = 0;

  void run(int64_t begin, int64_t end) {
    struct Arrival {
      Region& region;
      const int64_t count;
      ~Arrival() { region.finish.arrive(static_cast<int>(count), region.shares); }
    } arrival{*this, end - begin};
    if (begin != 0) return fn(begin, end, context);
    own = end;
    waited = -waited_ns();
    began = now_ns();
    fn(begin, end, context);
    ended = now_ns();
    waited += waited_ns();
  }
};

// Sets OpenMP's thread count for a while: with more threads than cores, threads without a share would take cores from
// the others.
class TeamSize {
 public:
  TeamSize(int asked, int planned) : asked_(asked), changed_(planned < asked && openmp().set_num_threads != nullptr) {
    if (changed_) openmp().set_num_threads(planned);
  }
  ~TeamSize() {
    if (changed_) openmp().set_num_threads(asked_);
  }

 private:
  const int asked_;
  const bool changed_;
};

thread_local Credit credit;
thread_local int planned = 1;

}  // namespace

int planned_workers(int asked) {
  if (asked > 1) asked = without_workers() ? 1 : std::min(asked, allowed_cores());
  return planned = asked;
}

void run_by_team(ParallelFor team, int asked, int64_t n, void (*fn)(int64_t, int64_t, void*), void* context) {
  const int64_t start = now_ns();
  if (without_workers() || (!credit.good() && given_cores() == 0)) {
    fn(0, n, context);
    return credit.alone(now_ns() - start);
  }
  Region region{fn, context, n};
  {
    const TeamSize size(asked, planned);
    team(
        n,
        [](int64_t begin, int64_t end, void* p) {
          auto& r = *static_cast<Region*>(p);
          r.run(begin, end);
          // The caller waits here, and not in the framework, which spins for milliseconds.
          if (begin == 0) r.finish.wait(r.shares);
        },
        &region);
  }
  const int64_t busy = region.ended - region.began - region.waited;
  if (region.own < n) credit.shared(now_ns() - start, busy, n, region.own);
}

}  // namespace fastlstm

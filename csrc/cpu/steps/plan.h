// How a call is shared out over threads: D directions x R groups of rows x U shares of the hidden units.
//
// Rows are independent, so groups and directions never wait for each other. The U workers of a group hold slices of the
// weights that fit their caches, and meet at a barrier at every step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cpu/barrier.h"
#include "cpu/caches.h"
#include "cpu/recurrence.h"
#include "cpu/threads.h"

namespace fastlstm {

struct Plan {
  int D, R, U;
  std::vector<int64_t> rows;         // the rows in the order of the groups; an index into it is a "slot"
  std::vector<int64_t> lengths;      // of each slot, 0..T; in falling order within a group
  std::vector<int64_t> group_begin;  // R + 1 slots

  int workers() const { return D * R * U; }

  // How many slots of [begin, end), all in one group, have step t.
  int64_t active(int64_t begin, int64_t end, int64_t t) const {
    const auto first = lengths.begin() + begin, last = lengths.begin() + end;
    return std::partition_point(first, last, [t](int64_t length) { return length > t; }) - first;
  }
};

// In which pass a step is. Backward, workers that share units hand each other 4H numbers of every row, forward H.
enum class Pass { kForward, kBackward };

inline void choose_grid(Plan& plan, const Sizes& s, int64_t weight_bytes, int threads, Pass pass) {
  // With less arithmetic in a step, a thread's share is not worth the barrier (measured: benchmarks/log.md).
  constexpr double kFlopsPerMeeting = 6e4, kFlopsPerThread = 2e6;
  constexpr int64_t kRowsToStream = 32;        // as many rows hide a stream of weights from the third-level cache
  constexpr int64_t kRowsOfFullProducts = 16;  // blocks of five and six
  const double step_flops = 8.0 * s.N * s.H * s.P;
  const double all_flops = step_flops * s.T * s.D;
  const int useful = static_cast<int>(std::min<double>(threads, 1 + all_flops / kFlopsPerThread));
  const int per_direction = std::max(1, useful / plan.D);
  const bool split_rows = weight_bytes <= second_level_bytes() / 2 || s.N >= kRowsToStream * per_direction;
  plan.R = plan.U = 1;
  if (split_rows) plan.R = static_cast<int>(std::clamp<int64_t>(s.N / 4, 1, per_direction));
  // A product of few rows loads weights for few multiply-adds. Forward, two workers that share twice the rows by units
  // are faster than each with its own.
  const bool few_rows = s.N < kRowsOfFullProducts * plan.R, pairs = plan.R % 2 == 0 && per_direction / plan.R == 1;
  if (pass == Pass::kForward && few_rows && pairs && s.H > 16 && 2 * step_flops / plan.R > kFlopsPerMeeting)
    plan.R /= 2;
  if (step_flops / plan.R > kFlopsPerMeeting) {
    plan.U = static_cast<int>(std::clamp<int64_t>(per_direction / plan.R, 1, (s.H + 15) / 16));
  }
}

inline Plan make_plan(const Sizes& s, const int64_t* lengths, int64_t weight_bytes, int threads,
                      Pass pass = Pass::kBackward) {
  Plan plan;
  plan.D = static_cast<int>(s.D);
  choose_grid(plan, s, weight_bytes, threads, pass);
  std::vector<int64_t> order(s.N);
  std::iota(order.begin(), order.end(), int64_t{0});
  const auto length_of = [&](int64_t row) {
    return lengths == nullptr ? s.T : std::clamp<int64_t>(lengths[row], 0, s.T);
  };
  if (lengths != nullptr) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return length_of(a) > length_of(b); });
  }
  plan.group_begin.push_back(0);
  for (int r = 0; r < plan.R; ++r) {
    if (lengths == nullptr) {
      const int64_t begin = s.N * r / plan.R, end = s.N * (r + 1) / plan.R;
      plan.rows.insert(plan.rows.end(), order.begin() + begin, order.begin() + end);
    } else {
      // Every R-th of the sorted rows, so that each group gets long and short ones.
      for (int64_t k = r; k < s.N; k += plan.R) plan.rows.push_back(order[k]);
    }
    plan.group_begin.push_back(static_cast<int64_t>(plan.rows.size()));
  }
  for (int64_t row : plan.rows) plan.lengths.push_back(length_of(row));
  return plan;
}

// Runs body(direction, group, first share, last share, barrier), covering every share of every group once. One call may
// stand for several shares; it must take them through each step together before it meets the others.
template <class Body>
void run_plan(const Plan& plan, const Threads& threads, const Body& body) {
  struct Context {
    const Plan& plan;
    const Body& body;
    std::vector<Barrier> barriers;
  } context{plan, body, std::vector<Barrier>(plan.D * plan.R)};
  const auto run = [](int64_t begin, int64_t end, void* p) {
    auto& c = *static_cast<Context*>(p);
    const int U = c.plan.U;
    // Groups in rising order: a thread with shares of two groups then never keeps the later one's workers waiting for
    // ever.
    for (int64_t group = begin / U; group * U < end; ++group) {
      const int first = static_cast<int>(std::max(begin, group * U) - group * U);
      const int last = static_cast<int>(std::min(end, (group + 1) * U) - group * U);
      c.body(static_cast<int>(group / c.plan.R), static_cast<int>(group % c.plan.R), first, last, c.barriers[group]);
    }
  };
  if (plan.workers() == 1) {
    run(0, 1, &context);
  } else {
    threads.parallel_for(plan.workers(), run, &context);
  }
}

}  // namespace fastlstm

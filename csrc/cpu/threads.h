// The framework's threads, and sharing work over them that needs no barrier.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastlstm {

// fn(begin, end, context) over parts of [0, n), on the framework's threads.
using ParallelFor = void (*)(int64_t n, void (*fn)(int64_t, int64_t, void*), void* context);

struct Threads {
  int count;
  ParallelFor parallel_for;
};

// Work below twice this is one thread's (share_out).
inline constexpr int64_t kElementsPerThread = 1 << 15;

// body(n) for n in [0, count), on as many threads as the plan has workers, fewer if the work (in elements) is small.
template <class Body>
void share_out(const Threads& threads, int workers, int64_t count, int64_t work, const Body& body) {
  struct Context {
    const Body& body;
    int64_t count, shares;
  } context{body, count, std::clamp<int64_t>(work / kElementsPerThread, 1, workers)};
  const auto run = [](int64_t begin, int64_t end, void* p) {
    const auto& c = *static_cast<Context*>(p);
    for (int64_t n = c.count * begin / c.shares; n < c.count * end / c.shares; ++n) c.body(n);
  };
  if (context.shares == 1) {
    run(0, 1, &context);
  } else {
    threads.parallel_for(context.shares, run, &context);
  }
}

}  // namespace fastlstm

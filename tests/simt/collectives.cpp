#include "collectives.h"

#include <cstring>

namespace simt {
namespace {

std::string lanes(uint32_t mask) {
  std::string list;
  for (unsigned from = 0; from < kLanes; ++from) {
    if (!(mask >> from & 1)) continue;
    unsigned to = from;
    while (to + 1 < kLanes && mask >> (to + 1) & 1) ++to;
    list += (list.empty() ? "" : ",") + std::to_string(from) + (to > from ? "-" + std::to_string(to) : "");
    from = to;
  }
  return list;
}

[[noreturn]] void fail_together(const char* name, const std::string& other, const WarpOperation& operation,
                                const Place& place) {
  fail(Failure::divergence,
       std::string("a lane is at ") + name + other + " while lanes " + lanes(operation.arrived) +
           " of its warp wait in " + operation.name + " at " + text(operation.place),
       place);
}

// The operation that this lane comes to, its own if it is the first.
size_t join(Warp& warp, const char* name, bool aligned, uint32_t mask, unsigned lane, const Place& place) {
  if (!(mask >> lane & 1)) fail(Failure::misuse, std::string(name) + ": this lane is not in the mask", place);
  if (mask & ~warp.exists) {
    fail(Failure::misuse, std::string(name) + ": the warp has no lanes " + lanes(mask & ~warp.exists), place);
  }
  if (mask & warp.finished) {
    fail(Failure::divergence, std::string(name) + ": lanes " + lanes(mask & warp.finished) + " have ended", place);
  }
  for (size_t i = 0; i < warp.operations.size(); ++i) {
    WarpOperation& operation = warp.operations[i];
    if (operation.mask == mask) {
      if (std::strcmp(operation.name, name) != 0) fail_together(name, "", operation, place);
      if (aligned && !same(operation.place, place)) fail_together(name, ", elsewhere,", operation, place);
      return i;
    }
    // Each of the two would wait for the other.
    if ((operation.mask >> lane & 1) && (operation.arrived & mask)) fail_together(name, "", operation, place);
  }
  warp.operations.push_back({name, place, mask, 0});
  return warp.operations.size() - 1;
}

}  // namespace

void warp_operation(const char* name, bool aligned, uint32_t mask, void* operand,
                    void (*compute)(Warp& warp, uint32_t mask), const Place& place) {
  preempt();
  Thread& thread = self();
  Warp& warp = *thread.warp;
  const size_t i = join(warp, name, aligned, mask, thread.lane, place);
  WarpOperation& operation = warp.operations[i];
  warp.operand[thread.lane] = operand;
  operation.arrived |= 1u << thread.lane;
  if (operation.arrived != mask) {
    wait_for({name, place, nullptr, 0});
    return;
  }
  warp.operations[i] = warp.operations.back();
  warp.operations.pop_back();
  if (compute) compute(warp, mask);
  for (uint32_t others = mask & ~(1u << thread.lane); others; others &= others - 1) {
    make_ready(warp.thread(static_cast<unsigned>(__builtin_ctz(others))));
  }
  preempt();
}

uint32_t vote(const char* name, unsigned mask, bool predicate, Place place) {
  struct Vote {
    bool predicate;
    uint32_t ballot;
  };
  Vote operand{predicate, 0};
  warp_operation(
      name, false, mask, &operand,
      [](Warp& warp, uint32_t lanes) {
        uint32_t ballot = 0;
        for (uint32_t left = lanes; left; left &= left - 1) {
          const int lane = __builtin_ctz(left);
          ballot |= static_cast<uint32_t>(static_cast<const Vote*>(warp.operand[lane])->predicate) << lane;
        }
        for (uint32_t left = lanes; left; left &= left - 1) {
          static_cast<Vote*>(warp.operand[__builtin_ctz(left)])->ballot = ballot;
        }
      },
      place);
  return operand.ballot;
}

BlockVotes block_barrier(const char* name, int predicate, const Place& place) {
  preempt();
  Thread& thread = self();
  Block& block = *thread.block;
  auto& barrier = block.barrier;
  if (block.live < block.threads.size()) {
    fail(Failure::divergence,
         std::string(name) + " for all threads, of which " + std::to_string(block.threads.size() - block.live) +
             " have ended",
         place);
  }
  if (barrier.arrived == 0) {
    barrier.name = name;
    barrier.place = place;
    barrier.sum = 0;
    barrier.all = 1;
  } else if (std::strcmp(barrier.name, name) != 0 || !same(barrier.place, place)) {
    fail(Failure::divergence,
         std::string("a thread is in ") + name + " while " + std::to_string(barrier.arrived) +
             " of its block wait in " + barrier.name + " at " + text(barrier.place),
         place);
  }
  barrier.sum += predicate != 0;
  barrier.all &= predicate != 0;
  if (++barrier.arrived < block.threads.size()) {
    wait_for({name, place, nullptr, 0});
  } else {
    barrier.arrived = 0;
    barrier.result_sum = barrier.sum;
    barrier.result_all = barrier.all;
    for (Thread& other : block.threads) {
      if (&other != &thread) make_ready(other);
    }
  }
  // Nobody can complete the next barrier, and overwrite this, before this thread has left here.
  const BlockVotes votes{barrier.result_sum, barrier.result_all};
  preempt();
  return votes;
}

void complete_cluster_barrier(Cluster& cluster) {
  if (cluster.arrived == 0 || cluster.arrived < cluster.live) return;
  cluster.arrived = 0;
  ++cluster.completed;
  for (Thread* waiting : cluster.waiting) make_ready(*waiting);
  cluster.waiting.clear();
  progress();
}

void cluster_barrier_arrive(const Place& place) {
  warp_operation("cluster_arrive_release", true, ~0u, nullptr, nullptr, place);
  Thread& thread = self();
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_arrivals > thread.cluster_waits) {
    fail(Failure::misuse, "cluster_arrive_release twice, with no cluster_wait_acquire in between", place);
  }
  ++thread.cluster_arrivals;
  ++cluster.arrived;
  complete_cluster_barrier(cluster);
}

void cluster_barrier_wait(const Place& place) {
  warp_operation("cluster_wait_acquire", true, ~0u, nullptr, nullptr, place);
  Thread& thread = self();
  Cluster& cluster = *thread.block->cluster;
  if (thread.cluster_waits == thread.cluster_arrivals) {
    fail(Failure::misuse, "cluster_wait_acquire without a cluster_arrive_release before it", place);
  }
  ++thread.cluster_waits;
  if (cluster.completed < thread.cluster_waits) {
    cluster.waiting.push_back(&thread);
    wait_for({"cluster_wait_acquire", place, nullptr, 0});
  }
  preempt();
}

}  // namespace simt

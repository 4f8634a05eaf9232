#include "threads.h"

#include <algorithm>
#include <cstring>

#include "collectives.h"

namespace simt {
namespace {

unsigned count(const dim3& d) { return d.x * d.y * d.z; }

uint3 coordinates(unsigned linear, const dim3& extent) {
  return {linear % extent.x, linear / extent.x % extent.y, linear / extent.x / extent.y};
}

std::string triple(unsigned x, unsigned y, unsigned z) {
  return "(" + std::to_string(x) + "," + std::to_string(y) + "," + std::to_string(z) + ")";
}

// Used again from launch to launch.
std::vector<std::unique_ptr<Block>>& blocks() {
  static auto* all = new std::vector<std::unique_ptr<Block>>;
  return *all;
}

std::vector<std::unique_ptr<Cluster>>& clusters() {
  static auto* all = new std::vector<std::unique_ptr<Cluster>>;
  return *all;
}

template <class T>
T& nth(std::vector<std::unique_ptr<T>>& all, size_t n) {
  while (all.size() <= n) all.push_back(std::make_unique<T>());
  return *all[n];
}

void make_block(const Launch& launch, Block& block, uint3 index) {
  const unsigned threads = count(launch.block);
  block.index = index;
  block.live = threads;
  block.ended = false;
  block.barrier = {};
  block.shared.allocate(launch.shared_bytes);
  block.threads.resize(threads);
  block.warps.resize((threads + kLanes - 1) / kLanes);
  for (unsigned w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    warp.block = &block;
    warp.first = w * kLanes;
    const unsigned lanes = std::min(kLanes, threads - warp.first);
    warp.exists = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warp.ready = warp.polling = warp.finished = 0;
    warp.ready_slot = warp.polling_slot = -1;
    warp.operations.clear();
  }
  for (unsigned t = 0; t < threads; ++t) {
    Thread& thread = block.threads[t];
    thread.block = &block;
    thread.warp = &block.warps[t / kLanes];
    thread.lane = t % kLanes;
    thread.linear = t;
    thread.index = coordinates(t, launch.block);
    thread.wait = {};
    thread.copies.clear();
    thread.open_group = 0;
    thread.cluster_arrivals = thread.cluster_waits = 0;
    thread.polls = 0;
    for (auto& seen : thread.seen) seen = {};
  }
}

void land(Thread& thread, size_t i) {
  const AsyncCopy copy = thread.copies[i];
  thread.copies[i] = thread.copies.back();
  thread.copies.pop_back();
  if (copy.from) {
    std::memcpy(copy.to, copy.from, 16);
  } else {
    std::memset(copy.to, 0, 16);
  }
}

std::string waits_for(const Thread& thread) {
  const bool polls = thread.wait.address != nullptr;
  std::string line =
      std::string(polls ? " polls " : " waits in ") + thread.wait.what + " at " + text(thread.wait.place);
  if (polls) line += ", and sees " + std::to_string(static_cast<int64_t>(thread.wait.value));
  for (const Mbarrier& mbarrier : thread.block->shared.mbarriers) {
    if (thread.block->shared.data() + mbarrier.offset != thread.wait.address) continue;
    line += ": phase " + std::to_string(mbarrier.phase) + " of the mbarrier made at " + text(mbarrier.made) +
            " lacks " + std::to_string(mbarrier.pending) + " of " + std::to_string(mbarrier.count) + " arrivals and " +
            std::to_string(mbarrier.bytes) + " bytes";
  }
  return line;
}

}  // namespace

std::vector<unsigned> block_groups(const Launch& launch) {
  const unsigned n = launch.cooperative ? 1 : count(launch.grid) / count(launch.cluster);
  std::vector<unsigned> groups(n);
  for (unsigned i = 0; i < n; ++i) groups[i] = i;
  return groups;
}

void make_group(const Launch& launch, unsigned group, void (*admit)(Block&)) {
  const unsigned size = count(launch.cluster);
  const dim3 grid_of_clusters(launch.grid.x / launch.cluster.x, launch.grid.y / launch.cluster.y,
                              launch.grid.z / launch.cluster.z);
  const unsigned n = launch.cooperative ? count(grid_of_clusters) : 1;
  for (unsigned c = 0; c < n; ++c) {
    Cluster& cluster = nth(clusters(), c);
    cluster.size = size;
    cluster.blocks.clear();
    cluster.live = size * count(launch.block);
    cluster.arrived = 0;
    cluster.completed = 0;
    cluster.waiting.clear();
    const uint3 base = coordinates(group + c, grid_of_clusters);
    for (unsigned rank = 0; rank < size; ++rank) {
      Block& block = nth(blocks(), c * size + rank);
      const uint3 inside = coordinates(rank, launch.cluster);
      make_block(launch, block,
                 {base.x * launch.cluster.x + inside.x, base.y * launch.cluster.y + inside.y,
                  base.z * launch.cluster.z + inside.z});
      block.cluster = &cluster;
      block.rank = rank;
      cluster.blocks.push_back(&block);
    }
  }
  for (unsigned b = 0; b < n * size; ++b) admit(*blocks()[b]);
}

void check_end(const Thread& thread) {
  const Block& block = *thread.block;
  if (block.barrier.arrived > 0) {
    fail(Failure::divergence,
         "a thread ends while " + std::to_string(block.barrier.arrived) + " of its block wait in " + block.barrier.name,
         block.barrier.place);
  }
  for (const WarpOperation& operation : thread.warp->operations) {
    if (operation.mask >> thread.lane & 1) {
      fail(Failure::divergence, std::string("a lane ends while others of its warp wait in ") + operation.name,
           operation.place);
    }
  }
}

bool end_thread(Thread& thread) {
  Block& block = *thread.block;
  Cluster& cluster = *block.cluster;
  thread.warp->finished |= 1u << thread.lane;
  land_copies_before(thread, ~0u);
  // The barrier of a cluster waits for the threads that have not ended.
  const bool had_arrived = thread.cluster_arrivals > cluster.completed;
  --cluster.live;
  if (had_arrived) --cluster.arrived;
  complete_cluster_barrier(cluster);
  if (--block.live > 0) return false;
  block.ended = true;
  if (block.shared.stores_under_way > 0) {
    fail(Failure::misuse,
         "block " + triple(block.index.x, block.index.y, block.index.z) +
             " has ended, and st_async is still under way to its shared memory",
         thread.wait.place);
  }
  check_all_bytes_came(block.shared);
  block.shared.release();
  return true;
}

void land_one_copy(Thread& thread) {
  if (!thread.copies.empty()) land(thread, draw(static_cast<unsigned>(thread.copies.size())));
}

void land_copies_before(Thread& thread, unsigned group) {
  for (size_t i = 0; i < thread.copies.size();) {
    if (thread.copies[i].group < group) {
      land(thread, i);
    } else {
      ++i;
    }
  }
}

std::string text(const Thread& thread) {
  const uint3& b = thread.block->index;
  return "block " + triple(b.x, b.y, b.z) + " thread " + triple(thread.index.x, thread.index.y, thread.index.z);
}

bool same(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string text(const Place& place) {
  const char* slash = std::strrchr(place.file, '/');
  return std::string(slash ? slash + 1 : place.file) + ":" + std::to_string(place.line);
}

std::string describe(const Launch& launch) {
  const dim3 &g = launch.grid, &b = launch.block, &c = launch.cluster;
  std::string line = "grid " + triple(g.x, g.y, g.z) + ", block " + triple(b.x, b.y, b.z);
  if (count(c) > 1) line += ", cluster " + triple(c.x, c.y, c.z);
  if (launch.cooperative) line += ", cooperative";
  return line + ", " + std::to_string(launch.shared_bytes) + " bytes of shared memory";
}

std::string describe_waits(const std::vector<Warp*>& warps) {
  constexpr int kLines = 40;
  std::string lines, last;
  const Thread *first = nullptr, *previous = nullptr;
  int n = 0;
  const auto flush = [&] {
    if (!first || ++n > kLines) return;
    lines += "\n  " + text(*first);
    if (previous != first) lines += " to " + text(*previous).substr(text(*previous).find("thread"));
    lines += last;
  };
  for (Warp* warp : warps) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!((warp->exists & ~warp->finished) >> lane & 1)) continue;
      const Thread& thread = warp->thread(lane);
      const std::string line = waits_for(thread);
      if (!first || line != last || thread.block != previous->block || thread.linear != previous->linear + 1) {
        flush();
        first = &thread;
        last = line;
      }
      previous = &thread;
    }
  }
  flush();
  if (n > kLines) lines += "\n  ... and " + std::to_string(n - kLines) + " more";
  return lines;
}

}  // namespace simt

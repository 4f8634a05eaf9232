// The threads of a launch and who of them runs: grid, clusters, blocks, warps, threads.
//
// One fiber for each CUDA thread, on one OS thread. A thread runs until it has to wait, or until preempt() decides
// otherwise. With seed 0 it never does, and warps and lanes take turns in order; any other seed draws the order, the
// length of each turn and the moments of preemption, in one of three manners (see scheduler.cpp).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "chance.h"
#include "fiber.h"
#include "include/vector_types.h"
#include "report.h"
#include "shared_memory.h"

namespace simt {

constexpr unsigned kLanes = 32;

struct Block;
struct Thread;
struct Warp;

// What a thread does while it does not run; for reports.
struct Wait {
  const char* what = "";
  Place place{"", 0};
  const void* address = nullptr;  // of what is polled
  uint64_t value = 0;             // last seen there
};

// A copy that cp.async has started.
struct AsyncCopy {
  unsigned char* to;
  const void* from;  // nullptr: zeros
  unsigned group;
};

struct Thread {
  Block* block = nullptr;
  Warp* warp = nullptr;
  Fiber* fiber = nullptr;  // from its first turn until it ends
  unsigned lane = 0;
  unsigned linear = 0;
  uint3 index{};
  Wait wait;
  std::vector<AsyncCopy> copies;
  unsigned open_group = 0;                           // the group that the next commit closes
  uint64_t cluster_arrivals = 0, cluster_waits = 0;  // at barriers of the cluster
  struct Seen {
    const void* address = nullptr;
    uint64_t value = 0;
  } seen[16];          // the values that it polled last
  unsigned polls = 0;  // since it last waited for something new
};

// An operation of a warp that some of its lanes have come to.
struct WarpOperation {
  const char* name;
  Place place;
  uint32_t mask;
  uint32_t arrived;
};

struct Warp {
  Block* block = nullptr;
  unsigned first = 0;                                         // linear index of lane 0
  uint32_t exists = 0, ready = 0, polling = 0, finished = 0;  // lanes
  int ready_slot = -1, polling_slot = -1;                     // places in the scheduler's lists
  unsigned position = 0;                                      // among the warps that are resident
  uint64_t priority = 0;
  std::vector<WarpOperation> operations;
  void* operand[kLanes] = {};

  Thread& thread(unsigned lane);
};

struct Cluster {
  unsigned size = 1;
  std::vector<Block*> blocks;  // by rank
  unsigned live = 0, arrived = 0;
  uint64_t completed = 0;  // barriers that all have come through
  std::vector<Thread*> waiting;
};

struct Block {
  uint3 index{};
  unsigned rank = 0;
  Cluster* cluster = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned live = 0;
  bool ended = false;
  SharedMemory shared;

  struct Barrier {
    unsigned arrived = 0;
    const char* name = "";
    Place place{"", 0};
    int sum = 0, all = 1, result_sum = 0, result_all = 1;
  } barrier;
};

inline Thread& Warp::thread(unsigned lane) { return block->threads[first + lane]; }

struct Launch {
  dim3 grid, block, cluster{1, 1, 1};
  size_t shared_bytes = 0;
  bool cooperative = false;
  void (*kernel)(const void* arguments) = nullptr;
  const void* arguments = nullptr;
};

// Runs a launch that has been found valid to its end. False after fail(). One at a time: see runtime.cpp.
bool run(const Launch& launch);

// The thread that runs; stops the process where there is none.
Thread& self();

// -- For what a thread does

// A point at which others may run first, and at which what is under way may arrive.
void preempt();

// Lets others run until someone makes this thread ready again.
void wait_for(const Wait& wait);
void make_ready(Thread& thread);

// To be called with what was read from an address that other threads change, in a loop as it may be: a thread that sees
// nothing new waits until all others wait too. True if it did wait: then read again.
bool saw(const void* address, uint64_t value, const char* what, const Place& place);

// Something that a polling thread may be waiting for has changed.
void progress();

std::string text(const Thread& thread);  // "block (0,0,0) thread (5,0,0)"

}  // namespace simt

// Which thread runs next.
//
// Seed 0: warps in turn, each until all of its lanes wait; what is asynchronous arrives as late as it may. Other seeds
// draw one of three manners for a launch: any warp at random; some warps far ahead of others; some blocks far ahead of
// others. The last two find a missing barrier that fair turns hide.
#include <algorithm>
#include <cstdio>

#include "grid.h"
#include "threads.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

// How often all who poll may look again, while nobody changes anything, before that is a deadlock.
constexpr unsigned kIdleRounds = 64;
constexpr uint64_t kIdlePolls = 20'000'000;
// A thread that polls more places than it remembers takes a break all the same.
constexpr unsigned kPollsInARow = 200;

enum class Manner { turns, any_warp, warps_ahead, blocks_ahead };

struct Abandoned {};

struct Scheduler {
  const Launch* launch = nullptr;
  Manner manner = Manner::turns;
  unsigned preempt_one_in = 1, land_per_turn = 0;
  std::vector<Warp*> resident, ready, polling;
  Warp* favoured = nullptr;
  unsigned turns_left = 0;
  unsigned idle_rounds = 0;
  uint64_t idle_polls = 0;
  unsigned live_blocks = 0;
  Thread* current = nullptr;
  bool finished = false;  // the current thread has just ended
  Failure failure = Failure::none;
  std::string report;
} s;

void enlist(std::vector<Warp*>& list, int Warp::* slot, Warp& warp) {
  if (warp.*slot >= 0) return;
  warp.*slot = static_cast<int>(list.size());
  list.push_back(&warp);
}

void delist(std::vector<Warp*>& list, int Warp::* slot, Warp& warp) {
  if (warp.*slot < 0) return;
  list[warp.*slot] = list.back();
  list[warp.*slot]->*slot = warp.*slot;
  list.pop_back();
  warp.*slot = -1;
}

void set_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  enlist(s.ready, &Warp::ready_slot, warp);
}

void wake_pollers(Warp& warp, uint32_t lanes) {
  set_ready(warp, lanes);
  warp.polling &= ~lanes;
  if (!warp.polling) delist(s.polling, &Warp::polling_slot, warp);
}

unsigned some_lane(uint32_t lanes) {
  if (!adversarial()) return static_cast<unsigned>(__builtin_ctz(lanes));
  const unsigned from = draw(kLanes);
  const uint32_t above = lanes >> from << from;
  return static_cast<unsigned>(__builtin_ctz(above ? above : lanes));
}

void draw_priority(Warp& warp) {
  const uint64_t low = draw_bits() >> 32;
  if (s.manner == Manner::warps_ahead) {
    warp.priority = low;
  } else {
    const uint64_t high = draw_bits() << 32;
    for (Warp& other : warp.block->warps) other.priority = high | (other.priority & 0xffffffff);
    warp.priority = high | low;
  }
}

void draw_manner() {
  begin_stream();
  s.manner = adversarial() ? static_cast<Manner>(1 + draw(3)) : Manner::turns;
  s.preempt_one_in = 2u << draw(6);
  s.land_per_turn = draw(3) * draw(3);
}

Warp* choose_warp() {
  if (s.manner == Manner::turns) {
    const size_t n = s.resident.size();
    for (size_t i = s.favoured ? s.favoured->position + 1 : 0;; ++i) {
      Warp* warp = s.resident[i % n];
      if (warp->ready) return warp;
    }
  }
  if (s.manner == Manner::any_warp) {
    s.turns_left = 1u << draw(8);
    return s.ready[draw(static_cast<unsigned>(s.ready.size()))];
  }
  s.turns_left = 8u << draw(8);
  Warp* first = *std::max_element(s.ready.begin(), s.ready.end(),
                                  [](const Warp* a, const Warp* b) { return a->priority < b->priority; });
  if (draw(16) == 0) draw_priority(*first);
  return first;
}

// The copies of one thread drawn at random: one of them lands.
void land_some_copy() {
  Warp& warp = *s.resident[draw(static_cast<unsigned>(s.resident.size()))];
  const unsigned lane = draw(kLanes);
  if ((warp.exists & ~warp.finished) >> lane & 1) land_one_copy(warp.thread(lane));
}

void land_at_random() {
  for (unsigned i = 0; i < s.land_per_turn; ++i) {
    land_some_copy();
    if (draw(4) == 0) land_one_store();
  }
}

Warp* next_warp() {
  if (adversarial()) {
    if (!s.polling.empty() && draw(8) == 0) {
      // One look at most for eight turns: all would keep each other from coming to rest.
      Warp& warp = *s.polling[draw(static_cast<unsigned>(s.polling.size()))];
      wake_pollers(warp, 1u << some_lane(warp.polling));
    }
    land_at_random();
  }
  if (s.ready.empty()) return nullptr;
  const bool over = s.manner != Manner::turns && s.turns_left == 0;
  if (!s.favoured || !s.favoured->ready || over) s.favoured = choose_warp();
  if (s.turns_left > 0) --s.turns_left;
  return s.favoured;
}

void thread_main() {
  s.launch->kernel(s.launch->arguments);
  Thread& thread = *s.current;
  check_end(thread);
  s.finished = true;
  thread.fiber->suspend(true);
}

void take_turn(Warp& warp) {
  const unsigned lane = some_lane(warp.ready);
  Thread& thread = warp.thread(lane);
  warp.ready &= ~(1u << lane);
  if (!warp.ready) delist(s.ready, &Warp::ready_slot, warp);
  if (!thread.fiber) thread.fiber = Fiber::take(thread_main);
  s.current = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  thread.fiber->resume();
  s.current = nullptr;
  if (s.failure != Failure::none) throw Abandoned{};
  if (!thread.fiber->intact()) fail(Failure::memory, "the stack of " + text(thread) + " overflowed", thread.wait.place);
  if (s.finished) {
    s.finished = false;
    Fiber::give_back(thread.fiber);
    thread.fiber = nullptr;
    progress();
    if (end_thread(thread)) --s.live_blocks;
  }
}

// Nobody is ready. False if nobody can become so.
bool go_on() {
  if (adversarial() ? land_one_store() : land_all_stores()) return true;
  if (s.polling.empty() || ++s.idle_rounds > kIdleRounds) return false;
  while (!s.polling.empty()) wake_pollers(*s.polling.back(), s.polling.back()->polling);
  return true;
}

void run_resident() {
  while (s.live_blocks > 0) {
    Warp* warp = next_warp();
    if (warp) {
      take_turn(*warp);
    } else if (!go_on()) {
      fail(Failure::deadlock, "no thread can go on" + describe_waits(s.resident), {"", 0});
    }
  }
}

void admit(Block& block) {
  ++s.live_blocks;
  for (Warp& warp : block.warps) {
    warp.position = static_cast<unsigned>(s.resident.size());
    s.resident.push_back(&warp);
    warp.priority = draw_bits() >> 32;
    set_ready(warp, warp.exists);
  }
  if (s.manner == Manner::blocks_ahead) draw_priority(block.warps[0]);
}

void clear() {
  for (Warp* warp : s.resident) {
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if (!(warp->exists >> lane & 1) || !warp->thread(lane).fiber) continue;
      Fiber::give_back(warp->thread(lane).fiber);
      warp->thread(lane).fiber = nullptr;
    }
    warp->block->shared.release();
  }
  drop_stores();
  s.resident.clear();
  s.ready.clear();
  s.polling.clear();
  s.favoured = nullptr;
  s.turns_left = s.live_blocks = s.idle_rounds = 0;
  s.idle_polls = 0;
  s.current = nullptr;
}

}  // namespace

bool run(const Launch& launch) {
  s.launch = &launch;
  s.failure = Failure::none;
  s.report.clear();
  blockDim = launch.block;
  gridDim = launch.grid;
  draw_manner();
  clear();
  try {
    // Blocks that nobody promised to run together run one group after the other, in an order that nobody promised
    // either.
    std::vector<unsigned> groups = block_groups(launch);
    if (adversarial()) {
      for (size_t i = groups.size(); i > 1; --i) std::swap(groups[i - 1], groups[draw(static_cast<unsigned>(i))]);
    }
    for (const unsigned group : groups) {
      make_group(launch, group, admit);
      run_resident();
      clear();
    }
  } catch (const Abandoned&) {
    clear();
  }
  return s.failure == Failure::none;
}

Thread& self() {
  if (!s.current) {
    std::fputs("simt: a function of the device was called outside of a kernel\n", stderr);
    std::abort();
  }
  return *s.current;
}

void preempt() {
  Thread& thread = self();
  if (!adversarial() || draw(s.preempt_one_in) != 0) return;
  set_ready(*thread.warp, 1u << thread.lane);
  thread.fiber->suspend(false);
}

void wait_for(const Wait& wait) {
  Thread& thread = self();
  thread.wait = wait;
  thread.fiber->suspend(false);
}

void make_ready(Thread& thread) { set_ready(*thread.warp, 1u << thread.lane); }

bool saw(const void* address, uint64_t value, const char* what, const Place& place) {
  Thread& thread = self();
  auto& seen = thread.seen[reinterpret_cast<uintptr_t>(address) / 4 % 16];
  const bool nothing_new = seen.address == address && seen.value == value;
  seen = {address, value};
  thread.wait = {what, place, address, value};
  if (++s.idle_polls > kIdlePolls) {
    fail(Failure::deadlock, "threads poll and nothing changes" + describe_waits(s.resident), place);
  }
  if (!nothing_new && ++thread.polls < kPollsInARow) return false;
  thread.polls = 0;
  thread.warp->polling |= 1u << thread.lane;
  enlist(s.polling, &Warp::polling_slot, *thread.warp);
  thread.fiber->suspend(false);
  return true;
}

void progress() {
  s.idle_rounds = 0;
  s.idle_polls = 0;
}

void fail(Failure failure, const std::string& message, const Place& place) {
  const Thread* thread = s.current;
  s.failure = failure;
  const char* kinds[] = {"deadlock", "divergence", "memory", "misuse"};
  s.report = std::string("simt: ") + kinds[static_cast<int>(failure) - static_cast<int>(Failure::deadlock)] + ": ";
  if (place.line > 0) s.report += text(place) + ": ";
  s.report += message;
  if (thread) s.report += "\n  by " + text(*thread);
  s.report += "\n  " + describe(*s.launch) + ", seed " + std::to_string(seed());
  std::fprintf(stderr, "%s\n", s.report.c_str());
  if (!thread) throw Abandoned{};
  thread->fiber->suspend(true);
  std::abort();
}

Failure last_failure() { return s.failure; }
const std::string& last_report() { return s.report; }

}  // namespace simt

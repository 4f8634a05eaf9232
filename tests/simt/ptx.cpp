// Copies, memory order, clusters and mbarriers of ptx.h.
#include "ptx.h"

#include <cstring>
#include <set>

#include "device.h"
#include "threads.h"

namespace fastlstm {
namespace ptx {

using simt::fail;
using simt::Failure;
using simt::preempt;
using simt::self;

void cp_async_16(void* shared, const void* global, bool valid, Place place) {
  preempt();
  simt::Thread& thread = self();
  unsigned char* to = thread.block->shared.checked(shared, 16, 16, "cp_async_16", place);
  if (reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail(Failure::memory, "cp_async_16: the global address is not aligned to 16", place);
  }
  if (valid) {
    // Read again when the copy lands; here for AddressSanitizer, which then names this call.
    volatile unsigned char sink = 0;
    for (int i = 0; i < 16; ++i) sink = static_cast<const unsigned char*>(global)[i];
    (void)sink;
  }
  thread.copies.push_back({to, valid ? global : nullptr, thread.open_group});
  preempt();
}

void cp_async_commit() {
  ++self().open_group;
  preempt();
}

void cp_async_wait_for(int pending) {
  preempt();
  simt::Thread& thread = self();
  const auto latest = static_cast<unsigned>(pending);
  if (thread.open_group > latest) simt::land_copies_before(thread, thread.open_group - latest);
}

namespace {

bool keep_prefetches = false;
std::set<const void*> prefetches;

}  // namespace

void prefetch_l2(const void* global, Place) {
  preempt();
  // Read for AddressSanitizer, which then names this call.
  volatile unsigned char sink = *static_cast<const unsigned char*>(global);
  (void)sink;
  if (keep_prefetches) prefetches.insert(global);
}

namespace {

int polled(const int* p, const char* name, Place place) {
  preempt();
  const volatile int* memory = p;
  const int value = *memory;
  return simt::saw(p, static_cast<uint64_t>(static_cast<int64_t>(value)), name, place) ? *memory : value;
}

}  // namespace

int ld_acquire_gpu(const int* p, Place place) { return polled(p, "ld_acquire_gpu", place); }
int ld_relaxed_gpu(const int* p, Place place) { return polled(p, "ld_relaxed_gpu", place); }

void st_relaxed_gpu(int* p, int value) {
  preempt();
  if (*p != value) simt::progress();
  *p = value;
  preempt();
}

void red_release_gpu_add(int* p, int value) {
  preempt();
  if (value != 0) simt::progress();
  *p += value;
  preempt();
}

uint32_t shared_address(const void* shared, Place place) {
  const simt::Block& block = *self().block;
  const unsigned char* data = block.shared.checked(shared, 0, 1, "shared_address", place);
  return simt::cluster_address(block.rank, static_cast<size_t>(data - block.shared.data()));
}

uint32_t map_to_rank(uint32_t shared_addr, uint32_t rank, Place place) {
  const auto own = simt::checked_cluster_address(shared_addr, 0, 1, "map_to_rank", place);
  if (rank >= cluster_size()) {
    fail(Failure::memory, "map_to_rank: rank " + std::to_string(rank) + " of " + std::to_string(cluster_size()), place);
  }
  return simt::cluster_address(rank, static_cast<size_t>(own.data - own.block->shared.data()));
}

uint32_t ld_cluster_32(uint32_t addr, Place place) {
  preempt();
  uint32_t value;
  std::memcpy(&value, simt::checked_cluster_address(addr, 4, 4, "ld_cluster_32", place).data, 4);
  return value;
}

void st_cluster_32(uint32_t addr, uint32_t v, Place place) {
  preempt();
  std::memcpy(simt::checked_cluster_address(addr, 4, 4, "st_cluster_32", place).data, &v, 4);
  preempt();
}

void st_async_32(uint32_t addr, uint32_t v, uint32_t mbarrier_addr, Place place) {
  simt::store_async(addr, &v, 4, mbarrier_addr, place);
}

void st_async_64(uint32_t addr, uint32_t v0, uint32_t v1, uint32_t mbarrier_addr, Place place) {
  const uint32_t values[2] = {v0, v1};
  simt::store_async(addr, values, 8, mbarrier_addr, place);
}

void mbarrier_init(uint64_t* mbarrier, uint32_t count, Place place) {
  preempt();
  simt::make_mbarrier(mbarrier, count, place);
}

void mbarrier_arrive(uint64_t* mbarrier, Place place) {
  preempt();
  simt::arrive(simt::find_mbarrier(*self().block, mbarrier, "mbarrier_arrive", place), "mbarrier_arrive", place);
  preempt();
}

void mbarrier_arrive_expect_tx(uint64_t* mbarrier, uint32_t bytes, Place place) {
  preempt();
  const char* name = "mbarrier_arrive_expect_tx";
  simt::Mbarrier& found = simt::find_mbarrier(*self().block, mbarrier, name, place);
  if (found.pending > 0) simt::count_bytes(found, bytes);
  simt::arrive(found, name, place);
  preempt();
}

void mbarrier_arrive_remote(uint32_t mbarrier_addr, Place place) {
  preempt();
  const char* name = "mbarrier_arrive_remote";
  const simt::ClusterAddress at = simt::checked_cluster_address(mbarrier_addr, 8, 8, name, place);
  simt::arrive(simt::find_mbarrier(*at.block, at.data, name, place), name, place);
  preempt();
}

bool mbarrier_try_wait(uint64_t* mbarrier, uint32_t parity, Place place) {
  preempt();
  const char* name = "mbarrier_try_wait";
  const auto over = [&] {
    return (simt::find_mbarrier(*self().block, mbarrier, name, place).phase & 1) != (parity & 1);
  };
  if (parity > 1) fail(Failure::misuse, "mbarrier_try_wait: parity " + std::to_string(parity), place);
  if (over()) return true;
  const uint64_t phase = simt::find_mbarrier(*self().block, mbarrier, name, place).phase;
  return simt::saw(mbarrier, phase, name, place) && over();
}

void mbarrier_wait(uint64_t* mbarrier, uint32_t parity, Place place) {
  while (!mbarrier_try_wait(mbarrier, parity, place)) {}
}

}  // namespace ptx
}  // namespace fastlstm

extern "C" {

void simt_keep_prefetches(bool keep) {
  fastlstm::ptx::keep_prefetches = keep;
  fastlstm::ptx::prefetches.clear();
}

uint64_t simt_prefetches(uint64_t room, const void** addresses) {
  for (const void* address : fastlstm::ptx::prefetches) {
    if (room-- == 0) break;
    *addresses++ = address;
  }
  return fastlstm::ptx::prefetches.size();
}
}

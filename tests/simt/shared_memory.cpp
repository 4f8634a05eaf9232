#include "shared_memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "grid.h"

namespace simt {
namespace {

constexpr unsigned kRankShift = 24;

// What an mbarrier's 8 bytes hold, so that data written over them is noticed.
constexpr uint64_t kMbarrier = 0x6d62617272696572;

struct AsyncStore {
  Block* block;
  unsigned char* to;
  unsigned char value[16];
  unsigned bytes;
  unsigned char* mbarrier;
  Place place;
};

std::vector<AsyncStore>& stores() {
  static auto* all = new std::vector<AsyncStore>;
  return *all;
}

void land(const AsyncStore& store) {
  --store.block->shared.stores_under_way;
  std::memcpy(store.to, store.value, store.bytes);
  count_bytes(find_mbarrier(*store.block, store.mbarrier, "st_async, as it arrives", store.place),
              -static_cast<int64_t>(store.bytes));
}

void end_phase_if_complete(Mbarrier& mbarrier) {
  if (mbarrier.pending > 0 || mbarrier.bytes != 0) return;
  mbarrier.pending = mbarrier.count;
  ++mbarrier.phase;
  progress();
}

std::string at_offset(const SharedMemory& memory, int64_t offset) {
  return "offset " + std::to_string(offset) + " of " + std::to_string(memory.bytes()) + " bytes of shared memory";
}

}  // namespace

void SharedMemory::allocate(size_t bytes) {
  release();
  bytes_ = bytes;
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) {
    std::fprintf(stderr, "simt: no memory for %zu bytes of shared memory\n", bytes);
    std::abort();
  }
  data_ = static_cast<unsigned char*>(memory);
  std::memset(data_, 0xff, bytes);
}

void SharedMemory::release() {
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
  mbarriers.clear();
  stores_under_way = 0;
}

unsigned char* SharedMemory::checked(const void* address, size_t bytes, size_t alignment, const char* what,
                                     const Place& place) const {
  const auto offset = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(data_));
  if (offset < 0 || offset + static_cast<int64_t>(bytes) > static_cast<int64_t>(bytes_)) {
    fail(Failure::memory, std::string(what) + ": " + std::to_string(bytes) + " bytes at " + at_offset(*this, offset),
         place);
  }
  if (offset % static_cast<int64_t>(alignment) != 0) {
    fail(Failure::memory,
         std::string(what) + ": " + at_offset(*this, offset) + " is not aligned to " + std::to_string(alignment),
         place);
  }
  return data_ + offset;
}

uint32_t cluster_address(unsigned rank, size_t offset) {
  return ((rank + 1) << kRankShift) + static_cast<uint32_t>(offset);
}

ClusterAddress checked_cluster_address(uint32_t address, size_t bytes, size_t alignment, const char* what,
                                       const Place& place) {
  const Cluster& cluster = *self().block->cluster;
  const uint32_t rank = (address >> kRankShift) - 1;
  const uint32_t offset = address & ((1u << kRankShift) - 1);
  if (rank >= cluster.blocks.size()) {
    fail(Failure::memory, std::string(what) + ": " + std::to_string(address) + " is not an address of shared memory",
         place);
  }
  Block& block = *cluster.blocks[rank];
  if (block.ended) {
    fail(Failure::memory, std::string(what) + ": the block of rank " + std::to_string(rank) + " has ended", place);
  }
  return {&block, block.shared.checked(block.shared.data() + offset, bytes, alignment, what, place)};
}

void store_async(uint32_t address, const void* value, unsigned bytes, uint32_t mbarrier, const Place& place) {
  preempt();
  if (self().block->cluster->blocks.size() < 2) {
    fail(Failure::misuse, "st_async: in a cluster of one block what it does is undefined", place);
  }
  const ClusterAddress to = checked_cluster_address(address, bytes, bytes, "st_async", place);
  const ClusterAddress counts = checked_cluster_address(mbarrier, 8, 8, "st_async's mbarrier", place);
  if (counts.block != to.block) {
    fail(Failure::misuse, "st_async: the mbarrier is in the shared memory of another block than the address", place);
  }
  AsyncStore store{to.block, to.data, {}, bytes, counts.data, place};
  std::memcpy(store.value, value, bytes);
  stores().push_back(store);
  ++to.block->shared.stores_under_way;
  preempt();
}

bool land_one_store() {
  if (stores().empty()) return false;
  std::swap(stores()[draw(static_cast<unsigned>(stores().size()))], stores().back());
  const AsyncStore store = stores().back();
  stores().pop_back();
  land(store);
  return true;
}

bool land_all_stores() {
  if (stores().empty()) return false;
  std::vector<AsyncStore> in_order;
  in_order.swap(stores());
  for (const AsyncStore& store : in_order) land(store);
  return true;
}

void drop_stores() { stores().clear(); }

Mbarrier& find_mbarrier(Block& block, const void* address, const char* what, const Place& place) {
  const unsigned char* data = block.shared.checked(address, 8, 8, what, place);
  for (Mbarrier& mbarrier : block.shared.mbarriers) {
    if (block.shared.data() + mbarrier.offset != data) continue;
    if (std::memcmp(data, &kMbarrier, 8) != 0) {
      fail(Failure::memory, std::string(what) + ": the mbarrier made at " + text(mbarrier.made) + " was written over",
           place);
    }
    return mbarrier;
  }
  fail(Failure::misuse, std::string(what) + ": no mbarrier was initialised there", place);
}

void make_mbarrier(void* address, uint32_t count, const Place& place) {
  SharedMemory& shared = self().block->shared;
  unsigned char* data = shared.checked(address, 8, 8, "mbarrier_init", place);
  const auto offset = static_cast<uint32_t>(data - shared.data());
  for (const Mbarrier& mbarrier : shared.mbarriers) {
    if (mbarrier.offset == offset) {
      fail(Failure::misuse, "mbarrier_init: there is one already, made at " + text(mbarrier.made), place);
    }
  }
  if (count == 0 || count >= 1u << 20) {
    fail(Failure::misuse, "mbarrier_init: count " + std::to_string(count) + " is not in 1 to 2^20 - 1", place);
  }
  std::memcpy(data, &kMbarrier, 8);
  shared.mbarriers.push_back({offset, count, count, 0, 0, place});
}

void arrive(Mbarrier& mbarrier, const char* what, const Place& place) {
  if (mbarrier.pending == 0) {
    fail(Failure::misuse,
         std::string(what) + ": more than " + std::to_string(mbarrier.count) + " arrivals in phase " +
             std::to_string(mbarrier.phase) + " of the mbarrier made at " + text(mbarrier.made),
         place);
  }
  --mbarrier.pending;
  progress();
  end_phase_if_complete(mbarrier);
}

void count_bytes(Mbarrier& mbarrier, int64_t expected) {
  mbarrier.bytes += expected;
  progress();
  end_phase_if_complete(mbarrier);
}

void check_all_bytes_came(const SharedMemory& shared) {
  for (const Mbarrier& mbarrier : shared.mbarriers) {
    if (mbarrier.bytes == 0) continue;
    fail(Failure::misuse,
         "the block ends, and its mbarrier got " + std::to_string(std::abs(mbarrier.bytes)) + " bytes " +
             (mbarrier.bytes < 0 ? "more" : "fewer") + " than expected",
         mbarrier.made);
  }
}

}  // namespace simt

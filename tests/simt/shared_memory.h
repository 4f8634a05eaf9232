// The shared memory of a block, and the mbarriers in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "report.h"

namespace simt {

struct Block;

struct Mbarrier {
  uint32_t offset;
  uint32_t count;
  uint32_t pending;
  int64_t bytes;  // expected and not yet arrived
  uint64_t phase;
  Place made;
};

// Exactly as many bytes as were asked for, from the heap, so that AddressSanitizer sees what is beside them. Filled
// with 0xFF, a NaN in every format: what is read before it was written shows in the result.
class SharedMemory {
 public:
  void allocate(size_t bytes);
  void release();

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  // The address, if `bytes` bytes there are this memory's and aligned to `alignment`; else fails, naming `what`.
  unsigned char* checked(const void* address, size_t bytes, size_t alignment, const char* what,
                         const Place& place) const;

  std::vector<Mbarrier> mbarriers;
  unsigned stores_under_way = 0;  // st.async to here

 private:
  unsigned char* data_ = nullptr;
  size_t bytes_ = 0;
};

// A 32-bit address in the shared memory of the cluster: the rank's number plus one, then the offset. Never 0.
uint32_t cluster_address(unsigned rank, size_t offset);

struct ClusterAddress {
  Block* block;
  unsigned char* data;
};

// Fails unless `bytes` bytes there are memory of a block of this thread's cluster that runs, and aligned to
// `alignment`.
ClusterAddress checked_cluster_address(uint32_t address, size_t bytes, size_t alignment, const char* what,
                                       const Place& place);

// st.async: the bytes land later, and then count on the mbarrier.
void store_async(uint32_t address, const void* value, unsigned bytes, uint32_t mbarrier, const Place& place);

// Lets stores that are under way land, one drawn at random or all in order; false if there were none.
bool land_one_store();
bool land_all_stores();
void drop_stores();

void make_mbarrier(void* address, uint32_t count, const Place& place);
Mbarrier& find_mbarrier(Block& block, const void* address, const char* what, const Place& place);
void arrive(Mbarrier& mbarrier, const char* what, const Place& place);
void count_bytes(Mbarrier& mbarrier, int64_t expected);

// Of a block that ends: fails if an mbarrier got more or fewer bytes than it was to expect. Nobody may have noticed.
void check_all_bytes_came(const SharedMemory& shared);

}  // namespace simt

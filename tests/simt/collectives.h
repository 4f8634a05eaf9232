// What several threads do together: operations of a warp, the barrier of a block, the barrier of a cluster.
//
// They are stricter than the hardware: what CUDA leaves undefined, and often works, is a failure here.
#pragma once

#include <cstdint>

#include "grid.h"

namespace simt {

// One operation of the lanes in `mask`: the last to come computes for all, from and into the operands, which the others
// keep on their stacks meanwhile. All lanes have to name the same operation and mask; if `aligned`, at the same place,
// all 32.
void warp_operation(const char* name, bool aligned, uint32_t mask, void* operand,
                    void (*compute)(Warp& warp, uint32_t mask), const Place& place);

// The lanes of `mask` whose predicate is true.
uint32_t vote(const char* name, unsigned mask, bool predicate, Place place);

// __syncthreads and its kin: all threads of the block, at the same place.
struct BlockVotes {
  int sum, all;
};
BlockVotes block_barrier(const char* name, int predicate, const Place& place);

void cluster_barrier_arrive(const Place& place);
void cluster_barrier_wait(const Place& place);
void complete_cluster_barrier(Cluster& cluster);

}  // namespace simt

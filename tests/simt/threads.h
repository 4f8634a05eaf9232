// The parts of a launch: which blocks run together, how they begin and end, how they are described.
#pragma once

#include <string>
#include <vector>

#include "grid.h"

namespace simt {

// Blocks that have to run together are a group: all of a cooperative launch, a cluster, one block. The groups' numbers.
std::vector<unsigned> block_groups(const Launch& launch);

// Makes the group's blocks anew, and calls `admit` for each.
void make_group(const Launch& launch, unsigned group, void (*admit)(Block&));

// Before a thread ends, on its own stack: fails if others wait for it in vain.
void check_end(const Thread& thread);

// After; true if its block has ended with it.
bool end_thread(Thread& thread);

// One of this thread's copies that are under way, drawn at random, lands; all of those in groups before `group` do.
void land_one_copy(Thread& thread);
void land_copies_before(Thread& thread, unsigned group);

std::string describe(const Launch& launch);
std::string describe_waits(const std::vector<Warp*>& warps);  // a line for neighbours that wait in the same place

}  // namespace simt

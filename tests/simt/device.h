// The device that host code finds, and what tests may set about it. Also as C functions, for a library loaded by
// Python.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

struct Device {
  int multiprocessors = 132;
  int capability_major = 9, capability_minor = 0;
  int max_shared = 48 << 10;          // bytes of a block, without asking
  int max_shared_opt_in = 227 << 10;  // after cudaFuncSetAttribute
  int max_shared_multiprocessor = 228 << 10;
  int reserved_shared = 1 << 10;  // of each block, in addition
  int max_threads_multiprocessor = 2048;
  int fail_launch = 0;  // a cudaError_t for the next launch to return, without running
  int ptx_version = 0;  // what the kernels were compiled for, such as 80; 0: for this device
  int tensor_core_extra_bits =
      -1;               // below float32's last place, where sums are cut off; -1: to nearest, one term after the other
  int cooperative = 1;  // 0: no launches whose blocks all run at once
  int multiprocessors_together = 1 << 20;  // a cluster is on so many that lie together (a GPC)
  int dry = 0;                             // 1: launches are checked and noted, and no kernel runs
};

Device& device();

}  // namespace simt

#define SIMT_EXPORT __attribute__((visibility("default")))

extern "C" {

// Of all launches that follow: 0 takes turns, others draw the order of threads and arrivals.
SIMT_EXPORT void simt_set_seed(uint64_t seed);

// A field of simt::Device by its name; false if there is none of that name.
SIMT_EXPORT bool simt_set_device(const char* field, int value);

// How many kernels have run so far.
SIMT_EXPORT uint64_t simt_launches();

// Of the kernels that were launched so far, the k-th's address and the most dynamic shared memory and threads of its
// blocks; false if there is none.
SIMT_EXPORT bool simt_kernel(uint64_t k, const void** address, uint64_t* shared_bytes, uint64_t* threads);

// Forgets all addresses of prefetches, and keeps those from now on, or none; how many different ones there are, and as
// many of them in order as there is room for.
SIMT_EXPORT void simt_keep_prefetches(bool keep);
SIMT_EXPORT uint64_t simt_prefetches(uint64_t room, const void** addresses);

// What was wrong with the last kernel that ran; empty if nothing was.
SIMT_EXPORT const char* simt_last_report();
}

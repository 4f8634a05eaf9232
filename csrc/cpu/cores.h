// How many cores this process may use, by its affinity and by the CPU quota of its control groups.
#pragma once

#include <string>

namespace fastlstm {

// Cores in the affinity mask, or places where OpenMP binds its threads. The system is asked at every call.
int cores_of_affinity();

// The least quota, in cores, of the process's control groups (v1 or v2) and of their parents; 0 without one. `root` is
// put before /proc and /sys, for tests.
double cores_of_quota(const std::string& root = "");

// FASTLSTM_CORES: as many cores belong to this process, whatever the system reports and whoever else seems to use them.
// 0 if not set.
int given_cores();

// given_cores() if set, else the smaller of affinity and quota, the quota rounded, at least 1. The quota is read again
// every few seconds.
int allowed_cores();

}  // namespace fastlstm

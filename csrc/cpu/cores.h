// How many cores this process may use: by its affinity, and by the CPU quota of its control groups.
#pragma once

#include <string>

namespace fastlstm {

// What a thread may run on, or how many places OpenMP has where it binds its threads. Asked of the system at every
// call.
int cores_of_affinity();

// The least quota of the process's control groups (v1 or v2) and of those above them, in cores; 0 where there is none.
// `root` is what stands before /proc and /sys: for tests.
double cores_of_quota(const std::string& root = "");

// What FASTLSTM_CORES says: so many cores are this process's own, whatever the system says of them and whoever else
// seems to use them. 0 where it is not set.
int given_cores();

// What is given, or the lesser of both, a quota rounded to whole cores, at least 1. A quota is read again after some
// seconds.
int allowed_cores();

}  // namespace fastlstm

// The functions of torch's OpenMP runtime that are used here, and its handling at a fork.
#pragma once

namespace fastlstm {

// Each null if not found: torch may be built without OpenMP, and this library is not linked to it.
struct OpenMP {
  int (*num_procs)();
  void (*set_num_threads)(int);  // the calling thread's
};

const OpenMP& openmp();

// Whether a fork left this thread with a pool whose workers no longer exist. It must not open a parallel region, which
// would wait for them for ever.
bool& without_workers();

}  // namespace fastlstm

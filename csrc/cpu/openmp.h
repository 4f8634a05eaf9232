// What is asked of the OpenMP runtime that torch has brought into the process, and what it needs at a fork.
#pragma once

namespace fastlstm {

// Each null where it is not found: torch may be built without OpenMP, and nothing here is linked to it.
struct OpenMP {
  int (*num_procs)();
  void (*set_num_threads)(int);  // the calling thread's
};

const OpenMP& openmp();

// Whether this thread came through a fork with a pool of workers that are not there any more: it may open no parallel
// region, which would wait for them for ever.
bool& without_workers();

}  // namespace fastlstm

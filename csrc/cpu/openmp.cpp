// After a fork the child has one thread. GNU's OpenMP does not notice: it still has the pool of the forking thread on
// record, and the next parallel region, in torch's ops as in the kernels, waits for its workers for ever. So the pool
// is dissolved before the fork; parent and child start new workers at their next region, and both keep their thread
// count. LLVM's and Intel's runtimes handle forks themselves.
#include "cpu/openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>
#endif

namespace fastlstm {

bool& without_workers() {
  thread_local bool without = false;
  return without;
}

#if defined(__linux__)

namespace {

struct Runtime {
  OpenMP openmp{};
  int (*pause_all)(int) = nullptr;  // GNU's runtime only
  bool survives_forks = true;       // there is none, or one that needs no help

  Runtime() {
    // The runtime that libtorch_cpu.so uses: the process may have others.
    void* torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    const auto find = [&](const char* name) { return dlsym(torch != nullptr ? torch : RTLD_DEFAULT, name); };
    openmp.num_procs = reinterpret_cast<int (*)()>(find("omp_get_num_procs"));
    openmp.set_num_threads = reinterpret_cast<void (*)(int)>(find("omp_set_num_threads"));
    const bool gnu = find("GOMP_parallel") != nullptr && find("__kmpc_fork_call") == nullptr;
    survives_forks = !gnu;
    if (gnu) pause_all = reinterpret_cast<int (*)(int)>(find("omp_pause_resource_all"));
    if (torch != nullptr) dlclose(torch);
  }
};

const Runtime& runtime() {
  static const Runtime found;
  return found;
}

// Whether the process was forked and has run the same program since. The state of its pool is then not known, and
// dissolving one that is gone would hang.
bool was_forked() {
  constexpr unsigned kForkedNoExec = 0x40;  // PF_FORKNOEXEC
  unsigned flags = 0;
  if (FILE* file = std::fopen("/proc/self/stat", "r")) {
    if (std::fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %u", &flags) != 1) flags = kForkedNoExec;
    std::fclose(file);
  }
  return (flags & kForkedNoExec) != 0;
}

bool pool_is_known = true, dissolved = false;

void before_fork() {
  constexpr int kSoft = 1;  // omp_pause_soft
  dissolved = runtime().survives_forks || (pool_is_known && !without_workers() && runtime().pause_all != nullptr &&
                                           runtime().pause_all(kSoft) == 0);
}

void in_child() {
  if (dissolved) return;
  pool_is_known = false;
  without_workers() = true;
  // For torch's own ops too: with a thread count of 1 they open no region. (Where Python is told of the fork, it also
  // sets the counts of other libraries: backends/native.py.)
  if (runtime().openmp.set_num_threads != nullptr) runtime().openmp.set_num_threads(1);
}

[[maybe_unused]] const int registered = [] {
  pool_is_known = !was_forked();
  runtime();
  return pthread_atfork(before_fork, nullptr, in_child);
}();

}  // namespace

const OpenMP& openmp() { return runtime().openmp; }

#else

const OpenMP& openmp() {
  static const OpenMP none{};
  return none;
}

#endif

}  // namespace fastlstm

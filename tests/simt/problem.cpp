#include "problem.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "device.h"
#include "report.h"

#if defined(__SANITIZE_ADDRESS__)
// Leaks are not looked for: stacks and tables are kept for the next launch.
extern "C" SIMT_EXPORT const char* __asan_default_options() { return "exitcode=75:detect_leaks=0:abort_on_error=0"; }
extern "C" SIMT_EXPORT const char* __ubsan_default_options() { return "print_stacktrace=1"; }
static_assert(simt::kSanitizer == 75, "the exit code above");
#endif

namespace simt {
namespace {

[[noreturn]] void stop(const std::string& message) {
  std::fprintf(stderr, "runner: %s\n", message.c_str());
  std::exit(2);
}

template <class T>
T read(std::FILE* file) {
  T value;
  if (std::fread(&value, sizeof value, 1, file) != 1) stop("the problem file is too short");
  return value;
}

}  // namespace

// File: number of items; each the length of its name, the name, and the number of bytes and the bytes; or, for an
// integer, -1 and the integer. All numbers int64.
Problem::Problem(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) stop(std::string("cannot read ") + path);
  for (auto items = read<int64_t>(file); items > 0; --items) {
    std::string name(static_cast<size_t>(read<int64_t>(file)), ' ');
    if (std::fread(&name[0], 1, name.size(), file) != name.size()) stop("the problem file is too short");
    const auto bytes = read<int64_t>(file);
    if (bytes < 0) {
      integers_[name] = read<int64_t>(file);
      continue;
    }
    Array array{nullptr, static_cast<size_t>(bytes)};
    if (posix_memalign(&array.data, 256, array.bytes) != 0) stop("no memory for " + name);
    if (std::fread(array.data, 1, array.bytes, file) != array.bytes) stop("the problem file is too short");
    arrays_[name] = array;
  }
  std::fclose(file);
}

Problem::~Problem() {
  for (const auto& [name, array] : arrays_) std::free(array.data);
}

int64_t Problem::integer(const std::string& name) const {
  const auto found = integers_.find(name);
  if (found == integers_.end()) stop("the problem has no integer " + name);
  return found->second;
}

void Problem::write(const char* path) const {
  std::FILE* file = std::fopen(path, "wb");
  if (!file) stop(std::string("cannot write ") + path);
  for (const auto& [name, array] : arrays_) {
    if (std::fwrite(array.data, 1, array.bytes, file) != array.bytes) stop(std::string("cannot write ") + path);
  }
  std::fclose(file);
}

int runner_main(int argc, char** argv, const NamedEntry* entries, size_t count) {
  if (argc != 5) stop("expected: problem results entry seed");
  Problem problem(argv[1]);
  for (const auto& [name, value] : problem.integers()) {
    if (name.rfind("device.", 0) == 0 && !simt_set_device(name.c_str() + 7, static_cast<int>(value))) {
      stop("no such setting: " + name);
    }
  }
  simt_set_seed(std::strtoull(argv[4], nullptr, 10));
  for (size_t i = 0; i < count; ++i) {
    if (std::strcmp(entries[i].name, argv[3]) != 0) continue;
    const std::string message = entries[i].entry(problem);
    if (last_failure() != Failure::none) return static_cast<int>(last_failure());
    if (!message.empty()) {
      std::fprintf(stderr, "%s\n", message.c_str());
      return 1;
    }
    problem.write(argv[2]);
    return 0;
  }
  stop(std::string("no entry ") + argv[3]);
}

}  // namespace simt

#include "cpu/cores.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "cpu/barrier.h"
#include "cpu/openmp.h"

namespace fastlstm {

namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

bool contains(const std::vector<std::string>& parts, const char* name) {
  return std::find(parts.begin(), parts.end(), name) != parts.end();
}

// The first two words of a file as numbers; -1 for "max" and for what is missing.
std::vector<double> numbers_in(const std::string& path) {
  std::ifstream file(path);
  std::vector<double> numbers(2, -1);
  std::string word;
  for (double& number : numbers) {
    if (file >> word && word != "max") number = std::strtod(word.c_str(), nullptr);
  }
  return numbers;
}

// Quota of one group; 0 without one.
double quota_of(const std::string& group, bool v2) {
  double quota, period;
  if (v2) {
    const auto both = numbers_in(group + "/cpu.max");
    quota = both[0], period = both[1];
  } else {
    quota = numbers_in(group + "/cpu.cfs_quota_us")[0], period = numbers_in(group + "/cpu.cfs_period_us")[0];
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

// The process's path in the hierarchy that has quotas. A line of /proc/self/cgroup is "5:cpu,cpuacct:/path", or for v2
// "0::/path".
std::string path_of_process(const std::string& root, bool v2) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (v2 ? controllers.empty() : contains(split(controllers, ','), "cpu")) return line.substr(second + 1);
  }
  return "/";
}

}  // namespace

double cores_of_quota(const std::string& root) {
  double least = 0;
  // A line: "31 23 0:28 <root> <mount point> <options>... - <type> <source> <options>".
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const auto words = split(line, ' ');
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 5 || words.end() - dash < 4) continue;
    const bool v2 = dash[1] == "cgroup2";
    if (!v2 && !(dash[1] == "cgroup" && contains(split(dash[3], ','), "cpu"))) continue;
    const std::string mount = root + words[4], top = words[3] == "/" ? "" : words[3];
    // Inside a container the path may be the host's, while only its last part is mounted.
    std::string path = path_of_process(root, v2);
    path = path.compare(0, top.size(), top) == 0 ? path.substr(top.size()) : "";
    for (;;) {
      while (!path.empty() && path.back() == '/') path.pop_back();
      const double quota = quota_of(mount + path, v2);
      if (quota > 0) least = least > 0 ? std::min(least, quota) : quota;
      if (path.empty()) break;
      path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
  }
  return least;
}

int cores_of_affinity() {
  if (openmp().num_procs != nullptr) return std::max(1, openmp().num_procs());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

int given_cores() {
  static const int given = [] {
    const char* variable = std::getenv("FASTLSTM_CORES");
    return variable == nullptr ? 0 : std::max(0, std::atoi(variable));
  }();
  return given;
}

int allowed_cores() {
  if (given_cores() > 0) return given_cores();
  constexpr int64_t kRefresh = 10'000'000'000;
  static std::atomic<int64_t> read_at{0};
  static std::atomic<double> quota{0};
  const int64_t now = now_ns(), before = read_at.load(std::memory_order_relaxed);
  if (before == 0 || now - before > kRefresh) {
    quota.store(cores_of_quota(), std::memory_order_relaxed);
    read_at.store(now, std::memory_order_relaxed);
  }
  const int cores = cores_of_affinity();
  const double most = quota.load(std::memory_order_relaxed);
  return most > 0 ? std::max(1, std::min(cores, static_cast<int>(std::lround(std::min(most, 1e6))))) : cores;
}

}  // namespace fastlstm

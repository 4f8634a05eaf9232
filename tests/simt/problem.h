// What a runner is given: named arrays and integers, from a file that tests/simt/run.py writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace simt {

class Problem {
 public:
  // Every array in memory of its own, of exactly its size, so that AddressSanitizer sees what is beside it.
  explicit Problem(const char* path);
  ~Problem();
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  // Null if there is no array of that name.
  template <class T>
  T* array(const std::string& name) const {
    const auto found = arrays_.find(name);
    return found == arrays_.end() ? nullptr : static_cast<T*>(found->second.data);
  }

  // Stops the program if there is no integer of that name.
  int64_t integer(const std::string& name) const;
  const std::map<std::string, int64_t>& integers() const { return integers_; }

  // All arrays, as they are now, in the order of their names.
  void write(const char* path) const;

 private:
  struct Array {
    void* data;
    size_t bytes;
  };
  std::map<std::string, Array> arrays_;
  std::map<std::string, int64_t> integers_;
};

// What a runner can do: functions by name. Returns a message, empty if all went well.
using Entry = std::string (*)(Problem& problem);

struct NamedEntry {
  const char* name;
  Entry entry;
};

// Of a runner: RUNNER problem results entry seed. Exit code 0; 1 with the entry's message on stderr; a simt::Failure;
// kSanitizer; 2 for a wrong call. Integers named "device.<field>" set the fields of simt::Device.
constexpr int kSanitizer = 75;
int runner_main(int argc, char** argv, const NamedEntry* entries, size_t count);

}  // namespace simt

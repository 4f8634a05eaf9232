// Where in a kernel something happens, and the one way in which a mistake found there is reported.
#pragma once

#include <string>

namespace simt {

struct Place {
  const char* file;
  int line;
};

// As a default argument: the line of the caller.
constexpr Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

bool same(const Place& a, const Place& b);
std::string text(const Place& place);  // "file.cu:12", without folders

// What was wrong with a kernel; the numbers are exit codes of the runners (see entry.h).
enum class Failure : int {
  none = 0,
  deadlock = 70,    // no thread can go on
  divergence = 71,  // threads that have to act together do not
  memory = 72,      // an address that is not valid, or not aligned
  misuse = 73,      // an instruction used against its rules
};

// Ends the launch: it returns cudaErrorLaunchFailure, and last_report() is this message. In a kernel, does not return.
[[noreturn]] void fail(Failure failure, const std::string& message, const Place& place);

Failure last_failure();
const std::string& last_report();

}  // namespace simt

// Size of a core's second-level cache. It is read once for the process, so that results repeat from call to call.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <unistd.h>
#endif

namespace fastlstm {

// As the processor reports it; where it does not, 512 KiB: few cores have less.
inline int64_t second_level_bytes() {
  static const int64_t bytes = [] {
    int64_t reported = 0;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    reported = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    constexpr int64_t kLeast = int64_t{256} << 10, kMost = int64_t{4} << 20, kUsual = int64_t{512} << 10;
    if (reported <= 0) return kUsual;
    return reported < kLeast ? kLeast : reported > kMost ? kMost : reported;
  }();
  return bytes;
}

// Up to this size one worker's weights stay in the second-level cache, beside states and gates; larger ones are
// streamed from the third-level cache at every step.
inline int64_t resident_bytes() { return second_level_bytes() / 4 * 3; }

}  // namespace fastlstm

// Scratch memory of a call. The calling thread keeps it for its next call, since fresh pages cost more than the work of
// a short sequence. Memory that is in use at the same time has different uses: packed weights and states, gate inputs,
// and what large products pack.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "core/layout.h"

namespace fastlstm {

// With FASTLSTM_POISON=1, for tests, new memory is filled with NaN, so that reading it before it is written shows.
inline void poison(void* data, size_t bytes) {
  static const bool wanted = [] {
    const char* variable = std::getenv("FASTLSTM_POISON");
    return variable != nullptr && std::strcmp(variable, "1") == 0;
  }();
  if (wanted && bytes > 0) std::memset(data, 0xff, bytes);
}

inline constexpr size_t kLargePage = size_t{2} << 20;

// Asks for large pages for new memory, before it is written: fresh pages of 4 KiB cost up to a tenth of a training step,
// and a row alone that reads 16 MiB of weights a step waits for their addresses. Without large pages in the system
// nothing changes.
inline void ask_for_large_pages(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr size_t kPage = 4096;
  const size_t begin = reinterpret_cast<size_t>(data), first = (begin + kPage - 1) / kPage * kPage,
               last = (begin + bytes) / kPage * kPage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

class Workspace {
 public:
  enum Use { kRecurrence, kGates, kProduct, kUses };

  // At least `bytes`, aligned to a cache line; the content is left over from earlier calls.
  static char* take(size_t bytes, Use use = kRecurrence) {
    thread_local Workspace blocks[kUses];
    Workspace& kept = blocks[use];
    if (bytes > kept.size_) {
      kept.release();
      kept.large_ = bytes >= kWorthLargePages;
      kept.data_ = static_cast<char*>(::operator new(bytes, kept.alignment()));
      kept.size_ = bytes;
      if (kept.large_) ask_for_large_pages(kept.data_, bytes);
    }
    poison(kept.data_, bytes);
    return kept.data_;
  }

  ~Workspace() { release(); }

 private:
  // The second-level translation buffers of current cores reach 6 to 8 MiB by pages of 4 KiB.
  static constexpr size_t kWorthLargePages = 2 * kLargePage;

  std::align_val_t alignment() const { return std::align_val_t{large_ ? kLargePage : Layout::kAlignment}; }

  void release() {
    if (data_ != nullptr) ::operator delete(data_, alignment());
    data_ = nullptr;
    size_ = 0;
  }

  char* data_ = nullptr;
  size_t size_ = 0;
  bool large_ = false;
};

}  // namespace fastlstm

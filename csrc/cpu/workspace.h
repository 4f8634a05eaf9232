// Scratch memory of a call. The calling thread keeps it for its next call, since fresh pages cost more than the work of
// a short sequence. Memory that is in use at the same time has different uses: packed weights and states, gate inputs,
// and what large products pack.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

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

class Workspace {
 public:
  enum Use { kRecurrence, kGates, kProduct, kUses };

  // At least `bytes`, aligned to a cache line; the content is left over from earlier calls.
  static char* take(size_t bytes, Use use = kRecurrence) {
    thread_local Workspace blocks[kUses];
    Workspace& kept = blocks[use];
    if (bytes > kept.size_) {
      kept.release();
      kept.data_ = static_cast<char*>(::operator new(bytes, std::align_val_t{kAlignment}));
      kept.size_ = bytes;
    }
    poison(kept.data_, bytes);
    return kept.data_;
  }

  ~Workspace() { release(); }

 private:
  static constexpr size_t kAlignment = Layout::kAlignment;

  void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kAlignment});
    data_ = nullptr;
    size_ = 0;
  }

  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace fastlstm

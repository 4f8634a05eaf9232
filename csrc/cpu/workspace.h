// Scratch memory of a call: a block for packed weights and states, and one for the large products that are made while these are in
// use, kept by the calling thread for its next call, because fresh pages cost more than the work of a short sequence.
#pragma once

#include <cstddef>
#include <new>

#include "../core/layout.h"

namespace fastlstm {

class Workspace {
 public:
  enum Use { kRecurrence, kProduct };

  // A block of at least `bytes`, aligned to a cache line; what it holds is left over from earlier calls.
  static char* take(size_t bytes, Use use = kRecurrence) {
    thread_local Workspace blocks[2];
    Workspace& kept = blocks[use];
    if (bytes > kept.size_) {
      kept.release();
      kept.data_ = static_cast<char*>(::operator new(bytes, std::align_val_t{kAlignment}));
      kept.size_ = bytes;
    }
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

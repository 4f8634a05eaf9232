// Scratch memory of a call: one block for packed weights and states, kept by the calling thread for its next call, because
// fresh pages cost more than the work of a short sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace fastlstm {

class Workspace {
 public:
  // A block of at least `bytes`, aligned to a cache line; what it holds is left over from earlier calls.
  static char* take(size_t bytes) {
    thread_local Workspace kept;
    if (bytes > kept.size_) {
      kept.release();
      kept.data_ = static_cast<char*>(::operator new(bytes, std::align_val_t{kAlignment}));
      kept.size_ = bytes;
    }
    return kept.data_;
  }

  ~Workspace() { release(); }

 private:
  static constexpr size_t kAlignment = 64;

  void release() {
    if (data_ != nullptr) ::operator delete(data_, std::align_val_t{kAlignment});
    data_ = nullptr;
    size_ = 0;
  }

  char* data_ = nullptr;
  size_t size_ = 0;
};

// Lays arrays out one after the other: first with no memory, to learn the size, then on it.
class Layout {
 public:
  explicit Layout(char* base) : base_(base) {}

  template <class T>
  T* array(int64_t count) {
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return place;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace fastlstm

// Places the arrays of a workspace one after the other: first without memory, to learn the size, then in it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm {

class Layout {
 public:
  // Every array starts at a multiple of this many bytes from `base`.
  static constexpr size_t kAlignment = 64;

  explicit Layout(char* base) : base_(base) {}

  template <class T>
  T* array(int64_t count) {
    T* place = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return place;
  }

  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace fastlstm

// How a family chooses among its shapes: it asks each for its offer, keeps the number of the best, and finds that shape
// again when the call runs. Shapes are types, so both loop over all of them.
#pragma once

#include <atomic>

#include "cuda/families.h"

namespace fastlstm::cuda {

// The best of the offers added, with its number; the first of equal ones. With a number in `only`, that shape's.
class BestShape {
 public:
  BestShape(int64_t T, int only) : T_(T), only_(only) {}

  void add(Offer offer) {
    offer.shape = count_++;
    if ((only_ == kAnyShape || only_ == offer.shape) && offer.beats(best_, T_)) best_ = offer;
  }
  const Offer& offer() const { return best_; }

 private:
  int64_t T_;
  int only_;
  Offer best_;
  int count_ = 0;
};

// use(the shape with this number), among those that it is called with.
template <class Use>
class Numbered {
 public:
  Numbered(int number, const Use& use) : number_(number), use_(use) {}

  template <class Shape>
  void operator()(Shape shape) const {
    if (count_++ == number_) use_(shape);
  }

 private:
  int number_;
  const Use& use_;
  mutable int count_ = 0;
};

// The answer of ask() for this device, a number of 15 bits, kept from the first time: asking takes longer than a step,
// and the answer stays the same.
template <class Ask>
int known(std::atomic<uint64_t>& answer, const DeviceFacts& device, const Ask& ask) {
  const uint64_t asked = device.fingerprint() << 16 | 1, before = answer.load(std::memory_order_relaxed);
  if ((before & ~uint64_t{0xfffe}) == asked) return static_cast<int>((before & 0xfffe) >> 1);
  const int now = ask();
  answer.store(asked | static_cast<uint64_t>(now) << 1, std::memory_order_relaxed);
  return now;
}

}  // namespace fastlstm::cuda

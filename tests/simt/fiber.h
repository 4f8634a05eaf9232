// A stack of its own for each CUDA thread, and the switch between it and the scheduler's.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#define SIMT_PORTABLE_FIBERS 1
#include <ucontext.h>
#else
#define SIMT_PORTABLE_FIBERS 0
#endif

namespace simt {

class Fiber {
 public:
  using Entry = void (*)();

  // A fiber that enters `entry` when it is first resumed; stacks are used again.
  static Fiber* take(Entry entry);
  // To be used again; also one that has not come to its end.
  static void give_back(Fiber* fiber);

  // From the scheduler: goes on where the fiber left off, until it suspends.
  void resume();
  // From the fiber: back to the scheduler. A fiber that suspends for good is never resumed.
  void suspend(bool for_good);

  // False once the stack was overrun; looked at after each resume.
  bool intact() const;

 private:
  explicit Fiber(unsigned char* stack) : stack_(stack) {}
  void prepare(Entry entry);
  static void begin();
  void arrived();

  unsigned char* stack_;
  Entry entry_ = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
#if SIMT_PORTABLE_FIBERS
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace simt

#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#endif

namespace simt {
namespace {

// Frames are larger with AddressSanitizer. Pages that are never touched take no memory.
constexpr size_t kStackBytes = SIMT_ASAN ? 256 << 10 : 64 << 10;
constexpr size_t kStacksAtOnce = 64;
constexpr uint64_t kCanary = 0x5afe57acc0ffee11;

std::vector<Fiber*>& spare() {
  static auto* fibers = new std::vector<Fiber*>;
  return *fibers;
}

Fiber* resumed = nullptr;

#if SIMT_ASAN
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
#endif

#if SIMT_PORTABLE_FIBERS
ucontext_t scheduler_context;
#else
void* scheduler_stack_pointer = nullptr;
#endif

}  // namespace

#if !SIMT_PORTABLE_FIBERS
// Saves what a called function has to preserve, on the stack it leaves, and takes it from the stack it enters.
extern "C" void simt_switch_stack(void** leave, void* enter);
asm(R"(
.text
.p2align 4
.hidden simt_switch_stack
.globl simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");
#endif

Fiber* Fiber::take(Entry entry) {
  if (spare().empty()) {
    void* stacks = mmap(nullptr, kStackBytes * kStacksAtOnce, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) {
      std::perror("simt: no memory for the stacks of the threads");
      std::abort();
    }
    for (size_t i = kStacksAtOnce; i-- > 0;) {
      spare().push_back(new Fiber(static_cast<unsigned char*>(stacks) + i * kStackBytes));
    }
  }
  Fiber* fiber = spare().back();
  spare().pop_back();
  fiber->prepare(entry);
  return fiber;
}

void Fiber::give_back(Fiber* fiber) { spare().push_back(fiber); }

void Fiber::prepare(Entry entry) {
  entry_ = entry;
  fake_stack_ = nullptr;
#if SIMT_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);  // what the frames of its last use left behind
#endif
  std::memcpy(stack_, &kCanary, sizeof kCanary);
#if SIMT_PORTABLE_FIBERS
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  makecontext(&context_, begin, 0);
#else
  // As if begin() had been called from address 0, where stack traces end: six registers, begin, 0.
  auto* top = reinterpret_cast<uint64_t*>(stack_ + kStackBytes - 64);
  std::memset(top - 6, 0, 9 * sizeof *top);
  top[0] = reinterpret_cast<uint64_t>(&begin);
  stack_pointer_ = top - 6;
#endif
}

bool Fiber::intact() const { return std::memcmp(stack_, &kCanary, sizeof kCanary) == 0; }

void Fiber::begin() {
  resumed->arrived();
  resumed->entry_();
  std::abort();  // an entry suspends for good
}

void Fiber::arrived() {
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void Fiber::resume() {
  resumed = this;
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_, kStackBytes);
#endif
#if SIMT_PORTABLE_FIBERS
  swapcontext(&scheduler_context, &context_);
#else
  simt_switch_stack(&scheduler_stack_pointer, stack_pointer_);
#endif
#if SIMT_ASAN
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend(bool for_good) {
#if SIMT_ASAN
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack_, scheduler_stack, scheduler_stack_bytes);
#else
  (void)for_good;
#endif
#if SIMT_PORTABLE_FIBERS
  swapcontext(&context_, &scheduler_context);
#else
  simt_switch_stack(&stack_pointer_, scheduler_stack_pointer);
#endif
  arrived();
}

}  // namespace simt

// Launches with error handling: after the first failure nothing more is launched, and the status names the kernel and
// the sizes.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "cuda/recurrence.h"

namespace fastlstm::cuda {

// Facts about the current device. capability: first digit of the compute capability. shared_bytes: the most that a
// block can have. cooperative: whether cooperative launches are possible (not on parts of a shared GPU).
struct DeviceFacts {
  int device = 0, multiprocessors = 1, capability = 0, shared_bytes = 0, cooperative = 0;

  // Asked once for each device by a library for GPUs; a simulated one may change.
  DeviceFacts() {
    cudaGetDevice(&device);
#if defined(__CUDACC__)
    static std::atomic<uint64_t> kept[64];
    std::atomic<uint64_t>& mine = kept[device % 64];
    const uint64_t before = mine.load(std::memory_order_relaxed);
    if (before != 0 && DeviceFacts(before).device == device) {
      *this = DeviceFacts(before);
      return;
    }
    ask();
    mine.store(fingerprint(), std::memory_order_relaxed);
#else
    ask();
#endif
  }

  // A number of 48 bits; devices with equal fingerprints answer questions about kernels alike.
  uint64_t fingerprint() const {
    const auto part = [](int value, int bits) { return static_cast<uint64_t>(value) & ((uint64_t{1} << bits) - 1); };
    return part(device, 9) << 39 | part(cooperative, 1) << 38 | part(multiprocessors, 12) << 26 |
           part(capability, 6) << 20 | part(shared_bytes, 20);
  }

 private:
  explicit DeviceFacts(uint64_t fingerprint) {
    const auto part = [&](int bits) {
      const int value = static_cast<int>(fingerprint & ((uint64_t{1} << bits) - 1));
      fingerprint >>= bits;
      return value;
    };
    shared_bytes = part(20);
    capability = part(6);
    multiprocessors = part(12);
    cooperative = part(1);
    device = part(9);
  }

  void ask() {
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&capability, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device);
  }
};

// Allows a kernel this much shared memory. False if the device has less, which is no error.
inline bool allow_shared_bytes(const void* kernel, size_t bytes) {
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  const bool fine = cudaFuncSetAttribute(kernel, attribute, static_cast<int>(bytes)) == cudaSuccess;
  if (!fine) cudaGetLastError();  // or the next call would report it
  return fine;
}

class Launcher {
 public:
  Launcher(const Sizes& sizes, void* stream) : sizes_(sizes), stream_(static_cast<cudaStream_t>(stream)) {}

  const Status& status() const { return status_; }
  bool failed() const { return status_.code != 0; }

  // More than 48 KiB of shared memory must be allowed once for each kernel and device.
  template <class... Params>
  void allow_shared(const char* name, void (*kernel)(Params...), size_t bytes) {
    if (failed() || bytes <= size_t{48} << 10) return;
    note(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(bytes)));
  }

  template <class... Params, class... Args>
  void operator()(const char* name, void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
                  const Args&... args) {
    if (failed()) return;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    configured(name, kernel, config, args...);
  }

  // A launch with everything configured except the stream.
  template <class... Params, class... Args>
  void configured(const char* name, void (*kernel)(Params...), cudaLaunchConfig_t& config, const Args&... args) {
    if (failed()) return;
    config.stream = stream_;
    note(name, cudaLaunchKernelEx(&config, kernel, args...));
  }

  // A launch whose blocks all run at once, or not at all: CUDA refuses it where the process has fewer multiprocessors
  // than the device, which nobody can be asked beforehand.
  template <class... Params, class... Args>
  void cooperative(const char* name, void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
                   const Args&... args) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (failed()) return;
    configured(name, kernel, config, args...);
    if (status_.code == cudaErrorCooperativeLaunchTooLarge || status_.code == cudaErrorNotSupported)
      add("; its blocks must all run at once, for which MPS or a green context may leave too few multiprocessors: set "
          "the environment variable FASTLSTM_CUDA_KERNELS=step for kernels that need not");
  }

  // A launch of clusters, which the device said that it has room for: what is left to a process may have none.
  template <class... Params, class... Args>
  void in_clusters(const char* name, void (*kernel)(Params...), cudaLaunchConfig_t& config, const Args&... args) {
    if (failed()) return;
    configured(name, kernel, config, args...);
    if (failed())
      add("; if it is the clusters that are refused, set the environment variable FASTLSTM_CUDA_KERNELS=\"grid step\" "
          "for kernels without them");
  }

  // Refuses a call whose workspace is too small.
  void needs_workspace(size_t needed, size_t given) {
    if (failed() || needed <= given) return;
    note("the recurrence", cudaErrorInvalidValue);
    char text[100];
    std::snprintf(text, sizeof text, "; the workspace has %zu bytes, and the call needs %zu", given, needed);
    add(text);
  }

  // Zeroes memory for a kernel.
  void clear(const char* name, void* data, size_t bytes) {
    if (!failed()) note(name, cudaMemsetAsync(data, 0, bytes, stream_));
  }

  // For kernels that loop over `elements` in strides of the grid.
  template <class... Params, class... Args>
  void over(int64_t elements, const char* name, void (*kernel)(Params...), const Args&... args) {
    constexpr int64_t kThreads = 256, kMostBlocks = 4096;
    const int64_t blocks = (elements + kThreads - 1) / kThreads;
    (*this)(name, kernel, dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks)), kThreads, 0,
            args...);
  }

 private:
  void note(const char* name, cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // or the next CUDA call of the process would report it again
    status_.code = static_cast<int>(error);
    std::snprintf(status_.text, sizeof status_.text, "%s for T=%lld, N=%lld, D=%lld, H=%lld, P=%lld: %s", name,
                  static_cast<long long>(sizes_.T), static_cast<long long>(sizes_.N), static_cast<long long>(sizes_.D),
                  static_cast<long long>(sizes_.H), static_cast<long long>(sizes_.P), cudaGetErrorString(error));
  }

  // To what the status says.
  void add(const char* more) {
    const size_t used = std::strlen(status_.text);
    std::snprintf(status_.text + used, sizeof status_.text - used, "%s", more);
  }

  Sizes sizes_;
  cudaStream_t stream_;
  Status status_;
};

}  // namespace fastlstm::cuda

// What the probes share: memory, launches that are timed by a block's own clock, and the lines of JSON that they print.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>

namespace probe {

// Few rounds, to see that the program runs: nothing is learned from its numbers then.
inline int& rounds() {
  static int count = 2000;
  return count;
}

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

inline int attribute(cudaDeviceAttr which) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
  return value;
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : bytes_(count * sizeof(T)) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes_), "cudaMalloc");
    clear();
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;

  void clear() { check(cudaMemsetAsync(data_, 0, bytes_), "cudaMemsetAsync"); }
  T* get() { return data_; }
  T first() {
    T value;
    check(cudaMemcpyAsync(&value, data_, sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpyAsync");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    return value;
  }

 private:
  T* data_ = nullptr;
  size_t bytes_;
};

struct Launch {
  dim3 grid = 1, block = 256;
  size_t shared_bytes = 0;
  int cluster = 0;  // blocks of a cluster, 0: none
  bool cooperative = false;
  std::function<void()> before = [] {};
};

// The launch's configuration; `attributes` must live as long as it.
template <class Kernel>
cudaLaunchConfig_t configure(Kernel* kernel, const Launch& launch, cudaLaunchAttribute (&attributes)[1]) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (launch.shared_bytes > 0) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(launch.shared_bytes)),
          "cudaFuncSetAttribute");
  }
  if (launch.cluster > 8) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = launch.block;
  config.dynamicSmemBytes = launch.shared_bytes;
  config.attrs = attributes;
  if (launch.cluster > 0) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = static_cast<unsigned>(launch.cluster);
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  } else if (launch.cooperative) {
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
  }
  config.numAttrs = launch.cluster > 0 || launch.cooperative ? 1 : 0;
  return config;
}

// Clocks of one of the rounds that a kernel goes through, which gets `more...`, their count, and where to put its
// clocks; the second of two launches, since the first also loads the code.
template <class... Params, class... Args>
double clocks_a_round(void (*kernel)(Params...), const Launch& launch, const Args&... more) {
  DeviceArray<long long> clocks(1);
  cudaLaunchAttribute attributes[1];
  cudaLaunchConfig_t config = configure(kernel, launch, attributes);
  for (int k = 0; k < 2; ++k) {
    launch.before();
    check(cudaLaunchKernelEx(&config, kernel, more..., rounds(), clocks.get()), "a probe's launch");
  }
  return static_cast<double>(clocks.first()) / rounds();
}

// One line: what was asked, the value, and what csrc/cuda/costs.h assumes of it, or 0 where it assumes nothing.
inline void say(const char* question, const char* detail, double value, const char* unit, double assumed = 0) {
  std::printf("{\"question\": \"%s\", \"detail\": \"%s\", \"value\": %.4g, \"unit\": \"%s\", \"assumed\": %.4g}\n",
              question, detail, value, unit, assumed);
  std::fflush(stdout);
}

void probe_clusters();
void probe_grid();
void probe_rates();
void probe_launches();

}  // namespace probe

// The host side: launches are checked as CUDA does, and errors come back as its codes.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>

#include "device.h"
#include "grid.h"

namespace simt {
namespace {

struct Kernel {
  int max_shared = 0;  // 0: what needs no asking
  bool non_portable_clusters = false;
  uint64_t launched_shared = 0, launched_threads = 0;  // the most of a block; 0 threads: never launched
};

std::map<const void*, Kernel>& kernels() {
  static auto* all = new std::map<const void*, Kernel>;
  return *all;
}

cudaError_t last_error = cudaSuccess;
uint64_t launches = 0;

// Autograd's threads call too.
std::recursive_mutex& all_of_this() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}

using Lock = std::lock_guard<std::recursive_mutex>;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

uint64_t count(const dim3& d) { return uint64_t{d.x} * d.y * d.z; }

int max_shared(const void* kernel) {
  const int asked = kernels()[kernel].max_shared;
  return asked > 0 ? asked : device().max_shared;
}

int blocks_per_multiprocessor(uint64_t threads, size_t shared_bytes) {
  const Device& d = device();
  const uint64_t rounded = (threads + 31) / 32 * 32;
  const uint64_t by_threads = static_cast<uint64_t>(d.max_threads_multiprocessor) / std::max<uint64_t>(rounded, 1);
  const uint64_t by_shared =
      static_cast<uint64_t>(d.max_shared_multiprocessor) / (shared_bytes + static_cast<uint64_t>(d.reserved_shared));
  return static_cast<int>(std::min({by_threads, by_shared, uint64_t{32}}));
}

// Fills `made` from `config`; an error as CUDA's.
cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel, Launch& made) {
  const dim3 &grid = config.gridDim, &block = config.blockDim;
  made.grid = grid;
  made.block = block;
  made.shared_bytes = config.dynamicSmemBytes;
  bool clusters = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative) made.cooperative = attribute.val.cooperative != 0;
    if (attribute.id == cudaLaunchAttributeClusterDimension) {
      clusters = true;
      made.cluster = {attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z};
    }
  }
  if (count(grid) == 0 || count(block) == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (count(block) > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (made.shared_bytes > static_cast<size_t>(max_shared(kernel))) return cudaErrorInvalidValue;
  const int per_multiprocessor = blocks_per_multiprocessor(count(block), made.shared_bytes);
  if (per_multiprocessor == 0) return cudaErrorLaunchOutOfResources;
  if (clusters) {
    const dim3& c = made.cluster;
    if (device().capability_major < 9) return cudaErrorNotSupported;
    const unsigned most = kernels()[kernel].non_portable_clusters ? 16 : 8;
    if (count(c) == 0 || count(c) > most) return cudaErrorInvalidClusterSize;
    if (grid.x % c.x != 0 || grid.y % c.y != 0 || grid.z % c.z != 0) return cudaErrorInvalidConfiguration;
  }
  if (made.cooperative && device().cooperative == 0) return cudaErrorNotSupported;
  if (made.cooperative && count(grid) > uint64_t{1} * device().multiprocessors * per_multiprocessor) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  return cudaSuccess;
}

}  // namespace

Device& device() {
  static Device only;
  return only;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void (*call)(const void*),
                   const void* arguments) {
  const Lock lock(all_of_this());
  if (device().fail_launch != 0) {
    const auto error = static_cast<cudaError_t>(device().fail_launch);
    device().fail_launch = 0;
    return remember(error);
  }
  Launch made;
  const cudaError_t error = check(config, kernel, made);
  if (error != cudaSuccess) return remember(error);
  made.kernel = call;
  made.arguments = arguments;
  Kernel& known = kernels()[kernel];
  known.launched_shared = std::max<uint64_t>(known.launched_shared, made.shared_bytes);
  known.launched_threads = std::max(known.launched_threads, count(made.block));
  if (device().dry != 0) return cudaSuccess;
  ++launches;
  return remember(run(made) ? cudaSuccess : cudaErrorLaunchFailure);
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorLaunchFailure:
      return simt_last_report();
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorInvalidClusterSize:
      return "Invalid cluster size";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }

cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() { return simt::last_error; }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return simt::remember(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const simt::Device& d = simt::device();
  if (device != 0) return simt::remember(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = d.max_shared;
      return cudaSuccess;
    case cudaDevAttrWarpSize:
      *value = 32;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = d.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = d.max_threads_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = d.capability_major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = d.capability_minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = d.max_shared_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = d.cooperative;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = d.max_shared_opt_in;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = d.reserved_shared;
      return cudaSuccess;
    case cudaDevAttrClusterLaunch:
      *value = d.capability_major >= 9;
      return cudaSuccess;
  }
  return simt::remember(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

// With bytes in it that nobody expects.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return simt::remember(cudaErrorMemoryAllocation);
  std::memset(*memory, 0xcd, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const simt::Lock lock(simt::all_of_this());
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > simt::device().max_shared_opt_in) return simt::remember(cudaErrorInvalidValue);
    simt::kernels()[kernel].max_shared = value;
  } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    simt::kernels()[kernel].non_portable_clusters = value != 0;
  } else if (attribute != cudaFuncAttributePreferredSharedMemoryCarveout) {
    return simt::remember(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  const simt::Lock lock(simt::all_of_this());
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 32;
  const simt::Device& d = simt::device();
  attributes->binaryVersion = 10 * d.capability_major + d.capability_minor;
  attributes->ptxVersion = d.ptx_version != 0 ? d.ptx_version : attributes->binaryVersion;
  attributes->maxDynamicSharedSizeBytes = simt::max_shared(kernel);
  attributes->nonPortableClusterSizeAllowed = simt::kernels()[kernel].non_portable_clusters;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared_bytes) {
  *blocks = simt::blocks_per_multiprocessor(static_cast<uint64_t>(threads), shared_bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* kernel, const cudaLaunchConfig_t* config) {
  const simt::Lock lock(simt::all_of_this());
  simt::Launch made;
  const cudaError_t error = simt::check(*config, kernel, made);
  if (error != cudaSuccess) return simt::remember(error);
  // How many registers the kernel has for a GPU is not known here: many, as if a multiprocessor had them for 390
  // threads.
  const int threads = static_cast<int>(simt::count(made.block));
  const int blocks =
      std::min(simt::blocks_per_multiprocessor(simt::count(made.block), made.shared_bytes), std::max(1, 390 / threads));
  const int all = simt::device().multiprocessors, together = std::min(all, simt::device().multiprocessors_together);
  const int size = static_cast<int>(simt::count(made.cluster));
  *clusters = all / together * (together * blocks / size) + all % together * blocks / size;
  return cudaSuccess;
}

extern "C" {

void simt_set_seed(uint64_t seed) { simt::set_seed(seed); }

bool simt_set_device(const char* field, int value) {
  simt::Device& d = simt::device();
  const std::pair<const char*, int*> fields[] = {{"multiprocessors", &d.multiprocessors},
                                                 {"capability_major", &d.capability_major},
                                                 {"capability_minor", &d.capability_minor},
                                                 {"max_shared", &d.max_shared},
                                                 {"max_shared_opt_in", &d.max_shared_opt_in},
                                                 {"max_shared_multiprocessor", &d.max_shared_multiprocessor},
                                                 {"reserved_shared", &d.reserved_shared},
                                                 {"max_threads_multiprocessor", &d.max_threads_multiprocessor},
                                                 {"fail_launch", &d.fail_launch},
                                                 {"ptx_version", &d.ptx_version},
                                                 {"tensor_core_extra_bits", &d.tensor_core_extra_bits},
                                                 {"cooperative", &d.cooperative},
                                                 {"multiprocessors_together", &d.multiprocessors_together},
                                                 {"dry", &d.dry}};
  for (const auto& [name, number] : fields) {
    if (std::strcmp(name, field) != 0) continue;
    *number = value;
    return true;
  }
  return false;
}

uint64_t simt_launches() { return simt::launches; }

bool simt_kernel(uint64_t k, const void** address, uint64_t* shared_bytes, uint64_t* threads) {
  const simt::Lock lock(simt::all_of_this());
  for (const auto& [kernel, known] : simt::kernels()) {
    if (known.launched_threads == 0 || k-- > 0) continue;
    *address = kernel;
    *shared_bytes = known.launched_shared;
    *threads = known.launched_threads;
    return true;
  }
  return false;
}

const char* simt_last_report() { return simt::last_report().c_str(); }
}

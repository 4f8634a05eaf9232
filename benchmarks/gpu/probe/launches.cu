// What a launch costs, by the host's clock, and the clock of the multiprocessors.
#include <chrono>

#include "cuda/costs.h"
#include "probe.h"

namespace probe {

namespace {

__global__ void nothing(int, long long*) {}

__global__ void count_clocks(int rounds, long long* clocks) {
  const long long start = clock64();
  long long now = start;
  while (now - start < 1000LL * rounds) now = clock64();
  *clocks = now - start;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double gigahertz() {
  DeviceArray<long long> clocks(1);
  count_clocks<<<1, 1>>>(rounds(), clocks.get());
  clocks.first();
  const auto start = std::chrono::steady_clock::now();
  count_clocks<<<1, 1>>>(rounds(), clocks.get());
  check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  const double seconds = seconds_since(start);
  return static_cast<double>(clocks.first()) / seconds * 1e-9;
}

}  // namespace

void probe_launches() {
  const double clock = gigahertz();
  say("clock of the multiprocessors", "", clock, "GHz");
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto launches = [&] {
    for (int k = 0; k < rounds(); ++k) nothing<<<1, 32, 0, stream>>>(0, nullptr);
  };
  const auto finish = [&] { check(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); };
  launches();
  finish();
  auto start = std::chrono::steady_clock::now();
  launches();
  finish();
  const double eager = seconds_since(start) / rounds();
  say("launch after launch", "in a stream", eager * 1e6, "us");
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  launches();
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate");
  for (int k = 0; k < 2; ++k) {
    start = std::chrono::steady_clock::now();
    check(cudaGraphLaunch(ready, stream), "cudaGraphLaunch");
    finish();
  }
  const double captured = seconds_since(start) / rounds();
  say("launch after launch", "in a graph", captured * 1e6, "us");
  say("launch after launch", "in a graph", captured * clock * 1e9, "clocks",
      static_cast<double>(fastlstm::cuda::costs::kLaunch));
}

}  // namespace probe

// float32 products of csrc/cuda alone, over a K from outside: as a block keeps its weights, and as step kernels read
// tiles. With ONLY_128 for that K alone, for tests that compile it often.
#include <cuda_runtime.h>

#include "launch.h"
#include "cuda/product/plain_stationary.h"
#include "simt/problem.h"

namespace {

using namespace fastlstm;
using namespace fastlstm::cuda;

// weights (32, K), state (8, K), sums (32, 8).
struct Args {
  const float *weights, *state;
  float* sums;
};

// Without the sums apart: the tensor cores add over all of K.
struct TogetherProduct : Float32Product {
  static constexpr bool kApart = false;
};

template <class Shape>
__global__ void held_kernel(Args args) {
  static_assert(Shape::kColumns == 32 && Shape::kRows == 8 && Shape::kWarpsK == 1);
  FASTLSTM_SHARED(shared);
  const StationaryProduct<Shape> product(shared,
                                         [&](int column, int k) { return args.weights[column * Shape::kK + k]; });
  unsigned char* state = shared + Shape::kWeightBytes;
  for (int at = threadIdx.x; at < Shape::kRows * Shape::kK; at += Shape::kThreads) {
    reinterpret_cast<float*>(state + at / Shape::kK * Shape::kStateStride)[at % Shape::kK] = args.state[at];
  }
  __syncthreads();
  typename StationaryProduct<Shape>::Sums sums;
  product.run(state, sums);
  product.for_pairs(sums, [&](int column, int row, float first, float second) {
    args.sums[column * Shape::kRows + row] = first;
    args.sums[column * Shape::kRows + row + 1] = second;
  });
}

// One warp, 16 of the weights' columns.
template <int kK>
__global__ void tile_kernel(Args args) {
  FASTLSTM_SHARED(shared);
  constexpr int kNumbers = kRowBytes / sizeof(float);
  const int lane = static_cast<int>(threadIdx.x);
  float d[4] = {};
  for (int k0 = 0; k0 < kK; k0 += kNumbers) {
    for (int line = 0; line < 24; ++line) {
      const float* from = line < 16 ? args.weights + line * kK : args.state + (line - 16) * kK;
      reinterpret_cast<float*>(shared + line * kStride)[lane] = from[k0 + lane];
    }
    __syncwarp();
    for (int byte = 0; byte < kRowBytes; byte += Float32Product::kSlabBytes) {
      Float32Product::A a;
      Float32Product::B b;
      Float32Product::load(a, shared + byte, lane);
      Float32Product::load(b, shared + 16 * kStride + byte, lane);
      Float32Product::multiply(d, a, b);
    }
    __syncwarp();
  }
  for (int place = 0; place < 4; ++place)
    args.sums[(lane / 4 + place / 2 * 8) * 8 + lane % 4 * 2 + place % 2] = d[place];
}

template <class Shape>
cudaError_t held(const Args& args) {
  const int bytes = Shape::kWeightBytes + Shape::kStateBytes;
  const auto kernel = held_kernel<Shape>;
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  return launch(::Shape{1, Shape::kThreads, static_cast<size_t>(bytes)}, nullptr, kernel, args);
}

template <int kK>
cudaError_t any(const std::string& how, const Args& args) {
  constexpr int kSlabs = kK / 8, kQuads = kK / 16;
  if (how == "apart") return held<StationaryShape<Float32Product, 2, 1, 1, 4, kSlabs - 4, 1>>(args);
  if (how == "together") return held<StationaryShape<TogetherProduct, 2, 1, 1, 4, kSlabs - 4, 1>>(args);
  if (how == "plain") return held<PlainShape<1, 1, 4, 4, 2, kQuads - 2, 8>>(args);
  return launch(::Shape{1, 32, 24 * kStride}, nullptr, tile_kernel<kK>, args);
}

template <const char* const& kHow>
std::string entry(simt::Problem& p) {
  const Args args{p.array<float>("weights"), p.array<float>("state"), p.array<float>("sums")};
#if defined(ONLY_128)
  const cudaError_t error = any<128>(kHow, args);
#else
  const int64_t K = p.integer("K");
  const cudaError_t error = K == 128 ? any<128>(kHow, args) : K == 512 ? any<512>(kHow, args) : any<2048>(kHow, args);
#endif
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

constexpr const char* kApart = "apart";
constexpr const char* kTogether = "together";
constexpr const char* kPlain = "plain";
constexpr const char* kTile = "tile";
constexpr simt::NamedEntry kEntries[] = {
    {"apart", entry<kApart>}, {"together", entry<kTogether>}, {"plain", entry<kPlain>}, {"tile", entry<kTile>}};

}  // namespace

int main(int argc, char** argv) { return simt::runner_main(argc, argv, kEntries, std::size(kEntries)); }

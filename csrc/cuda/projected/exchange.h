// The two exchanges of a step with a projection: parts of all outputs to the blocks that own them, and finished outputs
// to all.
//
// Each exchange has one buffer, not two, since the other exchange comes between its uses. Parts of a step are sent when
// all outputs of the step before have arrived; their owners had then added all parts of that step. Outputs are sent
// when all parts of the step have arrived; every block sent these after a barrier at which all of its threads were done
// with the last outputs.
//
// Rows beyond the batch are not sent.
#pragma once

#include "cuda/grid/exchange.h"
#include "cuda/projected/blocks.h"

namespace fastlstm::cuda {

// The parts of a block's slice, from each block and each of the warps that split K, and their sum.
template <class Shape>
struct Parts {
  float* parts;
  Slices slices;
  int sources;

  __device__ __forceinline__ float sum(const OutputPlaces<Shape>& places, int e) const {
    const float* from = parts + slices.place(places.row(e), places.output(e));
    float total = 0;  // in a fixed order, so that results repeat bit by bit
    for (int source = places.copy(); source < sources; source += places.copies())
      total += from[source * Shape::part_floats(slices)];
    return places.add(total);
  }
};

// In a cluster: stores into each other's shared memory, with an mbarrier for each exchange; in a single block:
// barriers.
template <class Shape, bool kCluster>
class ClusterReduction {
 public:
  using IO = typename Shape::IO;
  // Whether parts_sent and sent wait for the block's earlier stores to complete.
  static constexpr bool kWaitsForStores = false;

  // `rows` of the batch; how many times parts and outputs will come. Nothing may be sent before `ready`.
  __device__ __forceinline__ ClusterReduction(unsigned char* shared, const Slices& slices, int block, int blocks,
                                              int rows, int reductions, int gathers)
      : parts_{reinterpret_cast<float*>(shared + Shape::kPartsAt), slices, blocks * Shape::Own::kWarpsK},
        state_(shared + Shape::kSharedStateAt),
        block_(block),
        blocks_(blocks),
        rows_(rows),
        mbarriers_(reinterpret_cast<uint64_t*>(shared)) {
    if (!kCluster) return;
    coming_[kParts].bytes = parts_.sources * slices.size() * ((rows + 1) / 2 * 2) * sizeof(float);
    coming_[kParts].left = owns() ? reductions : 0;
    coming_[kOutputs].bytes = slices.outputs() * rows * sizeof(IO);
    coming_[kOutputs].left = gathers;
    if (threadIdx.x == 0) {
      ptx::mbarrier_init(mbarriers_ + kParts, 1);
      ptx::mbarrier_init(mbarriers_ + kOutputs, 1);
      ptx::mbarrier_fence_init();
      expect(kParts);
      expect(kOutputs);
    }
  }

  __device__ __forceinline__ void ready() const { meet(); }
  __device__ __forceinline__ void done() const {
    if (kCluster) meet();
  }

  // Sends this block's part of two rows of an output: the sums of the warp_k-th share of K.
  __device__ __forceinline__ void send_part(int warp_k, int output, int row, float first, float second) const {
    const int to = parts_.slices.owner(output);
    if (to >= parts_.slices.count || row >= rows_) return;
    const int source = block_ * Shape::Own::kWarpsK + warp_k;
    float* place = parts_.parts + source * Shape::part_floats(parts_.slices) + parts_.slices.place(row, output);
    AsyncStores<kCluster>::to_one(to, mbarriers_ + kParts, place, first, second);
  }
  __device__ __forceinline__ void parts_sent() const {}
  // Waits until all parts of this block's slice have arrived.
  __device__ __forceinline__ void wait_for_parts() {
    if (!kCluster || owns()) wait(kParts);
  }
  __device__ __forceinline__ float sum(const OutputPlaces<Shape>& places, int e) const { return parts_.sum(places, e); }

  // All threads of the warp: sends a finished output of this block's slice, at the e-th place of `places`.
  __device__ __forceinline__ void send(const OutputPlaces<Shape>& places, int e, IO x) const {
    const int row = places.row(e), output = (block_ << parts_.slices.shift) + places.output(e);
    IO* place = reinterpret_cast<IO*>(state_ + row * Shape::Shared::kStateStride) + output;
    x = places.of_first(x);
    AsyncStores<kCluster>::to_all(row < rows_ ? blocks_ : 0, mbarriers_ + kOutputs, place, x, places.copy(),
                                  places.copies());
  }
  __device__ __forceinline__ void sent() const {}
  // Waits until all outputs have arrived, as a state of the shared product.
  __device__ __forceinline__ void wait_for_outputs() { wait(kOutputs); }

 private:
  enum { kParts, kOutputs };
  struct Coming {
    uint32_t bytes = 0, parity = 0;
    int left = 0;
  };

  __device__ __forceinline__ bool owns() const { return block_ < parts_.slices.count; }
  __device__ __forceinline__ void meet() const {
    if (kCluster) {
      ptx::cluster_arrive_release();
      ptx::cluster_wait_acquire();
    } else {
      __syncthreads();
    }
  }
  // One thread: expects the next numbers of an exchange, if there will be any.
  __device__ __forceinline__ void expect(int which) {
    if (coming_[which].left <= 0) return;
    --coming_[which].left;
    ptx::mbarrier_arrive_expect_tx(mbarriers_ + which, coming_[which].bytes);
  }
  __device__ __forceinline__ void wait(int which) {
    if (kCluster) {
      ptx::mbarrier_wait(mbarriers_ + which, coming_[which].parity);
      coming_[which].parity ^= 1;
      if (threadIdx.x == 0) expect(which);
    } else {
      __syncthreads();
    }
  }

  Parts<Shape> parts_;
  unsigned char* state_;
  int block_, blocks_, rows_;
  uint64_t* mbarriers_;
  Coming coming_[2];
};

// What the blocks of a group share in global memory; counters and states are zero at the launch.
struct ProjectedGridMemory {
  // [groups][2], GridMemory::kCounterStride apart: blocks that have sent their parts, owners that have sent outputs.
  int* counters;
  unsigned char* states;  // [groups][kRows][kMostOutputs]
  float* parts;           // [groups][slices][sources][part_floats]
};

// On the whole grid: through global memory, with a counter for each exchange.
template <class Shape>
class GridReduction {
 public:
  using IO = typename Shape::IO;
  static constexpr bool kWaitsForStores = true;
  static constexpr int kRowBytes = Shape::kMostOutputs * sizeof(IO);

  __device__ __forceinline__ GridReduction(unsigned char* shared, const ProjectedGridMemory& memory, int64_t group,
                                           const Slices& slices, int block, int blocks, int rows)
      : parts_{reinterpret_cast<float*>(shared + Shape::kPartsAt), slices, blocks * Shape::Own::kWarpsK},
        state_(shared + Shape::kSharedStateAt),
        counters_(memory.counters + group * 2 * GridMemory::kCounterStride),
        sent_states_(memory.states + group * Shape::kRows * kRowBytes),
        sent_parts_(memory.parts + group * slices.count * slice_floats()),
        block_(block),
        blocks_(blocks),
        rows_(rows),
        places_shift_(slices.shift - 1) {
    for (int pairs = 1; pairs < (rows + 1) / 2; pairs *= 2) ++places_shift_;
  }

  __device__ __forceinline__ void ready() const { __syncthreads(); }
  __device__ __forceinline__ void done() const {}

  __device__ __forceinline__ void send_part(int warp_k, int output, int row, float first, float second) const {
    const int to = parts_.slices.owner(output);
    if (to >= parts_.slices.count || row >= rows_) return;
    const int source = block_ * Shape::Own::kWarpsK + warp_k;
    float* place = sent_parts_ + to * slice_floats() + source * Shape::part_floats(parts_.slices) +
                   parts_.slices.place(row, output);
    *reinterpret_cast<float2*>(place) = make_float2(first, second);
  }
  __device__ __forceinline__ void parts_sent() const { count(counters_); }
  __device__ __forceinline__ void wait_for_parts() {
    all_parts_ += blocks_;
    if (block_ >= parts_.slices.count) return;
    wait(counters_, all_parts_);
    // The pairs of rows that were sent come first in each source's part.
    const int quads = parts_.slices.size() * ((rows_ + 1) / 2) * 2 / 4, stride = Shape::part_floats(parts_.slices);
    const float* from = sent_parts_ + block_ * slice_floats();
    // Each source gets the same number of places, a power of two, so that an index takes a shift and no division.
    for (int place = threadIdx.x; place < parts_.sources << places_shift_; place += Shape::kThreads) {
      const int quad = place & ((1 << places_shift_) - 1), at = (place >> places_shift_) * stride + quad * 4;
      if (quad < quads) ptx::cp_async_16(parts_.parts + at, from + at, true);
    }
    copied();
  }
  __device__ __forceinline__ float sum(const OutputPlaces<Shape>& places, int e) const { return parts_.sum(places, e); }

  __device__ __forceinline__ void send(const OutputPlaces<Shape>& places, int e, IO x) const {
    const int row = places.row(e);
    if (places.copy() != 0 || row >= rows_) return;
    reinterpret_cast<IO*>(sent_states_ + row * kRowBytes)[(block_ << parts_.slices.shift) + places.output(e)] = x;
  }
  __device__ __forceinline__ void sent() const {
    if (block_ < parts_.slices.count) count(counters_ + GridMemory::kCounterStride);
  }
  __device__ __forceinline__ void wait_for_outputs() {
    all_outputs_ += parts_.slices.count;
    wait(counters_ + GridMemory::kCounterStride, all_outputs_);
    copy_rows<Shape>(state_, Shape::Shared::kStateStride, sent_states_, kRowBytes, rows_,
                     parts_.slices.outputs() * static_cast<int>(sizeof(IO)));
    copied();
  }

 private:
  __device__ __forceinline__ int64_t slice_floats() const {
    return int64_t{parts_.sources} * Shape::part_floats(parts_.slices);
  }

  // All threads, after this block has written its numbers.
  __device__ __forceinline__ void count(int* counter) const {
    __syncthreads();
    if (threadIdx.x == 0) ptx::red_release_gpu_add(counter, 1);
  }
  __device__ __forceinline__ void wait(const int* counter, int all) const {
    if (threadIdx.x == 0) {
      ptx::wait_until([&] { return ptx::ld_acquire_gpu(counter) >= all; });
    }
    __syncthreads();
  }
  __device__ __forceinline__ void copied() const {
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  Parts<Shape> parts_;
  unsigned char* state_;
  int* counters_;
  unsigned char* sent_states_;
  float* sent_parts_;
  int block_, blocks_, rows_, places_shift_;
  int all_parts_ = 0, all_outputs_ = 0;
};

}  // namespace fastlstm::cuda

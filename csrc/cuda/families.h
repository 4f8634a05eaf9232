// What the families of kernels offer to recurrence.cu. Each is compiled for each policy in a file of its own.
#pragma once

#include "launch.h"
#include "recurrence.h"

namespace fastlstm::cuda {

// How a dtype is multiplied: operands.h and float32.h.
struct BFloat16Product;
struct Float16Product;
struct TF32Product;
struct Float32Product;
template <class T>
struct PlainProduct;
using Float64Product = PlainProduct<double>;

// A launch for each step: any size and device.
template <class Policy>
size_t steps_workspace(const ForwardArgs& args);
template <class Policy>
size_t steps_workspace(const BackwardArgs& args);
template <class Policy>
void run_steps(const ForwardArgs& args, void* workspace, Launcher& launch);
template <class Policy>
void run_steps(const BackwardArgs& args, void* workspace, Launcher& launch);

// The weights stay on the chip. These take the call with a launcher, or without one say whether they would, and with how many
// `bytes` of workspace; false where they have no room for it, or are predicted to be slower than the step kernels.
template <class Policy>
bool run_clusters(const ForwardArgs& args, Launcher* launch);
template <class Policy>
bool run_clusters(const BackwardArgs& args, Launcher* launch);
template <class Policy>
bool run_grid(const ForwardArgs& args, Launcher* launch, void* workspace, size_t& bytes);
template <class Policy>
bool run_grid(const BackwardArgs& args, Launcher* launch, void* workspace, size_t& bytes);

// The same with a projection; those above take none.
template <class Policy>
bool run_projected_clusters(const ForwardArgs& args, Launcher* launch);
template <class Policy>
bool run_projected_clusters(const BackwardArgs& args, Launcher* launch);
template <class Policy>
bool run_projected_grid(const ForwardArgs& args, Launcher* launch, void* workspace, size_t& bytes);
template <class Policy>
bool run_projected_grid(const BackwardArgs& args, Launcher* launch, void* workspace, size_t& bytes);

// For these policies: those on the tensor cores.
template <class Policy>
constexpr bool kOnChip = false;
template <>
constexpr bool kOnChip<BFloat16Product> = true;
template <>
constexpr bool kOnChip<Float16Product> = true;
template <>
constexpr bool kOnChip<TF32Product> = true;
template <>
constexpr bool kOnChip<Float32Product> = true;

}  // namespace fastlstm::cuda

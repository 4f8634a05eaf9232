// The variants' recurrence for each policy, each compiled in a file of its own. Returns the bytes of workspace; with a
// launcher it also launches.
#pragma once

#include "cuda/families.h"
#include "cuda/variant/recurrence.h"

namespace fastlstm::cuda {

template <class Policy>
size_t run_variant(const ForwardArgs& args, const Variant& variant, void* workspace, Launcher* launch);
template <class Policy>
size_t run_variant(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, void* workspace,
                   Launcher* launch);

}  // namespace fastlstm::cuda

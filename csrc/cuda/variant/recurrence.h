// The CUDA recurrence with layer normalisation, recurrent dropout or zoneout, on the arguments of the plain one.
#pragma once

#include "core/variant.h"
#include "cuda/recurrence.h"

namespace fastlstm::cuda {

size_t variant_forward_workspace(const ForwardArgs& args);
size_t variant_backward_workspace(const BackwardArgs& args);

Status variant_forward(const ForwardArgs& args, const Variant& variant, void* workspace, void* stream);
Status variant_backward(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, void* workspace,
                        void* stream);

}  // namespace fastlstm::cuda

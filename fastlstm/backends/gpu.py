"""Registers the GPU kernels of the recurrence ops and the variants': compiled CUDA for `lstm_*`,
Triton for `triton_*`.

Both take one argument more than the ops, whether float32 may be rounded to TF32; the ops of a whole
stack (csrc/torch/cuda_stack_forward.cpp) get it by the op `cuda_tf32`. It is read from torch's
settings at every call, so that a compiled or captured model follows them as an eager one does.
"""

import contextlib
import os

import torch

from .. import precision
from ..ops import layer as layer_ops
from ..ops import recurrence
from ..ops import variant as variant_ops
from ..ops.define import declare
from ..ops.library import library, op, outside_autocast
from ..reference.backward import Arrived
from . import native
from . import triton as triton_kernels


def compiled(name: str):
    """(forward, backward) with the recurrence ops' arguments, by the compiled ops `<name>_forward`
    and `<name>_backward`. Defines the schemas of these and of `<name>_choice`, which tells the
    kernels that they would choose for a call (csrc/torch/cuda.cpp)."""
    library.define(f"{name}_choice(int[] call, bool backward) -> int[]")
    forward = _declared(f"{name}_forward", recurrence.Forward, recurrence.Results, recurrence.forward_results)
    return forward, _declared(f"{name}_backward", recurrence.Backward, recurrence.Grads, recurrence.backward_results)


def _declared(name: str, arguments: type, results: type, allocate):
    """The compiled op of this name, declared here, as a function of `arguments`, to which tf32 is
    added. allocate: see `torch_errors`."""
    declare(name, arguments, results, tf32=bool)
    compiled_op = op(name)

    def run(*args):
        with torch_errors(allocate, arguments(*args)):
            return compiled_op(*args, precision.allows_tf32())

    return run


# Of csrc/cuda/recurrence.h, in its order.
FAMILIES = "cluster", "grid", "step"
CHOSEN = "FASTLSTM_CUDA_KERNELS"


def families(name: str, device: int) -> list[str]:
    """The families of CUDA kernels that the device says it has room for. name: as for `compiled`,
    whose op `<name>_choice` is asked, for a call that any of them serves, and no single block."""
    choose, before, found = op(f"{name}_choice"), os.environ.get(CHOSEN), []
    call = [device, 1, False, 16, 1, 1, 256, 256, False]  # float32; T, N, D, H, P; no projection
    try:
        for number, family in enumerate(FAMILIES):
            os.environ[CHOSEN] = family
            if choose(call, False)[0] == number:
                found.append(family)
    finally:
        os.environ.pop(CHOSEN)
        if before is not None:
            os.environ[CHOSEN] = before
    return found


@contextlib.contextmanager
def torch_errors(allocate, call):
    """Raises torch's own error where memory runs out: LibTorch's stable ABI loses the type and text
    of a failed allocation, so `allocate(call)` repeats it in Python."""
    try:
        yield
    except RuntimeError as error:
        if "API call failed" in str(error):
            allocate(call)
        raise


def _triton_forward(*args):
    return triton_kernels.forward(*args, precision.allows_tf32())


def _triton_backward(*args):
    if recurrence.Backward(*args).dgates_out is not None:
        raise RuntimeError(
            "fastlstm::triton_backward: a gradient of the gates is the reference's to take: call reference_backward"
        )
    return triton_kernels.backward(*args, precision.allows_tf32())


def register(prefix: str, forward, backward, device: str) -> None:
    """Registers kernels for the recurrence ops of `prefix` on a device, such as "CUDA"."""
    for which, function in (("forward", forward), ("backward", backward)):
        library.impl(f"{prefix}_{which}", outside_autocast(function), device)


def compiled_variants(name: str):
    """(forward, loop) for `variant_ops.register`, by the compiled ops `<name>_variant_forward` and
    `<name>_variant_loop`, whose schemas this defines."""
    forward = variant_ops.VariantForward, recurrence.Results, recurrence.forward_results
    loop = variant_ops.VariantLoop, Arrived, _loop_results
    return _declared(f"{name}_variant_forward", *forward), _declared(f"{name}_variant_loop", *loop)


def _loop_results(call: variant_ops.VariantLoop):
    """Tensors of the size of a loop's largest results."""
    return [torch.empty_like(call.gates, dtype=call.candidates.dtype) for _ in range(2)]


def triton_variant_forward(*args):
    return triton_kernels.variant_forward(*args, precision.allows_tf32())


def triton_variant_loop(*args):
    return triton_kernels.variant_loop(*args, precision.allows_tf32())


library.define("cuda_tf32() -> bool")
library.impl("cuda_tf32", precision.allows_tf32, "CompositeExplicitAutograd")
for _ops in (recurrence, layer_ops, variant_ops):
    _ops.define("triton")
register("triton", _triton_forward, _triton_backward, "CUDA")
variant_ops.register("triton", triton_variant_forward, triton_variant_loop, "CUDA")
if native.load() is None and native.cuda_architectures():
    register("lstm", *compiled("cuda_kernels"), "CUDA")
    variant_ops.register("lstm", *compiled_variants("cuda_kernels"), "CUDA")

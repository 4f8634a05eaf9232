"""The GPU kernels behind the recurrence ops, the variants' too: compiled CUDA for `lstm_*`, Triton
for `triton_*`.

Both take one more argument than the ops, whether float32 may be rounded to tf32; the ops of a whole
stack (csrc/torch/cuda_stack_forward.cpp) ask for it, by the op `cuda_tf32`. It is read from torch's
settings at every call, so that a compiled or captured model follows them as an eager one does.
Where no kernels are registered for a device, these ops are the reference.
"""

import contextlib

import torch

from .. import precision
from ..ops import layer as layer_ops
from ..ops import recurrence
from ..ops import variant as variant_ops
from ..ops.library import library, outside_autocast
from ..reference.variant_backward import Arrived
from . import native
from . import triton as triton_kernels


def compiled(name: str):
    """(forward, backward) with the ops' arguments, from the compiled ops `<name>_forward` and
    `<name>_backward`, whose schemas this defines; and that of `<name>_choice`, which says what they
    would choose for a call (csrc/torch/cuda.cpp)."""
    library.define(f"{name}_choice(int[] call, bool backward) -> int[]")
    library.define(recurrence.FORWARD.format(name, ", bool tf32"))
    library.define(recurrence.BACKWARD.format(name, ", bool tf32"))
    run_forward, run_backward = (
        getattr(torch.ops.fastlstm, f"{name}_{which}").default for which in ("forward", "backward")
    )

    def forward(*args):
        with torch_errors(recurrence.forward_results, args):
            return run_forward(*args, precision.allows_tf32())

    def backward(*args):
        with torch_errors(recurrence.backward_results, args):
            return run_backward(*args, precision.allows_tf32())

    return forward, backward


@contextlib.contextmanager
def torch_errors(allocate, args):
    """Out of memory as torch says it. Inside the compiled library a failed allocation loses its
    type and text, so the same allocation is made again here."""
    try:
        yield
    except RuntimeError as error:
        if "API call failed" in str(error):
            allocate(*args)
        raise


def _triton_forward(*args):
    return triton_kernels.forward(*args, precision.allows_tf32())


def _triton_backward(doutput, dh_n, dc_n, dcells, dgates_out, *rest):
    if dgates_out is not None:
        raise RuntimeError(
            "fastlstm::triton_backward: a gradient of the gates is the reference's to take: call "
            "reference_backward"
        )
    return triton_kernels.backward(doutput, dh_n, dc_n, dcells, *rest, precision.allows_tf32())


def register(family: str, forward, backward, device: str) -> None:
    """Have the recurrence ops of `family` run by these functions on a device, such as "CUDA"."""
    for which, function in (("forward", forward), ("backward", backward)):
        library.impl(f"{family}_{which}", outside_autocast(function), device)


def compiled_variants(name: str):
    """(forward, loop) for `variant_ops.register`, from the compiled ops `<name>_variant_forward`
    and `<name>_variant_loop`, whose schemas this defines: with one more argument than the CPU's,
    whether float32 may be rounded to tf32."""
    library.define(variant_ops.FORWARD.format(f"{name}_variant", ", bool tf32"))
    library.define(variant_ops.LOOP.format(name, ", bool tf32"))
    run_forward, run_loop = (
        getattr(torch.ops.fastlstm, f"{name}_variant_{which}").default
        for which in ("forward", "loop")
    )

    def forward(*args):
        with torch_errors(variant_ops.forward_results, args):
            return run_forward(*args, precision.allows_tf32())

    def loop(*args):
        with torch_errors(_loop_results, args):
            return run_loop(*args, precision.allows_tf32())

    return forward, variant_ops.loop_of(loop)


def _loop_results(*args):
    """Tensors as large as the largest of a loop's results."""
    gates = args[13]
    return [torch.empty_like(gates, dtype=args[14].dtype) for _ in range(2)]


def triton_variant_forward(*args):
    return triton_kernels.variant_forward(*args, precision.allows_tf32())


def triton_variant_loop(*args):
    return Arrived(*triton_kernels.variant_loop(*args, precision.allows_tf32()))


library.define("cuda_tf32() -> bool")
library.impl("cuda_tf32", precision.allows_tf32, "CompositeExplicitAutograd")
for _ops in (recurrence, layer_ops, variant_ops):
    _ops.define("triton")
register("triton", _triton_forward, _triton_backward, "CUDA")
variant_ops.register("triton", triton_variant_forward, triton_variant_loop, "CUDA")
if native.load() is None and native.cuda_architectures():
    register("lstm", *compiled("cuda_kernels"), "CUDA")
    variant_ops.register("lstm", *compiled_variants("cuda_kernels"), "CUDA")

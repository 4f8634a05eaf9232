"""The GPU kernels behind the recurrence ops: compiled CUDA for `lstm_*`, Triton for `triton_*`.

Both take one more argument than the ops, whether float32 may be rounded to tf32. It is read from
torch's settings at every call, so that a compiled or captured model follows them as an eager one
does. Where no kernels are registered for a device, these ops are the reference.
"""

import contextlib

import torch

from . import layer_ops, native, ops, precision, triton_kernels, variant_ops

library = ops.library


def compiled(name: str):
    """(forward, backward) with the ops' arguments, from the compiled ops `<name>_forward` and
    `<name>_backward`, whose schemas this defines."""
    library.define(ops.FORWARD.format(name, ", bool tf32"))
    library.define(ops.BACKWARD.format(name, ", bool tf32"))
    run_forward, run_backward = (
        getattr(torch.ops.fastlstm, f"{name}_{which}").default for which in ("forward", "backward")
    )

    def forward(*args):
        with torch_errors(ops.forward_results, args):
            return run_forward(*args, precision.allows_tf32())

    def backward(*args):
        with torch_errors(ops.backward_results, args):
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
        library.impl(f"{family}_{which}", ops.outside_autocast(function), device)


if native.load() is None and native.cuda_architectures():
    register("lstm", *compiled("cuda_kernels"), "CUDA")

ops.define("triton")
layer_ops.define("triton")
variant_ops.define("triton")
register("triton", _triton_forward, _triton_backward, "CUDA")

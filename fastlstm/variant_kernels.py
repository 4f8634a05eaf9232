"""The kernels behind the variants' ops: compiled ones, of whose loops of the backward the schema
stands here, and Triton's.
"""

import torch

from . import gpu_ops, native, precision, triton_kernels, variant_backward, variant_ops
from .ops import library

LOOP = (
    "{}_variant_loop(Tensor? doutput, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor h0, "
    "Tensor c0, Tensor weight_hh, Tensor? weight_hr, Tensor? h_mask, Tensor? norm_hh, "
    "Tensor? norm_c, Tensor? bias_c, Tensor cells, Tensor gates, Tensor candidates, "
    "Tensor? product_hat, Tensor? product_scale, Tensor? cell_hat, Tensor? cell_scale, "
    "Tensor? lengths, Tensor? reset_mask, Tensor? seed, float zoneout_h, float zoneout_c, "
    "int stream, int first_step, bool wide_gates{}) "
    "-> (Tensor dgates_x, Tensor dh0, Tensor dc0, Tensor dhidden, Tensor dproducts, Tensor dshown)"
)


def loop_of(run):
    """`variant_backward.loop` by a kernel with the arguments of `LOOP`."""

    def loop(
        doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, h_mask, norm_hh,
        norm_c, bias_c, cells, gates, prepared, lengths, reset_mask, seed, options, wide_gates,
    ):  # fmt: skip
        if dgates_out is not None:
            raise RuntimeError(
                "fastlstm: a gradient of the gates is the reference's to take: call "
                "reference_variant_backward"
            )
        return variant_backward.Arrived(
            *run(
                doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c,
                bias_c, cells, gates, *prepared, lengths, reset_mask, seed, *options, wide_gates,
            )
        )  # fmt: skip

    return loop


def compiled(name: str):
    """(forward, loop) for `variant_ops.register`, from the compiled ops `<name>_variant_forward`
    and `<name>_variant_loop`, whose schemas this defines: with one more argument than the CPU's,
    whether float32 may be rounded to tf32."""
    library.define(variant_ops.FORWARD.format(f"{name}_variant", ", bool tf32"))
    library.define(LOOP.format(name, ", bool tf32"))
    run_forward, run_loop = (
        getattr(torch.ops.fastlstm, f"{name}_variant_{which}").default
        for which in ("forward", "loop")
    )

    def forward(*args):
        with gpu_ops.torch_errors(variant_ops.forward_results, args):
            return run_forward(*args, precision.allows_tf32())

    def loop(*args):
        with gpu_ops.torch_errors(_loop_results, args):
            return run_loop(*args, precision.allows_tf32())

    return forward, loop_of(loop)


def _loop_results(*args):
    """Tensors as large as the largest of a loop's results."""
    gates = args[13]
    return [torch.empty_like(gates, dtype=args[14].dtype) for _ in range(2)]


def triton_forward(*args):
    return triton_kernels.variant_forward(*args, precision.allows_tf32())


def triton_loop(*args):
    return variant_backward.Arrived(*triton_kernels.variant_loop(*args, precision.allows_tf32()))


variant_ops.register("triton", triton_forward, triton_loop, "CUDA")
if native.load() is None:
    # The forward registers itself (csrc/torch/variant.cpp).
    library.define(LOOP.format("lstm", ""))
    _loop = loop_of(torch.ops.fastlstm.lstm_variant_loop.default)
    variant_ops.register("lstm", None, _loop, "CPU")
    if native.cuda_architectures():
        variant_ops.register("lstm", *compiled("cuda_kernels"), "CUDA")

"""The compiled kernels behind the variants' ops: their loops of the backward, whose schema stands
here, in the place of `variant_backward.loop`.
"""

import torch

from . import native, variant_backward, variant_ops
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


if native.load() is None:
    # The forward registers itself (csrc/variant_ops.cpp).
    library.define(LOOP.format("lstm", ""))
    _loop = loop_of(torch.ops.fastlstm.lstm_variant_loop.default)
    variant_ops.register("lstm", None, _loop, "CPU")

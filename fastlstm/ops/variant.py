"""The custom ops of a layer's recurrence with zoneout, recurrent dropout and layer normalisation:
`<prefix>_variant_forward` and `<prefix>_variant_backward`, beside the plain ones of recurrence.py.

`reference.variant.variant_forward` describes the arguments. A device without kernels runs the
reference. Kernels replace the forward and the backward's loop over steps (`register`). What is
computed for all steps at once is shared: `reference.backward.prepare` before the loop, and the
weights' gradients after it.
"""

import functools
import operator
from typing import NamedTuple

from torch import Tensor

from ..fields import joined, only
from ..precision import accumulation_dtype
from ..reference import backward as reference_backward
from ..reference import variant as variant_reference
from ..reference.backward import (
    Arrived,
    Prepared,
    ResultGrads,
    VariantBackward,
    VariantMasks,
    VariantStates,
    VariantTape,
)
from . import recurrence
from .define import define_op
from .library import library, op, outside_autocast
from .recurrence import Results, without_tape
from .weight_gradients import Wanted, weight_gradients


@joined({"gates_x": Tensor}, VariantStates, VariantMasks)
class VariantForward:
    save_tape: bool
    save_cells: bool

    @property
    def wide_gates(self) -> bool:
        return self.gates_x.dtype != self.h0.dtype


class VariantNeeds(NamedTuple):
    weight_hh: bool
    weight_hr: bool
    norm_hh: bool
    norm_c: bool
    bias_c: bool


_of_weights = operator.attrgetter(*VariantNeeds._fields)


class VariantGrads(NamedTuple):
    """Gradients of weights that are None or not wanted have no elements."""

    dgates_x: Tensor
    dh0: Tensor
    dc0: Tensor
    dweight_hh: Tensor
    dweight_hr: Tensor
    dnorm_hh: Tensor
    dnorm_c: Tensor
    dbias_c: Tensor


@joined(ResultGrads, VariantStates, {"cells": Tensor, "gates": Tensor}, Prepared, VariantMasks)
class VariantLoop:
    """The arguments of a kernel for the backward's loop over steps."""

    wide_gates: bool


def _forward(call: VariantForward) -> Results:
    *given, _save_tape, _save_cells = call
    return without_tape(call, variant_reference.variant_forward(*given))


def backward(loop, call: VariantBackward) -> VariantGrads:
    """All gradients of the forward. loop: `reference.backward.loop`, or a kernel in its place."""
    h0, options, needs = call.h0, call.options, VariantNeeds(*call.needs)
    if call.lengths is not None:
        call = call._replace(lengths=call.lengths.clamp(0, call.gates.shape[0]))
    prepared = reference_backward.prepare(call)
    arrived = loop(call, prepared)
    normed = call.norm_hh is not None
    found = weight_gradients(
        arrived.dgates_x, arrived.dhidden, None, call.output, h0,
        reference_backward.shown(prepared, call.norm_c, call.bias_c), call.gates, call.lengths,
        call.reset_mask, Wanted(hh=needs.weight_hh, hr=needs.weight_hr),
        dproducts=arrived.dproducts if normed else None, h_mask=call.h_mask,
        reverse=[options.is_reverse(d) for d in range(h0.shape[0])],
    )  # fmt: skip
    sums = {
        "dweight_hh": found.hh,
        "dweight_hr": found.hr,
        "dnorm_hh": (arrived.dgates_x * prepared.product_hat).sum((0, 1)) if needs.norm_hh and normed else None,
        "dnorm_c": (arrived.dshown * prepared.cell_hat).sum((0, 1)) if needs.norm_c and normed else None,
        "dbias_c": arrived.dshown.sum((0, 1)) if needs.bias_c and call.bias_c is not None else None,
    }
    return VariantGrads(
        arrived.dgates_x,
        arrived.dh0,
        arrived.dc0,
        **{k: h0.new_empty((0,)) if v is None else v.to(h0.dtype) for k, v in sums.items()},
    )


def _backward_fake(call: VariantBackward) -> VariantGrads:
    gates, h0, c0 = call.gates, call.h0, call.c0
    dtype = accumulation_dtype(h0.dtype) if call.wide_gates else h0.dtype
    return VariantGrads(
        gates.new_empty(gates.shape, dtype=dtype),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        *(
            h0.new_empty((0,) if w is None or not need else w.shape)
            for w, need in zip(_of_weights(call), call.needs, strict=True)
        ),
    )


_reference_backward = functools.partial(backward, reference_backward.loop)


def _gradients(prefix: str, tape: VariantTape, grads: Results, needs: VariantForward) -> VariantForward:
    # The gates have a gradient only in a second derivative, which has no compiled kernels.
    rule = "reference" if grads.gates is not None else prefix
    wanted = list(_of_weights(needs))
    found = VariantGrads(*op(f"{rule}_variant_backward")(*grads, *tape, wanted))
    given = {
        "gates_x": found.dgates_x,
        "h0": found.dh0,
        "c0": found.dc0,
        "weight_hh": found.dweight_hh,
        "weight_hr": found.dweight_hr,
        "norm_hh": found.dnorm_hh,
        "norm_c": found.dnorm_c,
        "bias_c": found.dbias_c,
    }
    return only(VariantForward, **{k: v for k, v in given.items() if getattr(needs, k)})


def define(prefix: str) -> None:
    """The ops `<prefix>_variant_forward` and `<prefix>_variant_backward`."""
    define_op(
        f"{prefix}_variant_forward",
        VariantForward,
        Results,
        run=_forward,
        fake=recurrence.forward_results,
        tape=VariantTape,
        gradients=functools.partial(_gradients, prefix),
    )
    define_op(
        f"{prefix}_variant_backward",
        VariantBackward,
        VariantGrads,
        run=_reference_backward,
        fake=_backward_fake,
        plain=_reference_backward,
    )


def register(prefix: str, forward, loop, device: str) -> None:
    """Register kernels for the variant ops of `prefix` on a device, such as "CUDA".

    Args:
        forward: takes the forward's arguments; None where it is registered already. loop: takes the
        fields of `VariantLoop`.
    """

    def run_backward(*args):
        return tuple(backward(functools.partial(_loop, loop), VariantBackward(*args)))

    if forward is not None:
        library.impl(f"{prefix}_variant_forward", outside_autocast(forward), device)
    library.impl(f"{prefix}_variant_backward", outside_autocast(run_backward), device)


def _loop(run, call: VariantBackward, prepared) -> Arrived:
    """`reference.backward.loop` by a kernel that takes the fields of `VariantLoop`."""
    if call.dgates_out is not None:
        raise RuntimeError(
            "fastlstm: a gradient of the gates is the reference's to take: call reference_variant_backward"
        )
    given = prepared._asdict()
    found = (given[n] if n in given else getattr(call, n) for n in VariantLoop._fields)
    return Arrived(*run(*found))


for _prefix in recurrence.PREFIXES:
    define(_prefix)

"""The custom ops of the recurrence of one layer (all directions, all steps).

There is a pair of ops for each prefix in PREFIXES, `<prefix>_forward` and `<prefix>_backward`, all
with the same two schemas; layer.py adds the input product:

* `fastlstm::lstm_*` runs by default. Compiled kernels are registered for it by device
  (csrc/torch/recurrence.cpp for the CPU, backends/gpu.py for CUDA); a device without kernels runs
  the reference.
* `fastlstm::reference_*` always runs the recurrence in reference/.
* A backend that shares a device with another has a prefix of its own, such as `fastlstm::triton_*`
  (backends/gpu.py).

The tape (cells, gates) is the same for all, so the backward of one prefix can follow the forward of
another. Argument shapes are those of `reference.lstm_forward` and `reference.lstm_backward`.
"""

import functools
from typing import NamedTuple

from torch import Tensor

from ..fields import joined, only
from ..precision import accumulation_dtype
from ..reference import backward as reference_backward
from ..reference import lstm as reference
from ..reference.backward import Backward, Masks, States
from .define import define_op
from .library import op
from .weight_gradients import Wanted, weight_gradients

PREFIXES: list[str] = []  # defined so far


@joined({"gates_x": Tensor}, States, Masks)
class Forward:
    save_tape: bool
    save_cells: bool

    @property
    def wide_gates(self) -> bool:
        return self.gates_x.dtype != self.h0.dtype


class Results(NamedTuple):
    """Results of every op of a layer or its recurrence; also the gradients of these results."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor
    gates: Tensor


class Grads(NamedTuple):
    dgates_x: Tensor
    dh0: Tensor
    dc0: Tensor
    dhidden: Tensor


@joined(States, {"cells": Tensor, "gates": Tensor}, Masks)
class Tape:
    wide_gates: bool
    output: Tensor


def _forward(call: Forward) -> Results:
    return without_tape(
        call,
        reference.lstm_forward(
            call.gates_x, call.h0, call.c0, call.weight_hh, call.weight_hr, call.lengths,
            call.reset_mask,
        ),
    )  # fmt: skip


def without_tape(call, results) -> Results:
    """The reference's results, with empty tensors for what `call` does not save."""
    results = Results(*results)
    if call.save_tape:
        return results
    if not call.save_cells:
        results = results._replace(cells=results.cells.new_empty((0,)))
    return results._replace(gates=results.gates.new_empty((0,)))


def _backward(call: Backward) -> Grads:
    return Grads(*reference_backward.lstm_backward(*call))


def forward_results(call) -> Results:
    """Uninitialised tensors of the forward's shapes; also its fake kernel. call: the arguments of
    any op whose results are `Results`; the first of them is a sequence (T, N, ...)."""
    (T, N, *_), h0, c0 = call[0].shape, call.h0, call.c0
    (D, _, P), H, wide = h0.shape, c0.shape[-1], accumulation_dtype(h0.dtype)
    save_cells = call.save_tape or call.save_cells
    return Results(
        h0.new_empty((T, N, D * P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, H) if save_cells else (0,), dtype=wide),
        h0.new_empty((T, N, D, 4 * H) if call.save_tape else (0,)),
    )


def backward_results(call: Backward) -> Grads:
    """Uninitialised tensors of the backward's shapes; also its fake kernel."""
    gates, h0, c0 = call.gates, call.h0, call.c0
    (T, N, D, _), wide = gates.shape, accumulation_dtype(h0.dtype)
    projected = call.weight_hr is not None
    return Grads(
        gates.new_empty(gates.shape, dtype=wide if call.wide_gates else h0.dtype),
        h0.new_empty(h0.shape, dtype=c0.dtype),
        c0.new_empty(c0.shape),
        h0.new_empty((T, N, D, h0.shape[-1]) if projected else (0,), dtype=wide),
    )


def _gradients(prefix: str, tape: Tape, grads: Results, needs: Forward) -> Forward:
    of_recurrence = needs.gates_x, needs.h0, needs.c0, needs.weight_hh, needs.weight_hr
    if not any(of_recurrence):
        return only(Forward)
    # The gates have a gradient only in a second derivative, which has no compiled kernels.
    rule = "reference" if grads.gates is not None else prefix
    *of_op, output = tape
    found = Grads(*op(f"{rule}_backward")(*grads, *of_op))
    of_weights = weight_gradients(
        found.dgates_x, found.dhidden, None, output, tape.h0, tape.cells, tape.gates, tape.lengths,
        tape.reset_mask, Wanted(hh=needs.weight_hh, hr=needs.weight_hr),
    )  # fmt: skip
    return only(
        Forward,
        gates_x=found.dgates_x,
        h0=found.dh0,
        c0=found.dc0,
        weight_hh=of_weights.hh,
        weight_hr=of_weights.hr,
    )


def define(prefix: str) -> None:
    """Defines `<prefix>_forward` and `<prefix>_backward`, which run the reference on devices for
    which no kernels are registered."""
    PREFIXES.append(prefix)
    define_op(
        f"{prefix}_forward",
        Forward,
        Results,
        run=_forward,
        fake=forward_results,
        tape=Tape,
        gradients=functools.partial(_gradients, prefix),
    )
    define_op(
        f"{prefix}_backward",
        Backward,
        Grads,
        run=_backward,
        fake=backward_results,
        plain=_backward,
    )


for _prefix in ("lstm", "reference"):
    define(_prefix)

"""The ops of fastlstm in terms of ATen's, for converters of exported programs that support no other
ops.

`decompositions` is a table for `torch.export.ExportedProgram.run_decompositions`. It uses the
definitions in plain torch, a layer's products in ops/layer.py and the recurrences in reference/;
this file adds the loops over steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..ops import layer as layer_ops
from ..ops.recurrence import PREFIXES
from ..reference import lstm as reference
from ..reference import variant as variant_reference
from ..stack import int8
from ..stack.checkpoint import ops as checkpoint_ops
from ..stack.checkpoint import passes
from ..stack.checkpoint.calls import CheckpointedForward, CheckpointedResults
from ..stack.wavefront.calls import StackForward, StackResults, apply_dropout, dropout_mask
from ..weights import LSTMWeights

LOOPS = ("auto", "unrolled", "scan")


def decompositions(loop: str = "auto") -> dict[Any, Callable[..., Any]]:
    """`torch.export.default_decompositions()` and a decomposition to ATen for every op of an
    exported FastLSTM, FastLSTMCell or `functional.lstm`.

    ExecuTorch, Core ML, LiteRT, TensorRT and others refuse ops that they do not know. The
    decomposed program has ATen's ops only, and does not need fastlstm where it is loaded. With
    every option its results are those of the replaced ops, except for the order in which products
    are summed.

    Args:
        loop: "unrolled" repeats the ops of a step T times, which every converter supports, for a
            static number of steps T; "scan" makes one `torch.ops.higher_order.scan` for each
            direction, which ExecuTorch, ONNX and Inductor support, for a static or dynamic T of at
            least 1; "auto" is "unrolled" for a static T, otherwise "scan".

    Returns:
        A new table, to which others may be added.

    Raises:
        ValueError: `loop` is none of these. While a program is decomposed: T is dynamic and `loop`
            is "unrolled", or the program contains the backward of layers with checkpoint_every.

    Example::

        >>> with torch.no_grad():
        ...     program = torch.export.export(lstm, (torch.randn(5, 3, 10),))
        >>> program = program.run_decompositions(fastlstm.decompositions())
    """
    if loop not in LOOPS:
        raise ValueError(f"loop: got {loop!r}, expected one of {', '.join(map(repr, LOOPS))}")
    table = torch.export.default_decompositions()
    ops = torch.ops.fastlstm
    for prefix in PREFIXES:
        table[getattr(ops, f"{prefix}_layer_forward").default] = functools.partial(_layer, prefix)
        for name, recurrence in (
            ("forward", reference.lstm_forward),
            ("variant_forward", variant_reference.variant_forward),
        ):
            table[getattr(ops, f"{prefix}_{name}").default] = functools.partial(_recurrence, recurrence, loop)
    table[ops.stack_forward.default] = _stack
    for name in ("int8_stack", "int8_stack_reference"):
        table[getattr(ops, name).default] = functools.partial(_int8, loop)
    table[ops.checkpointed_forward.default] = _checkpointed
    table[ops.checkpointed_backward.default] = _checkpointed_backward
    return table


def _loop(asked: str, T, count: int):
    """What runs the steps, as `reference.unrolled`. count: see `scanned`."""
    static = isinstance(T, int)
    if asked == "unrolled" and not static:
        raise ValueError(
            f"fastlstm.decompositions: loop='unrolled' needs a static number of steps, got {T}; "
            "export the model without a dynamic T, or ask for loop='scan'"
        )
    if static and asked != "scan":
        return reference.unrolled
    return functools.partial(scanned, count)


def _recurrence(recurrence, asked: str, *args):
    """An op of the recurrence. Its first argument is a sequence (T, ...), its last are save_tape
    and save_cells."""
    *args, save_tape, save_cells = args
    loop = _loop(asked, args[0].shape[0], 3 if save_tape else 2 if save_cells else 1)
    output, h_n, c_n, cells, gates = recurrence(*args, loop=loop)
    nothing = output.new_empty
    return (
        output,
        h_n,
        c_n,
        cells if save_tape or save_cells else nothing((0,), dtype=cells.dtype),
        gates if save_tape else nothing((0,)),
    )


def scanned(count: int, step, carry, sequences, constants, reverse: bool):
    """`reference.unrolled` as one higher-order op. Only the first `count` of the results of all
    steps are computed; the others are empty."""
    given = [s if not reverse else s.flip(0) for s in sequences if s is not None]
    fixed = tuple(c for c in constants if c is not None)
    unwanted = []

    def combine(*flat):
        rest = iter(flat)
        old = [next(rest) for _ in carry]
        at, of_all = ([None if v is None else next(rest) for v in values] for values in (sequences, constants))
        new, kept = step(old, at, of_all)
        unwanted[:] = [k.dtype for k in kept[count:]]
        # clone: scan's results must not share memory, but h and the output do.
        return [*(n.clone() for n in new), *kept[:count]]

    # Nor may its arguments, but initial states of zeros do.
    first = [c.clone() for c in carry]
    results = torch.ops.higher_order.scan(combine, first, given, fixed)
    carry, kept = results[: len(carry)], results[len(carry) :]
    if reverse:
        kept = [k.flip(0) for k in kept]
    return carry, [*kept, *(carry[0].new_empty((0, 0, 0), dtype=d) for d in unwanted)]


def _layer(prefix: str, *args):
    return tuple(layer_ops.plain_forward(prefix, layer_ops.LayerForward(*args)))


def _stack(*args):
    call = StackForward(*args)
    x, states, hidden, cells, gates = call.x, [], [], [], []
    nothing, layers = LSTMWeights(None, None), call.layers()
    for k, weights in enumerate(layers):
        if k:
            hidden.append(x)
            x = apply_dropout(x, dropout_mask(call, k), call.dropout)
        last = k == len(layers) - 1
        results = layer_ops.plain_forward(
            call.family,
            layer_ops.LayerForward(
                x, call.h0[k : k + 1], call.c0[k : k + 1], *weights, *nothing, call.lengths,
                call.reset_mask, wide_products=False, save_tape=call.save_tape,
                save_cells=call.save_cells and last,
            ),
        )  # fmt: skip
        x = results.output
        states.append((results.h_n, results.c_n))
        cells.append(results.cells)
        gates.append(results.gates)
    h_n, c_n = (torch.cat(s) for s in zip(*states, strict=True))
    kept = (hidden, cells[:-1], gates) if call.save_tape else ([], [], [])
    return tuple(StackResults(x, h_n, c_n, cells[-1], *kept))


def _int8(asked: str, *args):
    """A stack with int8 weights."""
    call = int8.Int8Stack(*args)
    T = call.x.shape[1 if call.batch_first and call.x.dim() == 3 else 0]
    return tuple(int8.definition(call, _loop(asked, T, 2)))


def _checkpointed(*args):
    call = CheckpointedForward(*args)
    # The saved states are only for the backward, which is refused below.
    kept = passes.kept_states(call)
    return tuple(CheckpointedResults(*checkpoint_ops.plain(call), *kept))


def _checkpointed_backward(*_):
    raise ValueError(
        "fastlstm.decompositions: this program has the backward of layers with checkpoint_every in "
        "it; decompose the program before its backward is traced, or set checkpoint_every to None"
    )

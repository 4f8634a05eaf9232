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


def _unrolled(asked: str, T) -> bool:
    """Whether to unroll the steps."""
    static = isinstance(T, int)
    if asked == "unrolled" and not static:
        raise ValueError(
            f"fastlstm.decompositions: loop='unrolled' needs a static number of steps, got {T}; "
            "export the model without a dynamic T, or ask for loop='scan'"
        )
    return static and asked != "scan"


def _recurrence(recurrence, asked: str, *args):
    """An op of the recurrence. Its first argument is a sequence (T, ...), its last are save_tape
    and save_cells."""
    *args, save_tape, save_cells = args
    loop = reference.unrolled
    if not _unrolled(asked, args[0].shape[0]):
        loop = functools.partial(scanned, 3 if save_tape else 2 if save_cells else 1)
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
    """A stack with int8 weights: its definition, or a scan whose step is the definition's call of
    one step."""
    x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, weight_only = args[:10]
    return_cells, batched = args[10], x.dim() == 3
    if _unrolled(asked, x.shape[1 if batched and batch_first else 0]):
        return int8.definition(*args)
    y = (x.transpose(0, 1) if batch_first else x) if batched else x.unsqueeze(1)
    (T, N), D = y.shape[:2], 2 if bidirectional else 1
    each = len(weights) // (layers * D)
    H = weights[3].shape[0] // 4
    P = weights[each - 1].shape[0] if each >= 6 else H
    h0, c0 = (
        x.new_zeros((layers * D, N, width)) if s is None else s.reshape(layers * D, N, width)
        for s, width in ((h0, P), (c0, H))
    )
    states, cells = [], []
    for k in range(layers):
        found = []
        for d in range(D):
            row = k * D + d

            def step(carry, at, of_direction):
                x_t, valid, cut = at
                h, c = (s.unsqueeze(0) for s in carry)
                lengths = None if valid is None else valid.squeeze(-1).long()
                cut = None if cut is None else cut.unsqueeze(0)
                output, h, c, cells = int8.definition(
                    x_t.unsqueeze(0),
                    h,
                    c,
                    of_direction,
                    1,
                    False,
                    False,
                    lengths,
                    cut,
                    weight_only,
                    True,
                )
                return (h[0], c[0]), (output[0], cells[0])

            bounded = None if lengths is None else lengths.clamp(0, T)
            sequences = (
                y,
                reference.valid_steps(T, bounded),
                reference.entering_zeros(T, reset_mask, bounded, d == 1),
            )
            of_direction = weights[row * each : (row + 1) * each]
            carry, kept = scanned(2, step, (h0[row], c0[row]), sequences, of_direction, d == 1)
            states.append(carry)
            found.append(kept)
        y, of_layer = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        cells.append(of_layer)
    h_n, c_n = (torch.stack(s) for s in zip(*states, strict=True))
    last = cells[-1] if return_cells else x.new_empty((0,))
    if not batched:
        return y.squeeze(1), h_n.squeeze(1), c_n.squeeze(1), last
    return y.transpose(0, 1) if batch_first else y, h_n, c_n, last


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

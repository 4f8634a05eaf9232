"""The ops of fastlstm as torch's own, ATen's: for converters that take an exported program and know
no other ops.

`decompositions` is a table for `torch.export.ExportedProgram.run_decompositions`. What an op is
made of stands elsewhere: a layer's products in ops/layer.py, the recurrences in reference/. Here is
how they loop over the steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..ops import layer as layer_ops
from ..ops.recurrence import FAMILIES
from ..precision import accumulation_dtype
from ..reference import lstm as reference
from ..reference import variant as variant_reference
from ..stack.checkpoint import ops as checkpoint_ops
from ..stack.checkpoint.piece_layers import Settings
from ..stack.wavefront import forward as stack

LOOPS = ("auto", "unrolled", "scan")


def decompositions(loop: str = "auto") -> dict[Any, Callable[..., Any]]:
    """`torch.export.default_decompositions()` and, for every op that an exported FastLSTM,
    FastLSTMCell or `functional.lstm` has, what it is in ops of ATen.

    ExecuTorch, Core ML, LiteRT, TensorRT and others refuse ops that they do not know. The program
    that comes of this has none but ATen's, and needs no fastlstm where it is loaded. It gives the
    numbers of the op it replaces but for the order in which a product is summed, for every option.

    Args:
        loop: "unrolled" writes each step out, which every converter takes, and is for a static
            number of steps T; "scan" makes one `torch.ops.higher_order.scan` a direction, which
            ExecuTorch, ONNX and Inductor take, for T of 1 and more, static or not; "auto" is
            "unrolled" where T is static and "scan" where it is not.

    Returns:
        A new table, to which others may be added.

    Raises:
        ValueError: `loop` is none of these; while a program is decomposed, T is not static and
            "unrolled" was asked for, or a backward that is to be traced has to come after the
            decomposition.

    Example::

        >>> with torch.no_grad():
        ...     program = torch.export.export(lstm, (torch.randn(5, 3, 10),))
        >>> program = program.run_decompositions(fastlstm.decompositions())
    """
    if loop not in LOOPS:
        raise ValueError(f"loop: got {loop!r}, expected one of {', '.join(map(repr, LOOPS))}")
    table = torch.export.default_decompositions()
    ops = torch.ops.fastlstm
    for family in FAMILIES:
        table[getattr(ops, f"{family}_layer_forward").default] = functools.partial(
            layer_ops.plain_forward, family
        )
        for name, recurrence in (
            ("forward", reference.lstm_forward),
            ("variant_forward", variant_reference.variant_forward),
        ):
            table[getattr(ops, f"{family}_{name}").default] = functools.partial(
                _recurrence, recurrence, loop
            )
    table[ops.stack_forward.default] = _stack
    table[ops.checkpointed_forward.default] = _checkpointed
    table[ops.checkpointed_backward.default] = _checkpointed_backward
    return table


def _unrolled(asked: str, T) -> bool:
    """Whether the steps are written out."""
    static = isinstance(T, int)
    if asked == "unrolled" and not static:
        raise ValueError(
            f"fastlstm.decompositions: loop='unrolled' needs a static number of steps, got {T}; "
            "export the model without a dynamic T, or ask for loop='scan'"
        )
    return static and asked != "scan"


def _recurrence(recurrence, asked: str, *args):
    """A recurrence's op, whose first argument has the steps and whose last are the tape's
    switches."""
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
    """`reference.unrolled` as one higher-order op. Of what is kept, only the first `count`
    sequences are made; the others are empty."""
    given = [s if not reverse else s.flip(0) for s in sequences if s is not None]
    fixed = tuple(c for c in constants if c is not None)
    unwanted = []

    def combine(*flat):
        rest = iter(flat)
        old = [next(rest) for _ in carry]
        at, of_all = (
            [None if v is None else next(rest) for v in values] for values in (sequences, constants)
        )
        new, kept = step(old, at, of_all)
        unwanted[:] = [k.dtype for k in kept[count:]]
        # An op's results must not share memory, as h and the output do.
        return [*(n.clone() for n in new), *kept[:count]]

    # Nor must its arguments, as states of zeros do.
    first = [c.clone() for c in carry]
    results = torch.ops.higher_order.scan(combine, first, given, fixed)
    carry, kept = results[: len(carry)], results[len(carry) :]
    if reverse:
        kept = [k.flip(0) for k in kept]
    return carry, [*kept, *(carry[0].new_empty((0, 0, 0), dtype=d) for d in unwanted)]


def _stack(
    family, x, h0, c0, weights_ih, weights_hh, biases_ih, biases_hh, weights_hr, lengths,
    reset_mask, dropout_masks, dropout, save_tape, save_cells,
):  # fmt: skip
    """The layers one after the other."""
    weights = weights_ih, weights_hh, biases_ih, biases_hh, weights_hr
    dropout = stack.Dropout(dropout_masks, dropout)
    states, hidden, tapes = [], [], []
    for k in range(len(weights_ih)):
        if k:
            hidden.append(x)
            x = dropout.apply(x, dropout.mask(k - 1))
        last = k == len(weights_ih) - 1
        x, h, c, *tape = layer_ops.plain_forward(
            family, x, h0[k : k + 1], c0[k : k + 1], *stack.of_layer(weights, k), *(None,) * 5,
            lengths, reset_mask, False, save_tape, save_cells and last,
        )  # fmt: skip
        states.append((h, c))
        tapes.append(tape)
    h_n, c_n = (torch.cat(s) for s in zip(*states, strict=True))
    cells, gates = (list(kept) for kept in zip(*tapes, strict=True))
    if not save_tape:
        return x, h_n, c_n, cells[-1], [], [], []
    return x, h_n, c_n, cells[-1], hidden, cells[:-1], gates


def _checkpointed(x, h0, c0, weights, norms, h_mask, seed, lengths, reset_mask, *settings):
    *settings, save_cells, every = settings
    output, h_n, c_n, cells = checkpoint_ops.plain(
        x, h0, c0, weights, norms, h_mask, seed, lengths, reset_mask, Settings(*settings),
        save_cells,
    )  # fmt: skip
    # The states that are kept are the backward's alone, which is refused below.
    count = (x.shape[0] + every - 1) // every
    kept_c = c0.new_empty((count, *c0.shape), dtype=accumulation_dtype(x.dtype))
    return output, h_n, c_n, cells, h0.new_empty((count, *h0.shape)), kept_c


def _checkpointed_backward(*_):
    raise ValueError(
        "fastlstm.decompositions: this program has the backward of layers with checkpoint_every in "
        "it; decompose the program before its backward is traced, or set checkpoint_every to None"
    )

"""Ops with lists of tensors among their arguments: what autograd is given of them is flat."""

from collections.abc import Sequence

from torch import Tensor


def flatten(arguments: Sequence) -> tuple[list, list[int | None]]:
    """The entries of all lists and what is in none, in their order; and of each argument its
    length, None where it is no list."""
    lengths = [len(a) if isinstance(a, (list, tuple)) else None for a in arguments]
    flat = []
    for a, length in zip(arguments, lengths, strict=True):
        flat += [a] if length is None else a
    return flat, lengths


def unflatten(flat: Sequence, lengths: Sequence[int | None]) -> tuple:
    entries, found = iter(flat), []
    for length in lengths:
        found.append(next(entries) if length is None else [next(entries) for _ in range(length)])
    return tuple(found)


def keep(ctx, arguments) -> None:
    """Keep arguments, lists among them, for `kept`."""
    flat, ctx.lengths = flatten(arguments)
    ctx.save_for_backward(*(a if isinstance(a, Tensor) else None for a in flat))
    ctx.others = [None if isinstance(a, Tensor) else a for a in flat]
    ctx.set_materialize_grads(False)


def merged(tensors, others) -> list:
    return [o if t is None else t for t, o in zip(tensors, others, strict=True)]


def kept(ctx) -> tuple:
    return unflatten(merged(ctx.saved_tensors, ctx.others), ctx.lengths)

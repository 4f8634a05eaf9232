"""Arguments and results of ops that include lists of tensors, as the flat sequences that autograd
takes."""

from collections.abc import Sequence


def where_needed(grads: Sequence, needs: Sequence[bool]) -> list:
    """The gradients, with None for those that are not needed."""
    return [g if need else None for g, need in zip(grads, needs, strict=True)]


def flatten(values: Sequence, listed: Sequence[bool]) -> tuple[list, list[int | None]]:
    """The values with each list replaced by its entries, and the length of each list, None for
    values that are not lists.

    Args:
        listed: which of the values are lists of tensors.
    """
    lengths = [len(v) if is_list else None for v, is_list in zip(values, listed, strict=True)]
    flat = []
    for value, length in zip(values, lengths, strict=True):
        flat += [value] if length is None else value
    return flat, lengths


def unflatten(flat: Sequence, lengths: Sequence[int | None]) -> tuple:
    """Undoes `flatten`."""
    entries, found = iter(flat), []
    for length in lengths:
        found.append(next(entries) if length is None else [next(entries) for _ in range(length)])
    return tuple(found)

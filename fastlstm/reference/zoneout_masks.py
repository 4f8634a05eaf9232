"""Zoneout's masks: a counter-based generator, so that a backward, a recomputed chunk or another
backend draws the very same masks again, and nothing is stored.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). The
key is the call's 64-bit seed, low word first. The counter is::

    (unit, row n, first_step + t, stream)

with t counted from the start of the input also in the reverse direction, first_step the place of
the input in a longer sequence that is taken in chunks, and stream twice the layer, + 1 for the
reverse direction. Of the four words of
32 bits that a counter gives, the first decides about h, the second about c: a unit keeps its old
value where the word's upper 24 bits are below round(probability * 2^24).
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def threshold(probability: float) -> int:
    """What the upper 24 bits of a word are below with this probability."""
    return int(probability * 2**24 + 0.5)


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words for each counter of four, all of 32 bits in int64, broadcast; the counter's first
    and third must be tensors."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Signed 64-bit products wrap around, and have the bits of the unsigned ones.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            (second >> 32 & _WORD) ^ b ^ k0,
            second & _WORD,
            (first >> 32 & _WORD) ^ d ^ k1,
            first & _WORD,
        )
        k0, k1 = k0 + _KEY_STEPS[0] & _WORD, k1 + _KEY_STEPS[1] & _WORD
    return a, b, c, d


def zoneout_masks(
    seed: Tensor,
    T: int,
    N: int,
    units: tuple[int, int],
    probabilities: tuple[float, float],
    stream: int,
    first_step: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Where h (T, N, P) and c (T, N, H) of a direction keep their old value: bool, None for
    probability 0.

    Args:
        seed: (1,) int64. units: (P, H). probabilities: of h and of c.
    """
    device = seed.device

    def count(n, first=0):
        return torch.arange(first, first + n, device=device)

    widest = max(n for n, p in zip(units, probabilities, strict=True) if p)
    counter = (
        count(widest),
        count(N)[:, None],
        (count(T, first_step) & _WORD)[:, None, None],
        stream,
    )
    words = philox(counter, (seed & _WORD, seed >> 32 & _WORD))
    return tuple(
        (words[k][..., :n] >> 8) < threshold(p) if p else None
        for k, (n, p) in enumerate(zip(units, probabilities, strict=True))
    )

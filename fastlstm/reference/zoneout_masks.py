"""Zoneout's masks from a counter-based generator: a backward, a recomputed chunk or another backend
draws the same masks again, so none are stored.

Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"). The
key is the call's 64-bit seed, low word first. The counter is::

    (unit, row n, first_step + t, stream)

with t counted from the start of the input in both directions, first_step the input's first step in
a longer sequence that is processed in chunks, and stream = 2 * layer + (1 in the reverse
direction). Of the four 32-bit words of a counter the first is for h, the second for c: a unit keeps
its old value where the word's upper 24 bits are below round(probability * 2^24).
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def threshold(probability: float) -> int:
    """The number that the upper 24 bits of a random word are below with this probability."""
    return int(probability * 2**24 + 0.5)


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words for each counter of four words, all of 32 bits in int64 and broadcast; the
    counter's first and third words must be tensors."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # Signed 64-bit products wrap around to the same bits as unsigned ones.
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
    """Where h (T, N, P) and c (T, N, H) of a direction keep their old value: bool, or None where
    the probability is 0.

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

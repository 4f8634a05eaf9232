"""A row's float32 results by the CPU's kernels are the same bits alone, among others in any order,
and on any number of threads; from five steps on, since shorter calls of few rows take their
weights as they lie.
"""

import pytest
import torch
from op_cases import threads
from pairs import needs_library

from fastlstm import FastLSTM
from fastlstm.backends import native

pytestmark = [
    needs_library,
    pytest.mark.skipif(
        native.load() is None and native.cpu_isa().startswith("amx"),
        reason="on AMX, how many rows there are decides between tiles and multiply-adds",
    ),
]

# T, I, H: below and above a chunk of a sum, gates at once and in chunks, uneven panels.
SIZES = [(5, 3, 7), (9, 40, 100), (6, 300, 33), (70, 64, 96), (7, 5, 185)]
OPTIONS = [
    {},
    {"bidirectional": True, "num_layers": 2},
    {"proj_size": 5, "bias": False},
    {"weight_dtype": torch.bfloat16},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_a_row_alone_and_among_others(size, options):
    T, I, H = size
    lstm, x = FastLSTM(I, H, backend="cpu", **options), torch.randn(T, 19, I)
    lengths = torch.randint(1, T + 1, (19,))
    with threads(1):
        whole, states = lstm(x)
        ragged, _ = lstm(x, lengths=lengths)
    order = torch.randperm(19)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(lstm(x[:, order])[0], whole[:, order])
            for rows in (slice(0, 1), slice(18, 19), slice(3, 8), slice(2, 16)):
                y, found = lstm(x[:, rows])
                assert torch.equal(y, whole[:, rows])
                assert all(torch.equal(t, s[:, rows]) for t, s in zip(found, states, strict=True))
                y, _ = lstm(x[:, rows], lengths=lengths[rows])
                assert torch.equal(y, ragged[:, rows])


@pytest.mark.parametrize("depth", [1, 40, 700])
def test_a_row_of_a_large_product(depth):
    left, right = torch.randn(23, depth), torch.randn(depth, 70)

    def own(rows):
        return torch.ops.fastlstm.cpu_product(rows, right, None, 3, 3, None)

    whole, order = own(left), torch.randperm(23)
    assert torch.equal(own(left[order]), whole[order])
    for rows in (slice(0, 1), slice(22, 23), slice(4, 11), slice(1, 23)):
        for count in (1, 2):
            with threads(count):
                assert torch.equal(own(left[rows]), whole[rows])


@pytest.mark.parametrize("options", [*OPTIONS, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("size", [(3, 7), (40, 100), (37, 13), (64, 16), (301, 33)], ids=str)
@torch.no_grad()
def test_a_row_of_a_single_step(size, options):
    """Up to four rows share the weights that are loaded; up to eight take this way."""
    lstm = FastLSTM(*size, backend="cpu", **options)
    x = torch.randn(1, 8, size[0], dtype=options.get("dtype"))
    hx = [torch.randn(s.shape[0], 8, s.shape[2], dtype=s.dtype) for s in lstm(x)[1]]
    alone = [lstm(x[:, n : n + 1], tuple(s[:, n : n + 1] for s in hx)) for n in range(8)]
    for count in range(2, 9):
        y, states = lstm(x[:, :count], tuple(s[:, :count] for s in hx))
        assert torch.equal(y, torch.cat([one for one, _ in alone[:count]], 1))
        for t, ones in zip(states, zip(*(s for _, s in alone[:count]), strict=True), strict=True):
            assert torch.equal(t, torch.cat(ones, 1))

"""Jagged NestedTensors: what nn.LSTM gives for a PackedSequence of the same rows; with every other
feature, test_features.py."""

import pytest
import torch
from pairs import needs_library, pair
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from fastlstm import FastLSTM
from fastlstm.testing import make_states

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty")]
I, H = 3, 4
LENGTHS = [3, 6, 1, 2]


def rows(requires_grad=False, dtype=torch.float64):
    return [torch.randn(n, I, dtype=dtype, requires_grad=requires_grad) for n in LENGTHS]


@pytest.mark.parametrize("batch_first", [False, True])
def test_rows_are_as_in_a_packed_sequence(batch_first):
    options = {"bidirectional": True, "proj_size": 2, "batch_first": batch_first}
    lstm, fast = pair(I, H, 2, dtype=torch.float64, **options)
    hx = make_states(lstm, len(LENGTHS), torch.float64)
    parts = rows(requires_grad=True)
    x = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    y, state = fast(x, hx)
    assert y.layout == torch.jagged and y.shape[:2] == x.shape[:2]  # one symbolic j: they add up
    assert (y.sum(-1) + x.sum(-1)).shape == x.shape[:2]
    packed, expected_state = lstm(pack_sequence(parts, enforce_sorted=False), hx)
    expected = unpack_sequence(packed)
    torch.testing.assert_close(state, expected_state)
    for got, wanted in zip(y.unbind(), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    ours = torch.autograd.grad(y.values().sin().sum(), [*parts, *fast.parameters()])
    theirs = torch.autograd.grad(torch.cat(expected).sin().sum(), [*parts, *lstm.parameters()])
    torch.testing.assert_close(ours, theirs)


def test_rows_with_holes_between_them():
    """A narrowed tensor: its values hold steps of no row, which nothing reads and no gradient
    reaches."""
    fast = FastLSTM(I, H, bidirectional=True, dtype=torch.float64)
    whole = torch.randn(3, 6, I, dtype=torch.float64)
    starts, lengths = torch.tensor([0, 1, 2]), torch.tensor([3, 0, 4])
    x = torch.nested.narrow(whole, 1, starts, lengths, layout=torch.jagged)
    parts = [whole[n, s : s + k] for n, (s, k) in enumerate(zip(starts, lengths, strict=True))]
    x.values()[6:9] = float("nan")
    y, state, cells = fast(x, return_cell_sequence=True)
    dense = torch.nested.as_nested_tensor(parts, layout=torch.jagged)
    expected, expected_state, expected_cells = fast(dense, return_cell_sequence=True)
    for got, wanted in ((y, expected), (cells, expected_cells)):
        for a, b in zip(got.unbind(), wanted.unbind(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(state, expected_state, rtol=0, atol=0)


def test_a_jagged_reset_mask():
    fast = FastLSTM(I, H, dtype=torch.float64)
    x = torch.nested.as_nested_tensor(rows(), layout=torch.jagged)
    resets = torch.rand(len(x.values())) < 0.4
    mask = torch.nested.nested_tensor_from_jagged(resets, x.offsets())
    padded = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.bool)
    for row, part in zip(padded, resets.split(LENGTHS), strict=True):
        row[: len(part)] = part
    a, b = fast(x, reset_mask=mask)[0], fast(x, reset_mask=padded)[0]
    torch.testing.assert_close(a.values(), b.values(), rtol=0, atol=0)
    assert not torch.equal(a.values(), fast(x)[0].values())


def test_rows_and_steps_that_are_not_there():
    fast = FastLSTM(I, H)
    empty = torch.nested.nested_tensor_from_jagged(torch.zeros(0, I), torch.tensor([0, 0, 0]))
    y, (h_n, _) = fast(empty)
    assert y.values().shape == (0, H) and not h_n.any() and h_n.shape == (1, 2, H)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")  # strided ones
def test_what_is_refused():
    fast, x = FastLSTM(I, H), torch.nested.as_nested_tensor(rows(), layout=torch.jagged)
    single = torch.nested.as_nested_tensor(rows(dtype=torch.float32), layout=torch.jagged)
    other = torch.nested.as_nested_tensor(rows(dtype=torch.float32), layout=torch.jagged)
    with pytest.raises(ValueError, match=r"expected torch\.jagged"):
        fast(torch.nested.as_nested_tensor(rows(dtype=torch.float32), layout=torch.strided))
    with pytest.raises(ValueError, match="jagged in its second dimension"):
        fast(single.transpose(1, 2))
    with pytest.raises(ValueError, match=r"lengths: got a tensor beside a NestedTensor"):
        fast(single, lengths=torch.tensor(LENGTHS))
    with pytest.raises(ValueError, match=r"got a NestedTensor of 3 features, torch\.float64"):
        fast(x)
    with pytest.raises(ValueError, match=r"hx\[0\] \(h0\): got shape"):
        fast(single, (torch.zeros(1, 2, H), torch.zeros(1, 4, H)))
    with pytest.raises(ValueError, match=r"reset_mask: got shape \(6, 4\), expected \(N, T\)"):
        fast(single, reset_mask=torch.zeros(6, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"reset_mask: got a NestedTensor of shape"):
        fast(single, reset_mask=other.sum(-1) > 0)
    with pytest.raises(ValueError, match=r"reset_mask: got dtype torch\.float32"):
        fast(single, reset_mask=single.sum(-1))

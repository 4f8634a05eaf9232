"""lengths, reset_mask, the cell sequence, step, and what else FastLSTM does beyond nn.LSTM; against
loops of nn.LSTM that do the same slowly.
"""

import copy
import itertools

import pytest
import torch
from pairs import ignore_onednn, on_cpu, one_thread, pair  # noqa: F401  (one_thread is a fixture)
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm import FastLSTM
from fastlstm.testing import make_input, make_states, map_tensors, named_results, run

pytestmark = [pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]
backends = pytest.mark.parametrize("backend", [on_cpu, "reference"])

T, N, I, H = 6, 5, 3, 4
MODELS = [
    {},
    {"bidirectional": True, "batch_first": True},
    {"num_layers": 2, "bidirectional": True, "proj_size": 2, "bias": False},
]
models = pytest.mark.parametrize("model", MODELS, ids=["plain", "D2-NTI", "L2-D2-P2"])


def double_pair(backend, **options):
    return pair(I, H, backend=backend, dtype=torch.float64, **options)


def time_first(tensor, model):
    return tensor.transpose(0, 1) if model.get("batch_first") else tensor


def same(ours, theirs):
    assert ours.keys() >= theirs.keys()
    torch.testing.assert_close({k: ours[k] for k in theirs}, theirs, rtol=1e-12, atol=1e-12)


@backends
@models
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_lengths_are_what_packing_gives(model, backend, given):
    lstm, fast = double_pair(backend, **model)
    batch_first = model.get("batch_first", False)
    x = make_input(T, N, I, torch.float64, batch_first=batch_first)
    lengths = torch.tensor([3, 6, 1, 6, 2])
    hx = make_states(lstm, N, torch.float64) if given else None

    class Packing(nn.Module):
        def __init__(self):
            super().__init__()
            self._parameters = lstm._parameters

        def forward(self, x, hx):
            packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
            y, state = lstm(packed, hx)
            return pad_packed_sequence(y, batch_first, total_length=T)[0], state

    same(run(fast, x, hx, lengths=lengths), run(Packing(), x, hx))


@backends
@models
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_a_row_of_no_length_keeps_its_states(model, backend, dtype):
    lstm, fast = double_pair(backend, **model)
    batch_first = model.get("batch_first", False)
    x = make_input(T, N, I, torch.float64, batch_first=batch_first)
    h0, c0 = make_states(lstm, N, torch.float64)
    lengths = torch.tensor([0, 4, 0, 6, 1], dtype=dtype)
    y, (h_n, c_n) = fast(x, (h0, c0), lengths=lengths)
    assert torch.equal(h_n[:, [0, 2]], h0[:, [0, 2]])
    assert torch.equal(c_n[:, [0, 2]], c0[:, [0, 2]])
    y = time_first(y, model)
    assert all(not y[int(n) :, row].any() for row, n in enumerate(lengths))
    # what is beyond a row's length, NaN included, is never looked at
    time_first(x, model)[1:, 4] = float("nan")
    time_first(x, model)[:, 0] = float("nan")
    again, state = fast(x, (h0, c0), lengths=lengths)
    assert torch.equal(time_first(again, model), y)
    assert torch.equal(state[1], c_n)


def with_resets(lstm, x, hx, mask, lengths):
    """A stack of layers in which each row is cut at its resets and each piece run by itself."""
    D = 2 if lstm.bidirectional else 1
    H, P = lstm.hidden_size, lstm.proj_size or lstm.hidden_size
    h_n, c_n = hx[0].clone(), hx[1].clone()
    for layer in range(lstm.num_layers):
        outputs = []
        for d in range(D):
            k, suffix = layer * D + d, "_reverse" if d else ""
            one = nn.LSTM(x.shape[2], H, bias=lstm.bias, proj_size=lstm.proj_size).double()
            names = [n for n in lstm._flat_weights_names if n.endswith(f"_l{layer}{suffix}")]
            weights = {n.replace(f"_l{layer}{suffix}", "_l0"): getattr(lstm, n) for n in names}
            y = x.new_zeros(*x.shape[:2], P)
            for row, length in enumerate(lengths.tolist()):
                state = (hx[0][k, row : row + 1], hx[1][k, row : row + 1])
                cuts = [t for t in range(length) if mask[t, row]]
                pieces = [(a, b) for a, b in itertools.pairwise([0, *cuts, length]) if a < b]
                for a, b in reversed(pieces) if d else pieces:
                    enters_with_zeros = b in cuts if d else a in cuts
                    if enters_with_zeros:
                        state = tuple(torch.zeros_like(s) for s in state)
                    steps = x[a:b, row].flip(0) if d else x[a:b, row]
                    out, state = torch.func.functional_call(one, weights, (steps, state))
                    y = y.index_put((torch.arange(a, b), torch.tensor(row)), out.flip(0) if d else out)
                h_n = h_n.index_put((torch.tensor(k), torch.tensor(row)), state[0][0])
                c_n = c_n.index_put((torch.tensor(k), torch.tensor(row)), state[1][0])
            outputs.append(y)
        x = torch.cat(outputs, dim=-1)
    return x, (h_n, c_n)


@backends
@models
@pytest.mark.parametrize("some", [False, True], ids=["all-steps", "lengths"])
def test_resets_cut_the_sequence(model, backend, some):
    lstm, fast = double_pair(backend, **model)
    batch_first = model.get("batch_first", False)
    x = make_input(T, N, I, torch.float64, batch_first=batch_first)
    hx = make_states(lstm, N, torch.float64)
    mask = torch.rand(T, N) < 0.4
    mask[0, 0] = mask[5, 1] = True
    lengths = torch.tensor([6, 5, 0, 3, 1]) if some else torch.full((N,), T)

    class Cutting(nn.Module):
        def __init__(self):
            super().__init__()
            self._parameters = lstm._parameters

        def forward(self, x, hx):
            y, state = with_resets(lstm, time_first(x, model), hx, mask, lengths)
            return time_first(y, model), state

    options = {"reset_mask": time_first(mask, model), **({"lengths": lengths} if some else {})}
    same(run(fast, x, hx, **options), run(Cutting(), x, hx))


@backends
def test_resets_of_a_packed_batch_follow_the_user_order(backend):
    lstm, fast = double_pair(backend, bidirectional=True)
    x, mask = make_input(T, N, I, torch.float64), torch.rand(T, N) < 0.4
    lengths = torch.tensor([3, 6, 1, 6, 2])
    hx = make_states(lstm, N, torch.float64)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    ours, state, cells = fast(packed, hx, reset_mask=mask, return_cell_sequence=True)
    padded, expected, padded_cells = fast(x, hx, lengths=lengths, reset_mask=mask, return_cell_sequence=True)
    assert isinstance(cells, PackedSequence)
    torch.testing.assert_close(pad_packed_sequence(ours)[0], padded)
    torch.testing.assert_close(pad_packed_sequence(cells)[0], padded_cells)
    torch.testing.assert_close(state, expected)


@backends
@models
def test_cell_sequence_holds_every_cell(model, backend):
    lstm, fast = double_pair(backend, **model)
    x = make_input(T, N, I, torch.float64, batch_first=model.get("batch_first", False))
    y, (h_n, c_n), cells = fast(x, return_cell_sequence=True)
    torch.testing.assert_close((y, (h_n, c_n)), lstm(x))
    cells = time_first(cells, model)
    D = 2 if lstm.bidirectional else 1
    assert cells.shape == (T, N, D * H)
    torch.testing.assert_close(cells[-1, :, :H], c_n[-D])
    # c_t is the final cell of the sequence cut after t
    for t in range(T) if D == 1 else ():
        torch.testing.assert_close(cells[t], lstm(x[: t + 1])[1][1][-1])
    if D == 2:
        torch.testing.assert_close(cells[0, :, H:], c_n[-1])


@backends
@pytest.mark.parametrize("layout", ["strided", "expanded", "transposed", "offset"])
def test_strides_of_inputs_states_and_gradients(layout, backend):
    lstm, fast = double_pair(backend, num_layers=2, bidirectional=True)

    def laid_out(*shape):
        if layout == "strided":
            return torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64)[..., ::2]
        if layout == "expanded":
            return torch.randn(shape[0], 1, shape[2], dtype=torch.float64).expand(shape)
        if layout == "transposed":
            return torch.randn(*reversed(shape), dtype=torch.float64).permute(2, 1, 0)
        return torch.randn(shape[0] + 1, *shape[1:], dtype=torch.float64)[1:]

    x, h0, c0 = laid_out(T, N, I), laid_out(4, N, H), laid_out(4, N, H)
    grads = laid_out(T, N, 2 * H), laid_out(4, N, H), laid_out(4, N, H)
    found = []
    for module in (lstm, fast):
        leaves = [t.detach().requires_grad_() for t in (x, h0, c0)]
        y, (h_n, c_n) = module(leaves[0], tuple(leaves[1:]))
        found.append(torch.autograd.grad((y, h_n, c_n), leaves + list(module.parameters()), grads))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@backends
def test_results_share_no_memory(backend):
    _, fast = double_pair(backend)
    h0, c0 = make_states(fast, N, torch.float64)
    for steps in (0, 1, 3):
        x = make_input(steps, N, I, torch.float64)
        with torch.no_grad():
            y, (h_n, c_n), cells = fast(x, (h0, c0), return_cell_sequence=True)
        kept = [t.clone() for t in (y, h_n, c_n, cells, h0, c0)]
        for k, tensor in enumerate((y, h_n, c_n, cells, h0, c0)):
            tensor.fill_(7)
            rest = [y, h_n, c_n, cells, h0, c0][k + 1 :]
            assert all(torch.equal(a, b) for a, b in zip(rest, kept[k + 1 :], strict=True))
        h0, c0 = kept[-2:]


@backends
@models
def test_no_steps_gives_the_states_back(model, backend):
    _, fast = double_pair(backend, **model)
    x = make_input(0, N, I, torch.float64, batch_first=model.get("batch_first", False))
    D, P = (2 if fast.bidirectional else 1), fast.proj_size or H
    for lengths in (None, torch.zeros(N, dtype=torch.int64)):
        h0, c0 = (s.requires_grad_() for s in make_states(fast, N, torch.float64))
        y, (h_n, c_n) = fast(x, (h0, c0), lengths=lengths)
        assert time_first(y, model).shape == (0, N, D * P)
        assert torch.equal(h_n, h0)
        assert torch.equal(c_n, c0)
        (2 * h_n.sum() + 3 * c_n.sum() + y.sum()).backward()
        assert h0.grad.eq(2).all()
        assert c0.grad.eq(3).all()
    y, (h_n, c_n) = fast(x)
    assert not h_n.any()
    assert fast(torch.zeros(0, I, dtype=torch.float64))[0].shape == (0, D * P)


@backends
def test_unbatched_options(backend):
    _, fast = double_pair(backend, bidirectional=True, batch_first=True)
    x, mask = make_input(T, None, I, torch.float64, kind="unbatched"), torch.rand(T) < 0.4
    h0, c0 = make_states(fast, None, torch.float64)
    as_batch = fast(
        x[None],
        (h0[:, None], c0[:, None]),
        lengths=torch.tensor([4]),
        reset_mask=mask[None],
        return_cell_sequence=True,
    )
    for lengths in (torch.tensor(4), torch.tensor([4])):
        y, (h_n, c_n), cells = fast(x, (h0, c0), lengths=lengths, reset_mask=mask, return_cell_sequence=True)
        torch.testing.assert_close(y, as_batch[0][0])
        torch.testing.assert_close(h_n, as_batch[1][0][:, 0])
        torch.testing.assert_close(c_n, as_batch[1][1][:, 0])
        torch.testing.assert_close(cells, as_batch[2][0])


@backends
@pytest.mark.parametrize("model", [{}, {"num_layers": 2, "proj_size": 2, "batch_first": True}])
def test_step_is_forward_one_step_at_a_time(model, backend):
    lstm, fast = double_pair(backend, **model)
    x = make_input(T, N, I, torch.float64, batch_first=model.get("batch_first", False))
    expected, expected_state = lstm(x)
    outputs, state = [], None
    for x_t in time_first(x, model):
        y, state = fast.step(x_t, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), time_first(expected, model))
    torch.testing.assert_close(state, expected_state)
    unbatched, state = [], None
    for x_t in time_first(x, model)[:, 0]:
        y, state = fast.step(x_t, state)
        unbatched.append(y)
    torch.testing.assert_close(torch.stack(unbatched), time_first(expected, model)[:, 0])
    torch.testing.assert_close(state[1], expected_state[1][:, 0])


def test_step_refuses():
    with pytest.raises(ValueError, match="step: this FastLSTM is bidirectional"):
        FastLSTM(3, 4, bidirectional=True).step(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"x_t: got shape \(1, 2, 3\), expected \(N, I\)"):
        FastLSTM(3, 4).step(torch.zeros(1, 2, 3))
    with pytest.raises(RuntimeError, match="input_size"):
        FastLSTM(3, 4).step(torch.zeros(2, 4))


@backends
@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed"])
@pytest.mark.parametrize("num_layers, proj_size", [(1, 0), (2, 2)])
def test_dropout_draws_the_same_stream(kind, num_layers, proj_size, backend):
    lstm, fast = pair(I, H, 1 + num_layers, backend=backend, dropout=0.5, proj_size=proj_size, bidirectional=True)
    x = make_input(T, N, I, torch.float32, kind=kind)
    drawn = []
    for module in (lstm, fast):
        torch.manual_seed(11)
        y, _ = module(x)
        drawn.append((torch.rand(3), y.data if kind == "packed" else y))
    assert torch.equal(drawn[0][0], drawn[1][0])
    torch.testing.assert_close(drawn[0][1], drawn[1][1])
    assert torch.equal(fast.eval()(x)[1][0], fast(x)[1][0])


WRONG = {
    "width": ((torch.zeros(T, N, I + 1),), {}),
    "dtype": ((torch.zeros(T, N, I, dtype=torch.float64),), {}),
    "states": ((torch.zeros(T, N, I), (torch.zeros(2, N, H + 1), torch.zeros(2, N, H))), {}),
    "state's dtype": ((torch.zeros(T, N, I), (torch.zeros(2, N, H).double(), torch.zeros(2, N, H))), {}),
    "lengths": ((torch.zeros(T, N, I),), {"lengths": torch.full((N,), T + 1)}),
    "unbatched lengths": ((torch.zeros(T, I),), {"lengths": torch.tensor(T + 1)}),
    "shape of lengths": ((torch.zeros(T, N, I),), {"lengths": torch.zeros(N + 1, dtype=torch.long)}),
    "reset_mask": ((torch.zeros(T, N, I),), {"reset_mask": torch.zeros(N, T, dtype=torch.bool)}),
    "mask's dtype": ((torch.zeros(T, N, I),), {"reset_mask": torch.zeros(T, N)}),
    "weight": ((torch.zeros(T, N, I),), {}),
}


@backends
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_an_error_draws_no_dropout(wrong, gradients, backend):
    fast = FastLSTM(I, H, 2, dropout=0.5, backend=backend)
    args, options = WRONG[wrong]
    if wrong == "weight":
        fast.bias_hh_l1 = torch.nn.Parameter(torch.zeros(3))
    before = torch.get_rng_state()
    with torch.set_grad_enabled(gradients), pytest.raises((ValueError, RuntimeError)):
        fast(*args, **options)
    assert torch.equal(torch.get_rng_state(), before)


@backends
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["batched", "unbatched", "packed"])
def test_autocast_computes_as_if_all_had_its_dtype(kind, wanted, backend):
    # nn.LSTM on the CPU does so too, but for packed input and, under float16, not at all.
    lstm, fast = pair(I, H, 2, backend=backend, bidirectional=True)
    x = make_input(T, N, I, torch.float32, kind=kind)
    hx = make_states(lstm, None if kind == "unbatched" else N, torch.float32)
    cast = copy.deepcopy(fast).to(wanted)
    for states in (None, hx):
        with torch.autocast("cpu", wanted):
            found = named_results(fast(x, states, return_cell_sequence=True))
            assert torch.is_autocast_enabled("cpu")
        low = map_tensors(lambda t: t.to(wanted), (x, states))
        expected = named_results(cast(*low, return_cell_sequence=True))
        assert {t.dtype for t in found.values()} == {wanted}
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        found["output"].sum().backward()
        assert fast.weight_hh_l0.grad.dtype == torch.float32
    # oneDNN, which autocast gives nn.LSTM to, has no bfloat16 on processors without AVX-512.
    theirs = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if kind == "batched" and wanted == torch.bfloat16 and theirs:
        with torch.autocast("cpu", wanted):
            assert {t.dtype for t in named_results(lstm(x, hx)).values()} == {wanted}


@backends
def test_autocast_leaves_float64_alone(backend):
    lstm, fast = double_pair(backend)
    x = make_input(T, N, I, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), lstm(x))
        with pytest.raises(ValueError, match="weight_ih_l0: got dtype"):
            fast(x.float())


@backends
def test_nan_and_inf_flow_as_in_torch(backend):
    lstm, fast = double_pair(backend, bidirectional=True)
    x = make_input(T, N, I, torch.float64)
    x[2, 0], x[3, 1], x[4, 2] = float("nan"), float("inf"), float("-inf")
    hx = make_states(lstm, N, torch.float64)
    hx[0][0, 3], hx[1][0, 4] = float("inf"), float("nan")
    torch.testing.assert_close(fast(x, hx), lstm(x, hx), equal_nan=True)


@backends
def test_inference_mode_and_no_grad(backend):
    lstm, fast = double_pair(backend, num_layers=2)
    x = make_input(T, N, I, torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), lstm(x))
    with torch.no_grad():
        assert not fast(x)[0].requires_grad
    assert fast(x)[0].requires_grad

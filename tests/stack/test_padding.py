"""What does not exist touches nothing: steps beyond the lengths, the states of a row without steps,
states behind a reset, and the gradients that arrive there, with NaN and infinity in their places.
"""

import contextlib

import pytest
import torch
from pairs import needs_library
from torch.autograd import forward_ad

from fastlstm import FastLSTM, functional
from fastlstm.reference import lstm as reference
from fastlstm.reference.variant import variant_forward
from fastlstm.stack.wavefront import plan as wavefront

T, N, I, H = 6, 5, 3, 5
LENGTHS = torch.tensor([4, 0, 6, 1, 5])
PADDING = torch.arange(T)[:, None] >= LENGTHS
BACKENDS = [pytest.param("auto", marks=needs_library), "reference"]
OPTIONS = {
    "plain": {},
    "two-layers": {"num_layers": 2, "dropout": 0.5},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "projection": {"proj_size": 2, "bidirectional": True},
    "layer_norm": {"layer_norm": True, "num_layers": 2},
    "variants": {
        "layer_norm": True,
        "zoneout": 0.3,
        "recurrent_dropout": 0.3,
        "proj_size": 2,
        "bidirectional": True,
    },
}
CHECKPOINTS = [{}, {"checkpoint_every": 2}]
VALUES = [float("nan"), float("inf")]
BITWISE = {"rtol": 0, "atol": 0, "equal_nan": True}

options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
checkpoints = pytest.mark.parametrize("checkpoints", CHECKPOINTS, ids=["tape", "checkpoints"])
backends = pytest.mark.parametrize("backend", BACKENDS)


def module(**options):
    return FastLSTM(I, H, dtype=torch.float64, **options)


def states(lstm, rows=N):
    """Random h0 and c0."""
    D = lstm.num_layers * (2 if lstm.bidirectional else 1)
    return [torch.randn(D, rows, n, dtype=torch.float64) for n in (lstm.proj_size or H, H)]


def filled(tensor, mask, value):
    """A copy of `tensor` with `value` where `mask`, of its first dimensions."""
    tensor = tensor.clone()
    tensor[mask] = value
    return tensor


class Problem:
    """A call of a module, and all its derivatives, with some value where nothing exists.

    lengths, reset_mask: the call's. steps (T, N): those that do not exist; rows (N,), of all or of
    some of the states: those whose first states nothing enters.
    """

    def __init__(self, lstm, steps, rows, **masks):
        self.lstm, self.steps, self.masks = lstm, steps, masks
        self.x, hx = torch.randn(T, N, I, dtype=torch.float64), states(lstm)
        self.rows, self.hx = rows, hx
        P = hx[0].shape[2] * (2 if lstm.bidirectional else 1)
        self.given = [torch.randn(T, N, P, dtype=torch.float64), *map(torch.randn_like, hx)]
        self.again = torch.randn_like(self.x)
        self.generator = torch.get_rng_state()

    def inputs(self, value):
        x = filled(self.x, self.steps, value)
        hx = [s.masked_fill(self.rows.unsqueeze(-1), value) for s in self.hx]
        return [v.requires_grad_() for v in (x, *hx)]

    def call(self, x, h0, c0):
        torch.set_rng_state(self.generator)
        output, (h_n, c_n) = self.lstm(x, (h0, c0), **self.masks)
        return output, h_n, c_n

    def existing(self, results):
        """Of a sequence, two states and others, the states without those of rows without steps:
        last states are the first, and their gradients too."""
        sequence, *both = results[:3]
        empty = self.steps.all(0)
        return [sequence, *(s.masked_fill(empty[:, None], 0) for s in both), *results[3:]]

    def first_order(self, value, create_graph=False):
        inputs = self.inputs(value)
        results = self.call(*inputs)
        # What arrives at the last states of a row without steps goes to its first alone.
        of_states = (filled(g, (slice(None), self.steps.all(0)), value) for g in self.given[1:])
        given = [filled(self.given[0], self.steps, value), *of_states]
        wanted = [*inputs, *self.lstm.parameters()]
        grads = torch.autograd.grad(results, wanted, given, create_graph=create_graph)
        return self.existing(results), wanted, grads

    def second_order(self, value):
        _, wanted, grads = self.first_order(value, create_graph=True)
        again = filled(self.again, self.steps, value)
        rest = [g.sin().sum() for g in grads[1:]]
        return torch.autograd.grad(
            [grads[0], *rest], wanted, [again, *map(torch.ones_like, rest)], materialize_grads=True
        )

    def tangents(self, value):
        changes = torch.Generator().manual_seed(1)
        with forward_ad.dual_level(), contextlib.ExitStack() as stack:
            inputs = []
            for v in self.inputs(value):
                change = torch.randn(v.shape, generator=changes, dtype=v.dtype)
                change = change.masked_fill(~v.isfinite(), value)
                inputs.append(forward_ad.make_dual(v.detach(), change))
            weights = {}
            for name, w in self.lstm.named_parameters():
                change = torch.randn(w.shape, generator=changes, dtype=w.dtype)
                weights[name] = forward_ad.make_dual(w.detach(), change)
            stack.enter_context(torch.nn.utils.stateless._reparametrize_module(self.lstm, weights))
            results = [forward_ad.unpack_dual(r).tangent for r in self.call(*inputs)]
        return self.existing(results)


def assert_same(got, expected):
    for k, (one, other) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(one, other, **BITWISE, msg=lambda m, k=k: f"{k}: {m}")


def check(problem, derivatives=("first_order", "second_order", "tangents")):
    for name in derivatives:
        derivative = getattr(problem, name)
        expected, values = derivative(0.0), VALUES if name == "first_order" else VALUES[:1]
        for value in values:
            got = derivative(value)
            if name == "first_order":
                assert_same(got[0], expected[0])
                got, same = (problem.existing(of[2]) for of in (got, expected))
                assert all(g.isfinite().all() for g in got)
                assert_same(got, same)
            else:
                assert_same(got, expected)


@options
@checkpoints
@backends
def test_beyond_the_lengths(backend, checkpoints, options):
    lstm = module(backend=backend, **checkpoints, **options)
    check(Problem(lstm, PADDING, LENGTHS == 0, lengths=LENGTHS))


@options
@checkpoints
@backends
def test_behind_a_reset_at_the_first_step(backend, checkpoints, options):
    """What the forward direction begins with in the rows that are reset there."""
    lstm = module(backend=backend, **checkpoints, **options)
    resets = torch.zeros(T, N, dtype=torch.bool)
    resets[0, ::2] = resets[3, 1] = True
    D = 2 if lstm.bidirectional else 1
    forward = torch.arange(D * lstm.num_layers)[:, None] % D == 0
    check(Problem(lstm, torch.zeros_like(resets), resets[0] & forward, reset_mask=resets))


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}], ids=["plain", "projection"])
def test_as_a_wavefront(options, monkeypatch):
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: 4)
    lstm = module(num_layers=3, dropout=0.5, backend="reference", **options)
    problem = Problem(lstm, PADDING, LENGTHS == 0, lengths=LENGTHS)
    check(problem, ["first_order", "second_order"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@needs_library
def test_every_dtype(dtype):
    """Of products that the kernels make and of those that torch makes, converted and as it lies."""
    for rows, inputs, hidden in ((8, 3, 5), (37, 40, 33)):
        lstm = FastLSTM(inputs, hidden, dtype=dtype, bidirectional=True)
        x, lengths = torch.randn(T, rows, inputs).to(dtype), torch.arange(rows) % (T + 1)
        padding, found = torch.arange(T)[:, None] >= lengths, []
        given = torch.randn(T, rows, 2 * hidden).to(dtype)
        for value in (0.0, *VALUES, -1.0):
            output, _ = lstm(filled(x, padding, value), lengths=lengths)
            found.append(torch.autograd.grad(output, list(lstm.parameters()), given))
        for got in found[1:]:
            assert_same(got, found[0])
        # One such number is enough, and what exists keeps its own.
        x[T - 1, T - 1, inputs - 1] = float("inf")  # the last step of the row of T - 1
        output, _ = lstm(x, lengths=lengths)
        assert_same(torch.autograd.grad(output, list(lstm.parameters()), given), found[0])
        x[T - 1, T, 0] = float("nan")  # exists
        output, _ = lstm(x, lengths=lengths)
        assert torch.autograd.grad(output, lstm.weight_ih_l0, given)[0].isnan().any()


@backends
def test_gradients_of_samples(backend):
    """Rows as samples of vmap, whose weights' gradients stay apart."""
    lstm = module(backend=backend, bidirectional=True)
    names, weights = zip(*lstm.named_parameters(), strict=True)
    x, (h0, c0) = torch.randn(N, T, 1, I, dtype=torch.float64), states(lstm, 1)

    def gradients(value):
        given = filled(x, PADDING.t(), value)

        def loss(weights, x, length):
            ws = [weights[k : k + 4] for k in (0, 4)]
            output, _ = functional.lstm(x, ws, (h0, c0), bidirectional=True, lengths=length, backend=backend)
            return output.sin().sum()

        by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        return by_sample(weights, given, LENGTHS[:, None])

    expected = gradients(0.0)
    assert len(names) == len(expected) == 8
    for value in VALUES:
        assert_same(gradients(value), expected)


@backends
def test_values_in_no_row(backend):
    """A jagged tensor with values between its rows, and a row without any."""
    lstm = module(backend=backend, layer_norm=True)
    values = torch.randn(14, I, dtype=torch.float64)
    offsets, lengths = torch.tensor([0, 4, 6, 11, 14]), torch.tensor([3, 0, 5, 2])
    holes = torch.tensor([3, 4, 5, 13])
    (h0, c0), given = states(lstm, 4), torch.randn(14, H, dtype=torch.float64)

    def run(value):
        v = filled(values, holes, value).requires_grad_()
        hx = [filled(s, (slice(None), 1), value).requires_grad_() for s in (h0, c0)]
        jagged = torch.nested.nested_tensor_from_jagged(v, offsets, lengths)
        output, _ = lstm(jagged, hx)
        output = output.values()
        wanted = [v, *hx, *lstm.parameters()]
        return output, *torch.autograd.grad(output, wanted, filled(given, holes, value))

    expected = run(0.0)
    for value in VALUES:
        assert_same(run(value), expected)


def recurrence(run, D, P, normed=False):
    """A function (gates_x, h0, c0, weight_hh, weight_hr) of one of the two references."""
    extra = [torch.randn(D, n, dtype=torch.float64) for n in (4 * H, H, H)] if normed else []

    def function(gates_x, h0, c0, *weights):
        if run is reference.lstm_forward:
            return run(gates_x, h0, c0, *weights, LENGTHS, None)
        options = 0.2, 0.3, 0, 0
        return run(gates_x, h0, c0, *weights, None, *extra, LENGTHS, None, None, *options)

    return function


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "variant"])
def test_the_references_themselves(normed):
    """As plain torch differentiates them."""
    D, P = 2, 3
    run = variant_forward if normed else reference.lstm_forward
    function = recurrence(run, D, P, normed)
    shapes = (T, N, D, 4 * H), (D, N, P), (D, N, H), (D, 4 * H, P), (D, P, H)
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    found = []
    for value in (0.0, *VALUES):
        gates_x = filled(drawn[0], PADDING, value)
        hx = [filled(s, (slice(None), LENGTHS == 0), value) for s in drawn[1:3]]
        inputs = [v.clone().requires_grad_() for v in (gates_x, *hx, *drawn[3:])]
        output, _, _, cells, gates = function(*inputs)
        results = output, cells, gates
        given = [filled(r.cos(), PADDING, value).detach() for r in results]
        found.append([*results, *torch.autograd.grad(results, inputs, given)])
    for got in found[1:]:
        assert_same(got, found[0])

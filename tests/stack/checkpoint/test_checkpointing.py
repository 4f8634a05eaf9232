"""checkpoint_every: the results and gradients of a call without it, from states kept every K steps
and no tape. With every other feature: test_features.py."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from pairs import ignore_onednn, needs_library, pair
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import FastLSTM, functional
from fastlstm.ops import weight_gradients
from fastlstm.stack.checkpoint import layers as checkpointing
from fastlstm.testing import compare, make_input, make_states

pytestmark = [needs_library, pytest.mark.usefixtures("poisoned_empty"), ignore_onednn]
T, N, I, H, P = 11, 4, 3, 6, 2
MODELS = [
    {"num_layers": 3},
    {"bidirectional": True, "num_layers": 2, "proj_size": P},
    {"num_layers": 2, "dropout": 0.5, "bias": False, "proj_size": P},
]
models = pytest.mark.parametrize("model", MODELS, ids=["L3", "L2-D2-P2", "L2-P2-dropout"])


def derived(fast, x, hx, leaves, seed=5, **options):
    torch.manual_seed(seed)
    y, state, cells = fast(x, hx, return_cell_sequence=True, **options)
    results = [y, *state, cells]
    loss = sum((r.double() * torch.randn(r.shape)).sum() for r in results)
    return results, torch.autograd.grad(loss, leaves)


@models
@pytest.mark.parametrize("every", [1, 3, 5, T - 1, T, 2 * T])
def test_it_changes_no_result(model, every):
    """Bit for bit in the forward, float64; dropout's masks included."""
    fast = FastLSTM(I, H, **model, dtype=torch.float64)
    x = make_input(T, N, I, torch.float64).requires_grad_()
    hx = tuple(s.requires_grad_() for s in make_states(fast, N, torch.float64))
    options = {"lengths": torch.tensor([T, 0, 4, 7]), "reset_mask": torch.rand(T, N) < 0.3}
    leaves = [x, *hx, *fast.parameters()]
    results, gradients = derived(fast, x, hx, leaves, **options)
    fast.checkpoint_every = every
    got, ours = derived(fast, x, hx, leaves, **options)
    for a, b in zip(got, results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(ours, gradients, rtol=1e-11, atol=1e-12)


ALL = {"layer_norm": True, "recurrent_dropout": 0.4, "weight_dropout": 0.3, "zoneout": (0.25, 0.5)}
VARIANTS = {
    "all-L3": {"num_layers": 3, **ALL},
    "all-L2-D2-P2-dropout": {
        "num_layers": 2, "bidirectional": True, "proj_size": P, "dropout": 0.5, **ALL,
    },
    "layer_norm": {"layer_norm": True, "bias": False, "bidirectional": True},
    "recurrent_dropout": {"recurrent_dropout": 0.4, "num_layers": 2, "dropout": 0.5},
    "weight_dropout": {"weight_dropout": 0.3, "num_layers": 2},
    "zoneout-h": {"zoneout": (0.5, 0.0), "bidirectional": True},
    "zoneout-c": {"zoneout": (0.0, 0.5), "num_layers": 2, "proj_size": P},
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("masks", [True, False], ids=["masks", "whole"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_it_changes_no_result_of_a_variant(variant, masks, training):
    """The dropouts' masks are the same: another one of a single unit would show."""
    fast = FastLSTM(I, H, **variant, dtype=torch.float64).train(training)
    for name, p in fast.named_parameters():
        if name.startswith("ln_"):
            torch.nn.init.normal_(p, 1.0, 0.3)
    x = make_input(T, N, I, torch.float64).requires_grad_()
    hx = tuple(s.requires_grad_() for s in make_states(fast, N, torch.float64))
    options = {"lengths": torch.tensor([T, 0, 4, 7]), "reset_mask": torch.rand(T, N) < 0.3}
    options = options if masks else {}
    leaves = [x, *hx, *fast.parameters()]
    results, gradients = derived(fast, x, hx, leaves, **options)
    after = torch.get_rng_state()
    for every in (3, T - 1):
        fast.checkpoint_every = every
        with Calls() as calls:
            got, ours = derived(fast, x, hx, leaves, **options)
        assert calls.count["checkpointed_backward"] > 0
        assert torch.equal(torch.get_rng_state(), after)
        torch.testing.assert_close(got, results, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours, gradients, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["batched", "packed"])
def test_within_the_budget_of_nn_lstm(kind, dtype):
    lstm, fast = pair(I, H, 2, bidirectional=kind == "packed", dtype=dtype)
    fast.checkpoint_every = 7
    compare(fast, lstm, make_input(40, N, I, dtype, kind=kind), make_states(lstm, N, dtype))


@pytest.mark.parametrize("model", [*MODELS, *VARIANTS.values()], ids=str)
def test_c_is_not_rounded_between_pieces_of_16_bits(model):
    """Bit for bit by the reference, but for gradients through two directions: there the input's
    is one product, or two that are rounded and added."""
    fast = FastLSTM(I, H, **model, dtype=torch.bfloat16, backend="reference")
    x, hx = make_input(40, N, I, torch.bfloat16), make_states(fast, N, torch.bfloat16)
    hx = tuple(s.requires_grad_() for s in hx)
    results, gradients = derived(fast, x, hx, hx)
    fast.checkpoint_every = 3
    got, ours = derived(fast, x, hx, hx)
    if fast.bidirectional:
        ours = gradients = ()
    for a, b in zip([*got, *ours], [*results, *gradients], strict=True):
        assert torch.equal(a, b)


@models
def test_no_tape_is_kept(model):
    """What is saved is x, the weights, the layers' outputs where they cannot run together, and
    states: no array of T steps of gates or cells."""
    fast = FastLSTM(I, H, **model, checkpoint_every=4)
    x = torch.randn(T, N, I)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fast(x)[0]
    states = [t for t in saved if t.dim() == 4]
    assert {t.shape[0] for t in states} == {3}  # every 4 of 11 steps
    long = {t.data_ptr(): t for t in saved if t.dim() == 3 and t.shape[0] == T}
    together = "dropout" not in model and "bidirectional" not in model
    widths = sorted(t.shape[2] for t in long.values())
    if together:
        assert widths == [I]
    else:
        D = 2 if fast.bidirectional else 1
        assert set(widths) <= {I, D * P}
    y.sum().backward()


class Calls(TorchDispatchMode):
    """Counts the layer ops that run, and remembers what their backwards were asked for."""

    def __init__(self):
        super().__init__()
        self.count, self.asked = Counter(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("fastlstm::")
        self.count[name] += 1
        if name == "lstm_layer_backward":
            self.asked.add(args[-2:])
        if name == "checkpointed_backward":
            self.asked.add((*args[-4:-2], tuple(args[-2])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [None, 4])
def test_nothing_is_computed_that_is_not_asked_for(every):
    """Of a stack, what lies below the lowest layer that needs a gradient is not gone back
    through; frozen weights get no products."""
    fast = FastLSTM(I, H, 3, checkpoint_every=every)
    fast.requires_grad_(False)
    x = torch.randn(T, N, I)
    with Calls() as calls:
        fast(x)
    # No checkpoints and no tape: one op for the stack, or without compiled kernels one a layer.
    assert calls.count["lstm_stack_forward"] == 1 or calls.count["lstm_layer_forward"] == 3

    fast.weight_hh_l2.requires_grad_()
    with Calls() as calls:
        fast(x)[0].sum().backward()
    if every is None:
        assert calls.asked == {(False, True)}
        assert calls.count["lstm_layer_backward"] == 1
    else:
        needs = (False,) * 8 + (False, True, False, False)
        assert calls.asked == {(False, False, needs)}
    assert fast.weight_ih_l2.grad is None and fast.weight_hh_l2.grad is not None

    fast.requires_grad_(False)
    h0 = torch.randn(3, N, H, requires_grad=True)
    with Calls() as calls:
        fast(x, (h0, torch.zeros_like(h0)))[0].sum().backward()
    if every is None:  # the lowest layer's input needs none, the others' do
        assert calls.asked == {(False, False), (True, False)}
    else:
        assert calls.asked == {(False, True, (False,) * 12)}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("every", [None, 4])
def test_a_variants_frozen_weights_get_no_products(every, backend, monkeypatch):
    fast = FastLSTM(I, H, 2, **ALL, backend=backend, checkpoint_every=every, dtype=torch.float64)
    x, made = make_input(T, N, I, torch.float64).requires_grad_(), []
    product = weight_gradients.product_of_steps
    monkeypatch.setattr(weight_gradients, "product_of_steps", lambda *of: made.append(of) or product(*of))
    grads = []
    for frozen in (False, True):
        fast.weight_hh_l0.requires_grad_(not frozen)
        fast.weight_hh_l1.requires_grad_(not frozen)
        leaves = {n: p for n, p in fast.named_parameters() if "weight_hh_l" not in n or "ln_" in n}
        made.clear()
        torch.manual_seed(3)
        y = fast(x)[0].sum()
        grads.append(torch.autograd.grad(y, [x, *leaves.values()]))
        assert not made if frozen else made
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("model", [*MODELS, VARIANTS["all-L3"], VARIANTS["layer_norm"]], ids=str)
def test_each_gradient_alone(model):
    fast = FastLSTM(I, H, **model, dtype=torch.float64)
    x, hx = make_input(T, N, I, torch.float64), make_states(fast, N, torch.float64)
    leaves = [x, *hx, *fast.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    _, expected = derived(fast, x, hx, leaves)
    fast.checkpoint_every = 3
    for leaf in leaves:
        leaf.requires_grad_(False)
    for leaf, wanted in zip(leaves, expected, strict=True):
        leaf.requires_grad_()
        (alone,) = derived(fast, x, hx, [leaf])[1]
        torch.testing.assert_close(alone, wanted, rtol=1e-11, atol=1e-12)
        leaf.requires_grad_(False)


def test_backward_inside_autocast_computes_the_same():
    fast = FastLSTM(I, H, 2, checkpoint_every=3)
    x = torch.randn(T, N, I)
    found = []
    for inside in (False, True):
        fast.zero_grad()
        y = fast(x)[0].sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            y.backward()
        found.append([p.grad.clone() for p in fast.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.shows("checkpoint", "compile", backend="cpu")
def test_one_graph_for_any_number_of_steps():
    fast = FastLSTM(I, H, 2, bidirectional=True, dtype=torch.float64)
    weights = fast.all_weights

    def call(x, lengths):
        return functional.lstm(x, weights, bidirectional=True, lengths=lengths, checkpoint_every=3)[0]

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(call, backend=counter, fullgraph=True, dynamic=True)
    graphs = []
    for steps in (7, 12):
        x = make_input(steps, N, I, torch.float64).requires_grad_()
        lengths = torch.tensor([steps, 0, 4, 7])
        got, expected = compiled(x, lengths), call(x, lengths)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
        a, b = (torch.autograd.grad(r.sin().sum(), [x, *weights[1]]) for r in (got, expected))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]
    torch._dynamo.reset()


@pytest.mark.parametrize("masks", [False, True])
def test_opcheck(masks):
    fast = FastLSTM(I, H, bidirectional=True, proj_size=P, dtype=torch.float64)
    x = make_input(T, N, I, torch.float64).requires_grad_()
    lengths = torch.tensor([T, 0, 4, 7]) if masks else None
    mask = torch.rand(T, N) < 0.3 if masks else None
    states, weights = make_states(fast, N, torch.float64), list(fast.parameters())
    settings, last = ("lstm", 2, 3, True, 0.0, 0.0, 0, False), (True, 4)
    op = torch.ops.fastlstm.checkpointed_forward.default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    given = (x, *states, weights, [], None, None, lengths, mask, *settings, *last)
    torch.library.opcheck(op, given, test_utils=tests)
    y, _, _, cells, *kept = op(*given)
    grads = torch.randn_like(y), None, None, torch.randn_like(cells)
    given = (*grads, x, *states, weights, [], None, None, lengths, mask, *settings, *kept, 4)
    given = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    given[7] = [w.detach() for w in weights]
    needs = [k % 2 == 0 for k in range(len(weights))]
    for need_dx in (False, True):
        torch.library.opcheck(
            torch.ops.fastlstm.checkpointed_backward.default,
            (*given, need_dx, True, needs, []),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_true_leaves_the_steps_to_us():
    fast, kept = FastLSTM(I, H, checkpoint_every=True), []
    for rows, steps in ((1, 256), (2, 128), (3, 64), (4, 64), (64, 64), (0, 256)):
        assert checkpointing.steps_of(True, rows) == steps
        assert checkpointing.steps_of(7, rows) == 7 and checkpointing.steps_of(None, rows) is None
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fast(torch.randn(600, 1, I))[0].sum().backward()
    assert {t.shape[0] for t in kept if t.dim() == 4} == {3}  # every 256 steps


def test_the_argument():
    assert FastLSTM(I, H).checkpoint_every is None
    assert FastLSTM(I, H, checkpoint_every=True).checkpoint_every is True
    assert FastLSTM(I, H, checkpoint_every=False).checkpoint_every is None
    fast = FastLSTM(I, H, checkpoint_every=9)
    assert "checkpoint_every=9" in repr(fast)
    for twin in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        FastLSTM.from_torch(fast),
        fastlstm.convert(torch.nn.LSTM(I, H), checkpoint_every=9),
    ):
        assert twin.checkpoint_every == 9
    assert type(fast.to_torch()) is torch.nn.LSTM
    assert FastLSTM.from_torch(fast, checkpoint_every=None).checkpoint_every is None
    for wrong in (0, -1, 2.0, "3"):
        with pytest.raises(ValueError, match=r"checkpoint_every: got .*, expected a positive int"):
            FastLSTM(I, H, checkpoint_every=wrong)
        with pytest.raises(ValueError, match="checkpoint_every: got"):
            functional.lstm(torch.zeros(1, 1, I), [list(fast.parameters())], checkpoint_every=wrong)
        with pytest.raises(ValueError, match="checkpoint_every: got"):
            fast.checkpoint_every = wrong

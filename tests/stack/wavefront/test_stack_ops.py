"""Layers as a wavefront: the numbers of layers one after the other, in any order that its lanes may
run in."""

import pytest
import torch
from deferred_lanes import RULES, Deferred, Owners, opened_as
from torch.autograd import gradcheck, gradgradcheck

from fastlstm import FastLSTM, functional
from fastlstm.ops import layer as layer_ops
from fastlstm.ops import recurrence
from fastlstm.precision import accumulation_dtype
from fastlstm.stack.wavefront import backward as stack_backward
from fastlstm.stack.wavefront import forward as stack
from fastlstm.stack.wavefront import lanes
from fastlstm.stack.wavefront import ops as stack_ops
from fastlstm.stack.wavefront import plan as wavefront
from fastlstm.stack.wavefront.calls import StackBackward, StackForward, apply_dropout
from fastlstm.testing import judge, make_input, make_states, relative_errors, run


@pytest.fixture(autouse=True)
def everywhere(monkeypatch):
    """Wavefronts wherever there can be one, in short chunks."""
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: 3)


# (dtype, T, N, H, P, L, masks, dropout): a last chunk that is shorter, one step, no steps or rows,
# and more layers than lanes.
PROBLEMS = {
    "plain": (torch.float64, 11, 3, 4, None, 3, False, 0.0),
    "masks": (torch.float64, 11, 4, 5, None, 3, True, 0.3),
    "projection": (torch.float32, 10, 3, 5, 2, 4, True, 0.5),
    "bfloat16": (torch.bfloat16, 9, 4, 5, None, 3, True, 0.3),
    "float16": (torch.float16, 7, 2, 4, 3, 2, False, 1.0),
    "many layers": (torch.float32, 12, 2, 3, None, stack.MOST_LANES + 2, True, 0.0),
    "one step": (torch.float32, 1, 2, 3, None, 2, True, 0.1),
    "no steps": (torch.float32, 0, 2, 3, None, 2, True, 0.1),
    "smallest": (torch.float32, 1, 1, 1, None, 2, True, 0.5),
    "no rows": (torch.float32, 8, 0, 3, None, 2, True, 0.1),
}
problems = pytest.mark.parametrize("name", PROBLEMS)


def draw(name, I=3):
    """Arguments of stack_forward, up to the switches, without the family."""
    dtype, T, N, H, P, L, masked, dropout = PROBLEMS[name]
    outputs = P or H

    def normal(*shape, scale=0.5):
        return (torch.randn(shape) * scale).to(dtype)

    def of_layers(*shape):
        return [normal(*shape) for _ in range(L)]

    weights_ih = [normal(4 * H, outputs if k else I) for k in range(L)]
    biases = [] if name == "masks" else of_layers(4 * H)
    lengths = torch.randint(0, T + 1, (N,)) if masked else None
    if masked and N > 1:
        lengths[:2] = torch.tensor([0, T])
    return [
        normal(T, N, I, scale=1), normal(L, N, outputs), normal(L, N, H), weights_ih,
        of_layers(4 * H, outputs), biases, of_layers(4 * H), of_layers(P, H) if P else [],
        lengths, torch.rand(T, N) < 0.2 if masked else None,
        [torch.rand(T, N, outputs) >= dropout for _ in range(L - 1)] if dropout else [], dropout,
    ]  # fmt: skip


NAMES = ("x", "h0", "c0", "weights_ih", "weights_hh", "biases_ih", "biases_hh", "weights_hr")


def with_gradients(call, arguments):
    """What `call` gives for the arguments, and gradients of it, by name."""
    leaves = {}
    arguments = list(arguments)
    for place, name in enumerate(NAMES):
        value = arguments[place]
        made = [t.detach().requires_grad_() for t in (value if type(value) is list else [value])]
        arguments[place] = made if type(value) is list else made[0]
        leaves |= {f"d_{name}_{k}": t for k, t in enumerate(made)}
    results = call(arguments)
    generator = torch.Generator().manual_seed(3)
    sums = [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    grads = torch.autograd.grad(results, list(leaves.values()), sums)
    found = dict(zip(("output", "h_n", "c_n", "cells"), results, strict=True))
    return {k: v.detach() for k, v in (found | dict(zip(leaves, grads, strict=True))).items()}


def in_one_op(arguments):
    return stack_ops.forward(("reference", *arguments, True, True), True)


def in_layers(arguments):
    """The same by an op for each layer."""
    x, h0, c0, *lists, lengths, reset_mask, masks, dropout = arguments
    states = []
    for k in range(len(lists[0])):
        weights = [of_kind[k] if of_kind else None for of_kind in lists]
        x = apply_dropout(x, masks[k - 1] if k and masks else None, dropout)
        args = (x, h0[k : k + 1], c0[k : k + 1], *weights, *[None] * 5, lengths, reset_mask)
        x, h, c, cells, _ = layer_ops.layer("reference", (*args, False, True, True), True)
        states.append((h, c))
    return x, *(torch.cat(s) for s in zip(*states, strict=True)), cells


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs"


@problems
def test_numbers_of_layers_one_after_the_other(name):
    arguments = draw(name)
    dtype = arguments[0].dtype
    got = with_gradients(in_one_op, arguments)
    layers = with_gradients(in_layers, arguments)
    assert [v.shape for v in got.values()] == [v.shape for v in layers.values()]
    # float64 has no wider oracle: there float32's error counts, in roundoffs.
    narrow = torch.float32 if dtype == torch.float64 else dtype

    def change(to):
        return [_to(a, to) for a in arguments]

    oracle = with_gradients(in_layers, change(torch.float64))
    units = torch.finfo(dtype).eps / torch.finfo(narrow).eps
    low = with_gradients(in_layers, change(narrow))
    errors = {k: units * e for k, e in relative_errors(low, oracle).items()}
    cells = {k: d.pop("cells") for k, d in (("got", got), ("layers", layers), ("wide", oracle))}
    errors.pop("cells")
    judge(got, oracle, errors, dtype)
    assert cells["got"].dtype == cells["layers"].dtype
    torch.testing.assert_close(cells["got"], cells["layers"], rtol=0, atol=_budget(cells, dtype))


def _to(value, dtype):
    if type(value) is list:
        return [_to(v, dtype) for v in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def _budget(cells, dtype):
    """Twice what the layers' own cells are off by, and a rounding."""
    if not cells["wide"].numel():
        return 0.0
    wide = cells["wide"]
    error = float((cells["layers"].double() - wide).abs().max())
    return 3 * error + torch.finfo(dtype).eps * float(wide.abs().max())


@problems
def test_any_legal_order_gives_the_same_bits(name, poisoned_empty):
    arguments = draw(name)
    expected = with_gradients(in_one_op, arguments)
    T, L = len(arguments[0]), len(arguments[3])
    for seed, rule in enumerate([*RULES, "any", "any"]):
        with opened_as(Deferred(rule, seed)) as factory:
            same_bits(expected, with_gradients(in_one_op, arguments))
        assert factory.opened == (2 if T > 3 else 0)
        assert factory.waits == factory.opened * -(-T // 3) * (L - 1)


def test_a_lost_wait_shows(poisoned_empty):
    """Whichever it is."""
    arguments = draw("plain")
    expected = with_gradients(in_one_op, arguments)
    with opened_as(Deferred("any")) as factory:
        same_bits(expected, with_gradients(in_one_op, arguments))
    for lost in range(factory.waits):
        with (
            opened_as(Deferred("last lane first", lost=lost)),
            pytest.raises(AssertionError, match="differs"),
        ):
            same_bits(expected, with_gradients(in_one_op, arguments))


@pytest.mark.parametrize("name", ["masks", "projection", "bfloat16"])
def test_lanes_use_their_own_memory_and_round_no_state(name):
    call = StackForward("reference", *draw(name), save_tape=True, save_cells=True)
    ops = [getattr(torch.ops.fastlstm, f"reference_{w}").default for w in ("forward", "backward")]
    wide, carried = accumulation_dtype(call.x.dtype), set()

    def noting(op, arguments, names):
        def run(*args):
            carried.update(getattr(arguments(*args), name).dtype for name in names)
            return op(*args)

        return run

    # c forwards; dh, dc and the c that enters backwards.
    ops = (
        noting(ops[0], recurrence.Forward, ["c0"]),
        noting(ops[1], recurrence.Backward, ["dh_n", "dc_n", "c0"]),
    )
    L = len(call.weights_ih)
    with opened_as(Deferred("any")) as factory, Owners(factory) as owners:
        made = stack.forward(ops[0], call, 3)
        given = {n: getattr(made, n, None) for n in StackBackward._fields}
        given |= {k: v for k, v in call._asdict().items() if k in given}
        grads = made.output + 1, made.h_n + 1, made.c_n + 1, made.cells + 1
        given |= dict(zip(("doutput", "dh_n", "dc_n", "dcells"), grads, strict=True))
        given |= {"lowest": 0, "need_dx": True, "need_dweights": [True] * L}
        results = stack_backward.backward(ops[1], StackBackward(**given), 3)
        for result in results:
            for tensor in result if type(result) is list else [result]:
                tensor.sum()
    assert factory.opened == 2
    assert carried == {wide}
    assert {0, L - 1} < set(owners.owners.values())


@pytest.mark.parametrize("without_grad", [False, True])
def test_tape_only_where_it_is_wanted(without_grad):
    arguments = draw("masks")
    _, _, _, cells, *tape = torch.ops.fastlstm.stack_forward("reference", *arguments, False, without_grad)
    assert tape == [[], [], []]
    assert cells.numel() == (11 * 4 * 5 if without_grad else 0)
    with pytest.raises(RuntimeError, match="stack_forward was called with save_tape=False"):
        arguments[0].requires_grad_()
        torch.ops.fastlstm.stack_forward("reference", *arguments, False, True)[0].sum().backward()


NEEDS = {
    "weights of the last layer": ["weight_hh_l2", "bias_ih_l2"],
    "a bias in the middle": ["bias_hh_l1"],
    "the input": ["x"],
    "states": ["h0"],
    "the first weights": ["weight_ih_l0"],
}


@pytest.mark.parametrize("needs", NEEDS)
def test_gradients_of_some(needs, monkeypatch):
    module = FastLSTM(3, 4, 3, backend="reference", dtype=torch.float64)
    inputs = {"x": torch.randn(8, 2, 3), "h0": torch.randn(3, 2, 4), "c0": torch.randn(3, 2, 4)}
    inputs = {k: v.double() for k, v in inputs.items()}
    leaves = dict(module.named_parameters()) | inputs
    for name, leaf in leaves.items():
        leaf.requires_grad_(name in NEEDS[needs])

    def gradients():
        output, (h_n, c_n) = module(inputs["x"], (inputs["h0"], inputs["c0"]))
        total = output.square().sum() + h_n[1].sum() + c_n.square().sum()
        return torch.autograd.grad(total, [leaves[name] for name in NEEDS[needs]])

    with opened_as(Deferred("any")) as factory:
        found = gradients()
    assert factory.opened == (1 if needs == "weights of the last layer" else 2)
    monkeypatch.setenv(wavefront.VARIABLE, "0")
    for a, b in zip(found, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_first_and_second_derivatives(monkeypatch):
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: 2)
    T, N, H, P, L = 4, 2, 2, 1, 2

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64).mul_(0.5).requires_grad_()

    inputs = [normal(T, N, 1), normal(L, N, P), normal(L, N, H)]
    inputs += [normal(4 * H, 1) for _ in range(2 * L)] + [normal(4 * H) for _ in range(L)]
    inputs += [normal(P, H) for _ in range(L)]
    masks = [torch.rand(T, N, P) < 0.7]
    lengths, resets = torch.tensor([4, 2]), torch.rand(T, N) < 0.3

    def call(x, h0, c0, *w):
        lists = [list(w[k : k + L]) for k in range(0, 4 * L, L)]
        lists.insert(2, [])
        return stack_ops.forward(("reference", x, h0, c0, *lists, lengths, resets, masks, 0.3, True, True), True)

    with opened_as(Deferred("any")) as factory:
        assert gradcheck(call, inputs, fast_mode=True)
        assert gradgradcheck(call, inputs, fast_mode=True)
    assert factory.opened


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_as_between_layers(packed, monkeypatch):
    module = FastLSTM(3, 4, 3, dropout=0.4, backend="reference")
    x = make_input(8, 4, 3, torch.float32, kind="packed" if packed else "batched")
    hx = make_states(module, 4, torch.float32)
    with opened_as(Deferred("any")) as factory:
        found = run(module, x, hx, seed=5)
    assert factory.opened == 2
    monkeypatch.setenv(wavefront.VARIABLE, "0")
    for name, value in run(module, x, hx, seed=5).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_a_batch_of_gradients():
    """torch.autograd.grad's is_grads_batched, which is vmap of the backward."""
    arguments = draw("plain")
    weight = arguments[4][1].requires_grad_()
    output = in_one_op(arguments)[0]
    many = torch.randn(3, *output.shape, dtype=output.dtype)
    (found,) = torch.autograd.grad(output, weight, many, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(many, found, strict=True):
        (expected,) = torch.autograd.grad(output, weight, one, retain_graph=True)
        torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-12)


def test_a_backward_inside_autocast_computes_as_outside():
    arguments = draw("plain")
    arguments = [_to(a, torch.float32) for a in arguments]
    weight = arguments[4][1].requires_grad_()

    def gradient(autocast):
        total = in_one_op(arguments)[0].square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return torch.autograd.grad(total, weight)[0]

    assert torch.equal(gradient(True), gradient(False))


def test_opcheck():
    *arguments, dropout = draw("smallest")
    forward = torch.ops.fastlstm.stack_forward.default
    for part in arguments[:8]:
        for tensor in part if type(part) is list else [part]:
            tensor.requires_grad_()
    torch.library.opcheck(forward, ("reference", *arguments, dropout, True, True))
    with torch.no_grad():
        output, h_n, c_n, cells, *tape = forward("reference", *arguments, dropout, True, True)
    grads = [t.clone().requires_grad_() for t in (output, h_n, c_n, cells)]
    given = (*arguments[:5], arguments[7], output, cells, *tape, *arguments[8:], dropout)
    backward = torch.ops.fastlstm.stack_backward.default
    # Its derivative is the reference's loop unrolled: as short as it can be.
    torch.library.opcheck(backward, ("reference", *grads, *given, 0, True, [True, False]))


def test_one_graph_for_any_number_of_steps():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    module = torch.nn.LSTM(3, 4, 3)

    def model(x, weights, lengths):
        return functional.lstm(x, weights, lengths=lengths, dropout=0.5, training=True, backend="reference")

    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    weights = [tuple(w) for w in module.all_weights]
    for T, N in ((5, 2), (9, 6), (17, 7)):
        x, lengths = torch.randn(T, N, 3), torch.randint(1, T + 1, (N,))
        torch.manual_seed(T)
        got = compiled(x, weights, lengths)
        torch.manual_seed(T)
        expected = model(x, weights, lengths)
        torch.testing.assert_close(got, expected)
        got[0].sum().backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_who_takes_the_op(monkeypatch):
    plain = [(torch.ones(1),) * 2 + (None,) * 3] * 2
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert stack_ops.takes("reference", cpu, plain)
    assert not stack_ops.takes("lstm", cpu, plain)
    assert not stack_ops.takes("reference", cpu, plain[:1])
    assert not stack_ops.takes("reference", cpu, [plain[0], (torch.ones(1),) * 3 + (None,) * 2])
    assert not torch.vmap(lambda _: torch.tensor(stack_ops.takes("reference", cpu, plain)))(torch.ones(1))
    with torch.autograd.forward_ad.dual_level():
        assert not stack_ops.takes("reference", cpu, plain)
    monkeypatch.setenv(wavefront.VARIABLE, "0")
    assert not stack_ops.takes("lstm", cuda, plain)
    monkeypatch.delenv(wavefront.VARIABLE)
    assert stack_ops.takes("lstm", cuda, plain)
    assert stack_ops.takes("triton", cuda, plain)
    assert not stack_ops.takes("reference", cuda, plain)
    assert not stack_ops.takes("reference", cpu, plain)
    assert lanes.open_lanes(cpu, 3).__class__ is lanes.OneLane

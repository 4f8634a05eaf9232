"""A training step by the ops of a whole stack: the bits of the general way, layer by layer, which
other tests hold to nn.LSTM; and what autograd promises of any function.
"""

import random
import threading

import pytest
import torch
from masked import MASKS, Masked, masks_of, on_reference
from op_cases import threads
from pairs import ignore_onednn, needs_library, one_thread  # noqa: F401  (a fixture)
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import FastLSTM
from fastlstm.nn import inputs
from fastlstm.stack import alone, whole
from fastlstm.stack import run as stack_run
from fastlstm.testing import compare

pytestmark = [needs_library, ignore_onednn]

# T, N (None: unbatched), I, H, and what else: gates at once and in chunks, sums of one chunk
# and of several, below, at and beside a vector's width.
CASES = [
    (1, 1, 3, 5, {"num_layers": 3, "bidirectional": True}),
    (4, None, 17, 33, {"bias": False}),
    (3, 8, 40, 31, {"proj_size": 7, "bidirectional": True, "num_layers": 2}),
    (6, 2, 64, 64, {"batch_first": True}),
    (5, 1, 1, 1, {"bidirectional": True}),
    (6, 9, 18, 47, {"num_layers": 3, "batch_first": True, "bias": False}),
    (9, None, 16, 65, {"proj_size": 13, "num_layers": 2, "batch_first": True}),
    (13, 3, 33, 20, {"bidirectional": True, "batch_first": True, "proj_size": 4, "bias": False}),
    (70, 30, 5, 70, {"bidirectional": True, "num_layers": 2}),
    (0, 3, 4, 6, {"num_layers": 2}),
    (5, 0, 4, 6, {"bidirectional": True}),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Short:
    """How often the ops have served, and whether they may."""

    def __init__(self, monkeypatch):
        self.served, self.wanted = 0, True
        run, pair_for = whole.run, alone.pair_for

        def counted(pair, needs, *args):
            result = run(pair, needs, *args)
            self.served += bool(needs) and result is not None
            return result

        monkeypatch.setattr(whole, "run", counted)
        for module in (inputs, stack_run):
            monkeypatch.setattr(module, "pair_for", lambda *args: pair_for(*args) if self.wanted else None)

    def both(self, call) -> list:
        """What `call` gives by the ops, which must have served, and by the general way."""
        results = []
        for self.wanted in (True, False):
            before = self.served
            results.append(call())
            assert (self.served > before) is self.wanted
        self.wanted = True
        return results


@pytest.fixture
def short(monkeypatch):
    return Short(monkeypatch)


def problem(T, N, I, H, options, dtype=torch.float32):
    """A module, x and (h0, c0)."""
    module = FastLSTM(I, H, dtype=dtype, **options)
    rows = () if N is None else (N,)
    lead = (N, T) if module.batch_first and N is not None else (T, *rows)
    states = module.num_layers * (1 + module.bidirectional), *rows
    hx = torch.randn(*states, module.proj_size or H), torch.randn(*states, H)
    return module, torch.randn(*lead, I).to(dtype), tuple(s.to(dtype) for s in hx)


def step(module, x, hx=None, results=(0, 1, 2), leaves=(), masks=None):
    """Results and gradients, of a random sum of some of the results: of x, hx and parameters."""
    for p in module.parameters():
        p.grad = None
    x, *hx = (t.detach().requires_grad_(k in leaves) for k, t in enumerate((x, *(() if hx is None else hx))))
    torch.manual_seed(2)
    output, states, *cells = module(x, tuple(hx) or None, **(masks or {}))
    torch.manual_seed(1)
    given = [(output, *states, *cells)[k] for k in results]
    torch.autograd.backward(given, [torch.randn_like(g) for g in given])
    return (
        *(s.detach() for s in (output, *states, *cells)),
        *(t.grad for t in (x, *hx, *module.parameters())),
    )


def same(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine is None or not mine.numel() or mine.stride() == theirs.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_are_those_of_the_general_way(case, dtype, short):
    module, x, hx = problem(*case, dtype)

    same(*short.both(lambda: step(module, x)))
    same(*short.both(lambda: step(module, x, hx, leaves=(0, 1, 2))))
    draw = random.Random(str(case))
    for results, leaves in (((0,), (0,)), ((1,), (1,)), ((2,), (2,)), ((1, 2), ())):
        for p in module.parameters():
            p.requires_grad_(draw.random() < 0.4)
        module.weight_ih_l0.requires_grad_(not leaves or module.weight_ih_l0.requires_grad)
        call = (module, x, hx, results, leaves)
        same(*short.both(lambda call=call: step(*call)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masks_cells_and_dropout_have_the_bits_of_the_general_way(case, dtype, short):
    module, x, hx = problem(*case, dtype)
    module.dropout = 0.5
    for names in MASKS:
        masks = masks_of(names, module, x)
        results = (0, 1, 2, 3) if "return_cell_sequence" in names else (0, 1, 2)
        same(*short.both(lambda m=masks, r=results: step(module, x, hx, r, (0, 1, 2), m)))
    same(*short.both(lambda: step(module, x, hx, (3,), (0,), masks)))
    module.variational_dropout = True
    same(*short.both(lambda: step(module, x, hx, results, (1,), masks)))


@pytest.mark.parametrize("names", MASKS, ids=str)
@pytest.mark.parametrize("case", [CASES[2], CASES[6], CASES[9]], ids=str)
def test_masks_cells_and_dropout_are_within_the_budget(case, names, short):
    module, x, hx = problem(*case)
    module.dropout = 0.5
    masks = masks_of(names, module, x)
    compare(*(Masked(m, masks) for m in (module, on_reference(module))), x, hx)
    assert short.served == 1


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "proj_size": 1}], ids=str)
def test_masks_and_dropout_can_be_differentiated_again(options, short):
    options = {"num_layers": 2, "batch_first": True, "dropout": 0.5, **options}
    module, x, hx = problem(3, 2, 1, 2, options, torch.float64)
    masks = masks_of(MASKS[-1], module, x)

    def call(x, *hx):
        torch.manual_seed(0)  # for the same dropout each time
        output, states, cells = module(x, hx, **masks)
        return output, *states, cells

    leaves = [t.requires_grad_() for t in (x, *hx)]
    assert torch.autograd.gradcheck(call, leaves) and torch.autograd.gradgradcheck(call, leaves)
    assert short.served > 0


@pytest.mark.parametrize("case", CASES[2:9:3], ids=str)
def test_layout_of_arguments_does_not_matter(case, short):
    module, x, hx = problem(*case)
    apart = [torch.stack([t, t + 1], -1)[..., 0] for t in (x, *hx)]
    expected = step(module, x, hx, leaves=(0, 1, 2))
    got = step(module, apart[0], apart[1:], leaves=(0, 1, 2))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for name, weight in list(module._parameters.items()):
        spread = torch.randn(*weight.shape, 2)
        spread[..., 0] = weight.detach()
        module._parameters[name] = torch.nn.Parameter(spread[..., 0])
    # torch's own products may go another way for other strides.
    torch.testing.assert_close(step(module, x, hx, leaves=(0, 1, 2)), expected)
    assert short.served == 3
    output, _ = module(x, hx)
    dy, parameters = torch.randn_like(output), list(module.parameters())
    strange = (dy.flip(-1).flip(-1), torch.stack([dy, dy], -1)[..., 0], dy.sum().expand_as(dy))
    for given in strange:
        whole = given.clone(memory_format=torch.contiguous_format)
        of = [torch.autograd.grad(output, parameters, g, retain_graph=True) for g in (given, whole)]
        same(*of)


@pytest.mark.parametrize("case", [CASES[2], CASES[6], CASES[3]], ids=str)
def test_a_gradient_of_gradients(case, short):
    module, x, hx = problem(*case, torch.float64)

    def penalty():
        for p in module.parameters():
            p.grad = None
        leaves = [t.clone().requires_grad_() for t in (x, *hx)]
        output, states = module(leaves[0], tuple(leaves[1:]))
        inputs = [*leaves, *module.parameters()]
        first = torch.autograd.grad(output.sin().sum() + states[1].sum(), inputs, create_graph=True)
        (sum(g.square().sum() for g in first) + states[0].square().sum()).backward()
        return [*first, *(t.grad for t in inputs)]

    same(*([t.detach() for t in r] for r in short.both(penalty)))


def test_jacobians_by_vmap_of_a_backward(short):
    module, x, _ = problem(3, 2, 2, 3, {"num_layers": 2, "batch_first": True}, torch.float64)

    def jacobian():
        leaf = x.clone().requires_grad_()
        output, _ = module(leaf)
        basis = torch.eye(output.numel(), dtype=x.dtype).view(-1, *output.shape)
        return torch.autograd.grad(output, [leaf, module.weight_hh_l0], basis, is_grads_batched=True)

    torch.testing.assert_close(*short.both(jacobian), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", ["sequence", "states", "step"])
def test_tensors_that_outlive_their_transform(way):
    """What leaks from a function under torch.func.grad keeps a wrapper, and autograd below it."""
    m = FastLSTM(3, 4, 2)
    x, h, c = torch.randn(2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    leaves = [t.requires_grad_() for t in (x, h, c)]

    def call(x, h, c):
        if way == "step":
            return m.step(x, (h, c))[0]
        return m(x)[0] if way == "sequence" else m(x.expand(5, 2, 3), (h, c))[0]

    def gradients(made):
        made = [2 * t for t in leaves] if made is None else made
        dy = torch.ones_like(call(*made))
        return torch.autograd.grad(call(*made), [*leaves, *m.parameters()], dy, allow_unused=True)

    leaked = []

    def leak(unused):
        leaked.extend(2 * t + 0 * unused for t in leaves)
        return leaked[0].sum()

    torch.func.grad(leak)(torch.zeros(()))
    assert all(torch._C._functorch.is_gradtrackingtensor(t) for t in leaked)
    for got, expected in zip(gradients(leaked), gradients(None), strict=True):
        assert got is expected or torch.equal(got, expected)  # None where a call has no states


def test_only_what_is_asked_of_a_backward_is_given(short):
    """Some of the inputs that the forward kept a tape for."""
    module, x, hx = problem(4, 3, 5, 6, {"num_layers": 3})

    def parts():
        leaves = [t.clone().requires_grad_() for t in (x, *hx)]
        output, _ = module(leaves[0], tuple(leaves[1:]))
        asked = ([module.weight_hh_l2], [module.bias_hh_l1, leaves[1]], [leaves[0]])
        return [g for a in asked for g in torch.autograd.grad(output, a, output, retain_graph=True)]

    same(*([t.detach() for t in r] for r in short.both(parts)))


def test_a_tape_is_kept_from_the_first_layer_with_a_gradient(short):
    module, x, _ = problem(7, 2, 3, 8, {"num_layers": 3})
    for name, p in module.named_parameters():
        p.requires_grad_("l2" in name)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        results = short.both(lambda: step(module, x))
        count = len(kept) // 2
    same(*results)
    assert sum(t.shape[-1] == 32 for t in kept[:count]) == 1  # gates
    addresses = {t.data_ptr() for t in kept[:count]}
    assert not any(p.data_ptr() in addresses for p in (x, module.weight_ih_l0))


def graph_errors(module, x):
    """What autograd says where a graph cannot be gone through again or was changed."""
    errors = []
    for change in (
        lambda output, *_: output.sum().backward(),
        lambda _, x: x.zero_(),
        lambda *_: module.weight_hh_l0.detach().zero_(),
    ):
        given = x.clone()
        output, _ = module(given)
        change(output, given)
        with pytest.raises(RuntimeError) as error:
            output.sum().backward()
        errors.append(" ".join(str(error.value).split()[:4]))
    return errors


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"num_layers": 2}], ids=str)
def test_graphs_are_torchs(options, short):
    module, x, _ = problem(5, 2, 3, 4, options)
    mine, general = short.both(lambda: graph_errors(module, x))
    assert mine == general
    assert mine[0].startswith("Trying to backward through") and len(set(mine[1:])) == 1

    def twice():
        output, _ = module(x)
        first = torch.autograd.grad(output.sum(), module.weight_hh_l0, retain_graph=True)
        module.bias_ih_l0.detach().add_(1)  # which no gradient is made of
        return *first, *torch.autograd.grad(output.sum(), module.weight_hh_l0)

    module.bias_ih_l0.detach().zero_()
    first, second = twice()
    same([first], [second])


def test_results_and_gradients_share_no_memory(short):
    module, x, hx = problem(3, 2, 4, 4, {"bidirectional": True})
    found = [t for t in step(module, x, hx, leaves=(0, 1, 2)) if t is not None]
    assert len({t.untyped_storage().data_ptr() for t in found}) == len(found) == 3 + 3 + 8


@pytest.mark.parametrize("case", [(3, 2, 40, 90, {}), (60, 2, 30, 100, {"num_layers": 2})], ids=str)
def test_the_number_of_threads_does_not_change_a_bit(case, short):
    module, x, hx = problem(*case)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(step(module, x, hx, leaves=(0, 1, 2)))
    for result in results[1:]:
        same(result, results[0])
    assert short.served == 3


def test_threads_of_python_share_a_module(short):
    module, x, _ = problem(6, 2, 5, 7, {"num_layers": 2})
    parameters, results = list(module.parameters()), []

    def work():
        for _ in range(5):
            results.append(torch.autograd.grad(module(x)[0].sum(), parameters))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 15
    for result in results[1:]:
        same(result, results[0])


class Weight(torch.nn.Parameter):
    """A tensor subclass."""


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_is_more_than_a_plain_step_goes_the_general_way(short):
    module, x, hx = problem(3, 2, 4, 5, {"num_layers": 2})
    module.checkpoint_every = 2
    module(x)
    module.checkpoint_every = None
    with Mode():
        module(x)
    torch.func.grad(lambda x: module(x)[0].sum())(x)
    with torch.autograd.forward_ad.dual_level():
        module(x)
    with torch.no_grad():
        module(x)
    weight = module.weight_hh_l1
    module.weight_hh_l1 = Weight(weight.detach())
    module(x)
    assert short.served == 0
    module.weight_hh_l1 = weight
    module(x, hx)
    assert short.served == 1


@torch.no_grad()
@pytest.mark.parametrize("gradients", [False, True])
def test_states_of_none_are_refused(gradients):
    module, x, _ = problem(3, 2, 4, 5, {})
    with torch.set_grad_enabled(gradients), pytest.raises(ValueError, match="hx: got"):
        module(x, (None, None))


@pytest.mark.parametrize("case", [CASES[2], CASES[5], CASES[6]], ids=str)
def test_its_shapes_are_known_without_running_it(case):
    module, x, (h0, c0) = problem(*case)
    weights, D = [w.detach() for w in module.parameters()], 1 + module.bidirectional
    each = len(weights) // (module.num_layers * D)
    for lowest in (0, 1):
        needs = [lowest == 0] * 3 + [j >= lowest * each * D for j in range(len(weights))]
        sizes = module.num_layers, module.bidirectional, module.batch_first, False
        forward, backward = (
            getattr(torch.ops.fastlstm, f"lstm_stack_{which}").default for which in ("forward", "backward")
        )
        tests = {"test_utils": ("test_schema", "test_faketensor")}
        masks = masks_of(MASKS[-1], module, x)
        T, N = case[0], case[1] or 1
        noise = torch.rand(module.num_layers - 1, T, N, D * weights[1].shape[1]).unbind()
        masks = masks["lengths"], masks["reset_mask"], list(noise) or None
        given = x, h0, c0, weights, *masks, *sizes, True, True, needs
        torch.library.opcheck(forward, given, **tests)
        _, h_n, _, cells, *tape, output = forward(*given)
        first = weights[lowest * each * D :]
        matrices = [*first[::each], *first[1::each], *(first[each - 1 :: each] if each % 2 else ())]
        given = output, h_n, None, cells, None if lowest else x, h0, c0
        torch.library.opcheck(backward, (*given, matrices, output, tape, *masks, *sizes, needs), **tests)

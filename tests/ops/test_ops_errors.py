"""Arguments that do not fit: a RuntimeError that names the argument, never a crash."""

import re

import pytest
import torch
from op_cases import Case, backward_arguments, draw, forward, op, tape_of
from pairs import needs_library

pytestmark = needs_library

T, N, H, P, I = 3, 4, 6, 5, 2
OPS = [(entry, which) for entry in ("recurrence", "layer") for which in ("forward", "backward")]


def case_of(entry, **options):
    given = {"T": T, "N": N, "H": H, "P": P, "I": I, "D": 2, "dtype": torch.float32}
    return Case(entry, **{**given, "masks": "random", **options})


def arguments_of(entry, which, **options):
    """The op, its arguments' names, and good arguments for it."""
    case = case_of(entry, **options)
    arguments, gradients = draw(case)
    if which == "forward":
        given = [*arguments, *([False] if entry == "layer" else []), True, True]
    else:
        tape = tape_of(forward(case, "reference", arguments))
        given = backward_arguments(case, arguments, gradients, tape)
    called = op(entry, "lstm", which)
    return called, [a.name for a in called._schema.arguments], given


def longer(t, dim):
    return torch.cat([t, t.narrow(dim, 0, 1)], dim)


def wrongs(t):
    """What could be given in place of a tensor: (words, other tensor)."""
    yield "a number", torch.tensor(1.0).to(t.dtype)
    yield "a dimension more", t.unsqueeze(0)
    yield "a dimension less", t[0]
    yield "empty", t.new_empty(0)
    for dim in range(t.dim()):
        yield f"longer in {dim}", longer(t, dim)
        yield f"nothing in {dim}", t.narrow(dim, 0, 0)
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.bool):
        if t.dtype != dtype:
            yield f"{dtype}", t.to(dtype)
    yield "complex", t.to(torch.complex64)


# Sizes are read off these, so that it may be another argument that does not fit them.
SIZING = {"x", "gates_x", "gates", "h0", "c0", "weight_ih", "weight_hr"}


def refuses(called, given, name):
    with pytest.raises(RuntimeError) as error:
        called(*given)
    text = str(error.value)
    # Some kinds of tensors are refused before an op of ours is reached.
    if name not in SIZING and "fastlstm: " in text:
        assert re.search(rf"fastlstm: {name}\b", text), f"{name} is not named: {text}"


@pytest.mark.parametrize(("entry", "which"), OPS)
def test_each_argument_is_checked(entry, which):
    called, names, given = arguments_of(entry, which)
    called(*given)
    for k, name in enumerate(names):
        if not isinstance(given[k], torch.Tensor):
            continue
        for words, other in wrongs(given[k]):
            try:
                refuses(called, [*given[:k], other, *given[k + 1 :]], name)
            except (AssertionError, pytest.fail.Exception) as error:
                raise AssertionError(f"{name}, {words}: {error}") from error


@pytest.mark.parametrize(("entry", "which"), OPS)
def test_another_device_is_refused(entry, which):
    called, names, given = arguments_of(entry, which)
    for k, name in enumerate(names):
        if isinstance(given[k], torch.Tensor):
            other = given[k].to("meta")
            with pytest.raises((RuntimeError, ValueError), match=r"device|CPU|meta"):
                called(*given[:k], other, *given[k + 1 :])
                pytest.fail(f"{name} on another device was taken")


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("P", [H, None])
def test_directions_have_the_same_weights(which, P):
    """A weight of one direction without its counterpart, a weight of a direction that is not."""
    called, names, given = arguments_of("layer", which, P=P)
    for k, name in enumerate(names):
        if name in ("weight_ih_reverse", "weight_hh_reverse", "weight_hr_reverse", "weight_hr"):
            other = None if given[k] is not None else torch.randn(H, H)
            with pytest.raises(RuntimeError, match=name):
                called(*given[:k], other, *given[k + 1 :])
                pytest.fail(f"{name} alone was taken")
    called, names, given = arguments_of("layer", which, P=P, D=1)
    for k, name in enumerate(names):
        if name.endswith("_reverse") and name != "weight_ih_reverse":
            shape = (4 * H,) if "bias" in name else (P or H, H) if "hr" in name else (4 * H, P or H)
            with pytest.raises(RuntimeError, match=name):
                called(*given[:k], torch.randn(shape), *given[k + 1 :])
                pytest.fail(f"{name} was taken without the others")


@pytest.mark.parametrize(("entry", "which"), OPS)
@pytest.mark.parametrize("D", [0, 3])
def test_directions_are_one_or_two(entry, which, D):
    called, names, given = arguments_of(entry, which, D=2)
    k = names.index("gates" if which == "backward" else "gates_x" if entry == "recurrence" else "x")
    if entry == "layer":
        k = names.index("h0")
        states = given[k].new_zeros(D, N, P), given[k].new_zeros(D, N, H)
        given[k : k + 2] = states
    else:
        given[k] = given[k].new_zeros(T, N, D, 4 * H)
    with pytest.raises(RuntimeError, match="fastlstm: "):
        called(*given)


def test_a_gradient_of_the_gates_is_the_references():
    called, names, given = arguments_of("recurrence", "backward")
    given[names.index("dgates_out")] = torch.zeros(T, N, 2, 4 * H)
    with pytest.raises(RuntimeError, match="reference_backward"):
        called(*given)


ZEROS = ["T", "N", "I", "P", "H", "TN", "NI", "TNI", "HP", "TH", "TNIPH"]


@pytest.mark.parametrize("sizes", ZEROS)
@pytest.mark.parametrize(("entry", "which"), OPS)
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("projected", [True, False])
def test_sizes_of_nothing(entry, which, sizes, D, projected):
    """Nothing of something is what the reference makes of it, or refused."""
    sizes = dict.fromkeys(sizes, 0)
    if not projected:
        sizes["P"] = None
    called, _, given = arguments_of(entry, which, D=D, **sizes)
    expected = op(entry, "reference", which)(*given)
    try:
        got = called(*given)
    except RuntimeError as error:
        assert "fastlstm: " in str(error)
        return
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)

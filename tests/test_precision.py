"""torch's settings for float32 products, and what the CPU's recurrence makes of them: on AMX, where
tests/cpu/test_kernels_isa.py runs this file too, fewer parts of a number; elsewhere nothing."""

import pytest
import torch
from op_cases import Case, backward, check, draw, forward, tape_of
from pairs import needs_library

from fastlstm import precision
from fastlstm.backends import native

TILES = native.load() is None and native.cpu_isa().startswith("amx")
# Enough rows for tiles.
CASE = Case("recurrence", T=3, N=20, H=40, P=33, D=2, dtype=torch.float32, masks="random")
LAYER = Case("layer", T=6, N=40, I=70, H=40, dtype=torch.float32)


@pytest.fixture(autouse=True)
def settings():
    """torch's settings as they were, afterwards."""
    cpu, gpu = torch.backends.mkldnn, torch.backends.cuda.matmul
    places = [(cpu.rnn, "mkldnn.rnn"), (cpu.matmul, "mkldnn.matmul"), (gpu, "cuda.matmul")]
    before = [place.fp32_precision for place, _ in places]
    yield
    torch.set_float32_matmul_precision("highest")
    for (place, _), value in zip(places, before, strict=True):
        place.fp32_precision = value


@pytest.mark.parametrize("name, parts", [("highest", 3), ("high", 2), ("medium", 1)])
def test_the_matmul_setting(name, parts):
    assert precision.cpu_parts() == 3
    torch.set_float32_matmul_precision(name)
    assert precision.cpu_parts() == torch.ops.fastlstm.cpu_parts() == parts


def test_the_setting_for_recurrent_layers_comes_first():
    for setting, parts in [("bf16", 1), ("tf32", 2), ("ieee", 3)]:
        torch.backends.mkldnn.rnn.fp32_precision = setting
        for other in ("ieee", "tf32", "bf16"):
            torch.backends.mkldnn.matmul.fp32_precision = other
            assert precision.cpu_parts() == parts
    torch.backends.mkldnn.rnn.fp32_precision = "none"
    assert precision.cpu_parts() == 1


def results(case, problem):
    arguments, gradients, tape = problem
    return forward(case, "lstm", arguments) | backward(case, "lstm", arguments, gradients, tape)


def problem_of(case):
    arguments, gradients = draw(case)
    return arguments, gradients, tape_of(forward(case, "reference", arguments))


def changed(case, problem, default):
    """The results that differ from the default's in a bit."""
    return {k for k, v in results(case, problem).items() if not torch.equal(v, default[k])}


@needs_library
def test_the_recurrence_follows_on_amx_alone():
    problem = problem_of(CASE)
    default = results(CASE, problem)
    made = {name for name, value in default.items() if value.numel()}
    for name in ("high", "medium"):
        torch.set_float32_matmul_precision(name)
        assert changed(CASE, problem, default) == (made if TILES else set()), name
    torch.set_float32_matmul_precision("highest")
    assert not changed(CASE, problem, default)


@needs_library
@pytest.mark.parametrize("name, kind", [("high", "tf32"), ("medium", torch.bfloat16)])
def test_within_the_budget_of_rounded_factors(name, kind):
    """What torch says of "high": tf32, or the sum of two bfloat16; of "medium": bfloat16."""
    torch.set_float32_matmul_precision(name)
    check(CASE, factors=kind)


@needs_library
@pytest.mark.skipif(not TILES, reason="only on AMX are a layer's products made of parts")
def test_a_layer_follows():
    """Errors grow from setting to setting, by the digits that are left out."""
    problem = problem_of(LAYER)
    wide = [[t if t is None else t.double() for t in part] for part in problem]
    exact = results(LAYER, wide)
    errors = {}
    for name in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(name)
        got = results(LAYER, problem)
        errors[name] = {
            key: ((got[key].double() - exact[key]).square().mean() / exact[key].square().mean()).sqrt()
            for key in ("output", "gates", "dx", "dweight_ih", "dweight_hh")
        }
    for key in errors["highest"]:
        assert errors["highest"][key] < 2.0**-21
        assert 4 * errors["highest"][key] < errors["high"][key] < 2.0**-16
        assert 2.0**-12 < errors["medium"][key] < 2.0**-7


@needs_library
@pytest.mark.skipif(not TILES, reason="only on AMX do the settings matter")
def test_a_compiled_model_follows():
    arguments, _ = draw(LAYER)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(*arguments):
        return torch.ops.fastlstm.lstm_layer_forward(*arguments, False, True, True)

    first = compiled(*arguments)
    torch.set_float32_matmul_precision("medium")
    expected = forward(LAYER, "lstm", arguments)
    assert not torch.equal(first[0], expected["output"])
    assert torch.equal(compiled(*arguments)[0], expected["output"])

"""What the host launches: how many kernels, with which arguments, on tensors without memory."""

import pytest
import torch

from fastlstm.backends import triton as triton_kernels

if triton_kernels.available() is not None:
    pytest.skip(str(triton_kernels.available()), allow_module_level=True)

from triton_compile import MODULES, Layer, record

from fastlstm.backends.triton import launch
from fastlstm.backends.triton.configs import Config

KERNELS = {name: kernel for module in MODULES for name, kernel in vars(module).items() if name.startswith("lstm_")}
RESIDENT = Config("resident", 16, 64, 64, 4, 1)
SEQUENCE = Config("sequence", 16, 32, 64, 8, 3)
STEP = Config("step", 16, 32, 64, 4, 4)


def names(launches):
    return [launched.kernel.__name__.removeprefix("lstm_") for launched in launches]


def argument(launched, name):
    return launched.arguments[[p.name for p in launched.kernel.params].index(name)]


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("config", [RESIDENT, SEQUENCE], ids=["resident", "sequence"])
def test_one_launch_for_a_sequence(config, which, monkeypatch):
    layer = Layer(T=70_000, N=33, H=40, P=20, D=2, masks=True)
    launches = record(monkeypatch, lambda: layer.run(which, config=config))
    assert names(launches) == [f"{which}_kernel_{config.way}"]
    assert launches[0].grid == (3, 1, 2)
    assert launches[0].options == {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }


@pytest.mark.parametrize("projected", [False, True])
def test_launches_of_single_steps(projected, monkeypatch):
    layer = Layer(T=3, N=17, H=40, P=70 if projected else None, D=2)
    forward = record(monkeypatch, lambda: layer.run("forward", config=STEP))
    backward = record(monkeypatch, lambda: layer.run("backward", config=STEP))
    if projected:
        assert names(forward) == ["forward_kernel_step", "forward_kernel_step_projection"] * 3
        assert names(backward) == [
            *["backward_kernel_step_arrival", "backward_kernel_step"] * 3,
            "backward_kernel_start",
        ]
        assert [launched.grid for launched in forward[:2]] == [(2, 2, 2), (2, 3, 2)]
    else:
        assert names(forward) == ["forward_kernel_step"] * 3
        assert names(backward) == [*["backward_kernel_step"] * 3, "backward_kernel_start"]
        assert {launched.grid for launched in forward + backward} == {(2, 2, 2)}


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_steps_go_to_the_compiled_kernel_and_differ_in_s_alone(which, monkeypatch):
    """Nothing is bound, looked up, or allocated for a step but its number."""
    layer = Layer(T=5, H=40, P=20, masks=True, dtype=torch.bfloat16)
    launches = record(monkeypatch, lambda: layer.run(which, config=STEP))
    for name in {launched.kernel.__name__ for launched in launches} - {"lstm_backward_kernel_start"}:
        same = [launched for launched in launches if launched.kernel.__name__ == name]
        assert [launched.compiled for launched in same] == [False, True, True, True, True]
        assert [argument(launched, "s") for launched in same] == [0, 1, 2, 3, 4]
        for launched in same[1:]:
            assert launched.options == {}
            assert launched.grid == same[0].grid
            parameters = [parameter.name for parameter in launched.kernel.params]
            pairs = zip(parameters, same[0].arguments, launched.arguments, strict=True)
            assert [name for name, first, later in pairs if first is not later] == ["s"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_new_T_or_N_compiles_nothing(name):
    for parameter in KERNELS[name].params:
        if parameter.name in ("s", "T", "N"):
            assert parameter.do_not_specialize


@pytest.mark.parametrize("which", ["forward", "backward"])
@pytest.mark.parametrize("sizes", [{"T": 0}, {"N": 0}], ids=str)
def test_nothing_to_do_launches_nothing(sizes, which, monkeypatch):
    layer = Layer(H=5, P=3, D=2, **sizes)
    assert record(monkeypatch, lambda: layer.run(which)) == []


def test_rows_of_16_bytes(monkeypatch):
    """What a product reads begins each row at a multiple of 16 bytes; what fits is not copied."""
    (odd,) = record(
        monkeypatch,
        lambda: Layer(H=129, P=33, dtype=torch.bfloat16).run("forward", config=SEQUENCE),
    )
    shapes = {name: tuple(argument(odd, name).shape) for name in ("weight_hh", "weight_hr", "even", "odd", "hidden")}
    assert shapes == {
        "weight_hh": (1, 516, 40),
        "weight_hr": (1, 33, 136),
        "even": (1, 16, 40),
        "odd": (1, 16, 40),
        "hidden": (1, 16, 136),
    }
    assert (argument(odd, "H_ROW"), argument(odd, "P_ROW")) == (136, 40)


def test_odd_addresses_and_strides_reach_no_kernel(monkeypatch):
    """Each of them would be compiled for anew, with narrow loads."""

    def shifted(x):
        return torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)

    arguments = Layer(H=16, P=8, masks=True, device="cpu").arguments()
    for change in (shifted, lambda x: x.expand(2, *x.shape)[1] if x.dim() < 3 else x.mT.clone().mT):
        given = [change(x) for x in arguments]
        (launched,) = record(
            monkeypatch,
            lambda given=given: launch.forward(*given, True, True, False, config=RESIDENT),
        )
        for value in launched.arguments:
            if isinstance(value, torch.Tensor):
                assert value.is_contiguous() and value.data_ptr() % 16 == 0


def test_arithmetic_decides_the_precision(monkeypatch):
    for dtype, tf32, expected in (
        (torch.float32, True, "tf32"),
        (torch.float32, False, "ieee"),
        (torch.bfloat16, True, "ieee"),
        (torch.float64, True, "float64"),
    ):
        for which in ("forward", "backward"):
            for launched in record(monkeypatch, lambda: Layer(dtype=dtype).run(which, tf32)):  # noqa: B023
                assert argument(launched, "PRECISION") == expected


def test_the_variable_forces_a_way(monkeypatch):
    for way in ("sequence", "step"):
        monkeypatch.setenv("FASTLSTM_TRITON_WAY", way)
        launches = record(monkeypatch, lambda: Layer(H=64).run("forward"))
        assert names(launches) == [f"forward_kernel_{way}"]


def test_resident_refuses_more_units_than_its_tile(monkeypatch):
    with pytest.raises(ValueError, match="holds up to 64 units and outputs, got H = 65, P = 65"):
        Layer(H=65).run("forward", config=RESIDENT)


def test_what_is_not_wanted_is_not_there(monkeypatch):
    (launched,) = record(monkeypatch, lambda: Layer(T=2).run("forward", config=RESIDENT, save_tape=False))
    assert argument(launched, "gates") is None
    assert argument(launched, "cells") is not None
    assert argument(launched, "lengths") is None

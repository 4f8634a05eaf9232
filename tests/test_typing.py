"""The public face is annotated, wholly, and mypy --strict takes a program that uses all of it."""

import importlib.util
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm
from fastlstm import testing

ROOT = Path(__file__).parents[1]
FACE = ROOT / "tests" / "typing" / "public_face.py"

FUNCTIONS = [
    fastlstm.FastLSTM.__init__,
    fastlstm.FastLSTM.forward,
    fastlstm.FastLSTM.step,
    fastlstm.FastLSTM.from_torch,
    fastlstm.FastLSTM.to_torch,
    fastlstm.FastLSTM.reset_parameters,
    fastlstm.FastLSTM.flatten_parameters,
    fastlstm.FastLSTMCell.__init__,
    fastlstm.FastLSTMCell.forward,
    fastlstm.FastLSTMCell.from_torch,
    fastlstm.FastLSTMCell.to_torch,
    fastlstm.convert,
    fastlstm.decompositions,
    fastlstm.from_keras,
    fastlstm.functional.lstm,
    fastlstm.init.forget_bias_,
    fastlstm.init.orthogonal_,
    fastlstm.int8.dequantise,
    fastlstm.int8.quantise,
    fastlstm.onnx.translation_table,
    testing.compare,
    testing.make_input,
    testing.make_states,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_annotations_are_complete(function):
    signature = inspect.signature(function)
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.annotation is parameter.empty and name not in ("self", "cls")
    ]
    assert missing == []
    assert signature.return_annotation is not signature.empty


def test_py_typed_is_in_the_package():
    assert (Path(fastlstm.__file__).parent / "py.typed").exists()


def test_the_program_runs():
    runpy.run_path(str(FACE), run_name="__main__")


def test_the_program_uses_every_public_name():
    text = FACE.read_text()
    assert [name for name in fastlstm.__all__ if name not in text] == []


@pytest.mark.slow
def test_mypy_takes_the_program(tmp_path):
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(FACE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr

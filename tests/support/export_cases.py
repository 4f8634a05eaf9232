"""Tests of torch.export and AOTInductor, for whichever backend and device, as transform_cases.py.

Both bring the fixture `fresh` too: `run_fresh` where a fresh process has the backend.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import fastlstm
from fastlstm import FastLSTM, functional

# What torch.export says of torch's own parts.
pytree_warns = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

LOAD = """
import sys
import torch
import fastlstm

torch.set_num_threads(1)
folder = sys.argv[1]
given, expected = torch.load(folder + "/data.pt")
for name in sys.argv[2:]:
    if name.startswith("aoti"):
        model = torch._inductor.aoti_load_package(f"{folder}/{name}.pt2")
    else:
        model = torch.export.load(f"{folder}/{name}.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(tuple(model(*given)), expected, rtol=0, atol=0)
    print(name)
"""


def run_fresh(folder: Path, *names: str) -> None:
    """Load what lies in a folder in a new Python with fastlstm, and compare results."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), *names],
        env={**os.environ, "PYTHONPATH": str(Path(fastlstm.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(names)


class Model(nn.Module):
    """With the module, or with the function of its weights."""

    def __init__(self, backend, stateless=False):
        super().__init__()
        self.lstm = FastLSTM(3, 5, 2, bidirectional=True, batch_first=True, backend=backend)
        self.head = nn.Linear(10, 1)
        self.stateless = stateless

    def forward(self, x, lengths):
        if self.stateless:
            options = {"bidirectional": True, "batch_first": True, "backend": self.lstm.backend}
            weights = [tuple(w) for w in self.lstm.all_weights]
            y, states = functional.lstm(x, weights, lengths=lengths, **options)
        else:
            y, states = self.lstm(x, lengths=lengths)
        return self.head(y), *states


def draw(T, N, device):
    return torch.randn(N, T, 3, device=device), torch.randint(0, T + 1, (N,)).to(device)


def exported(model, device, strict):
    rows, steps = Dim("rows", min=1, max=64), Dim("steps", min=2, max=512)
    dynamic = {"x": {0: rows, 1: steps}, "lengths": {0: rows}}
    # A stateless model is traced as it is; FastLSTM, as every nn.LSTM, by this flag's leave.
    allow = strict and not model.stateless
    flag = torch._dynamo.config.patch(allow_rnn=True) if allow else contextlib.nullcontext()
    with flag:
        return torch.export.export(model, draw(6, 4, device), dynamic_shapes=dynamic, strict=strict)


def layers_of(program):
    return [n for n in program.graph.nodes if "layer_forward" in str(n.target)]


@pytree_warns
@pytest.mark.parametrize(
    "stateless, strict",
    [(False, False), (False, True), (True, True)],
    ids=["module", "module-strict", "function-strict"],
)
def test_any_T_and_N(stateless, strict, backend, device):
    model = Model(backend, stateless).to(device)
    program = exported(model, device, strict)
    assert len(layers_of(program)) == 2
    module = program.module()
    for T, N in ((6, 4), (2, 1), (17, 9)):
        given = draw(T, N, device)
        results = module(*given)
        torch.testing.assert_close(results, model(*given), rtol=0, atol=0)
    # What was exported where gradients are on can be trained.
    results[0].sum().backward()
    expected = torch.autograd.grad(model(*given)[0].sum(), list(model.parameters()))
    got = [p.grad for p in module.parameters()]
    torch.testing.assert_close(got, list(expected))


def kept_for_later(programs, model, device, folder) -> None:
    """Exported for inference, and what they are to give, as `run_fresh` takes it."""
    given = draw(7, 3, device)
    with torch.no_grad():
        torch.save((given, model(*given)), folder / "data.pt")
    for program in programs:
        # No tape is kept.
        assert [node.args[-2] for node in layers_of(program)] == [False, False]


@pytree_warns
def test_saved_and_loaded_in_a_fresh_process(tmp_path, backend, device, fresh):
    """torch.export's archive of a program for any T and N."""
    model = Model(backend).to(device).eval()
    with torch.no_grad():
        programs = {
            "loose": exported(model, device, False),
            "strict": exported(model, device, True),
        }
    kept_for_later(programs.values(), model, device, tmp_path)
    for name, program in programs.items():
        torch.export.save(program, tmp_path / f"{name}.pt2")
    fresh(tmp_path, *programs)


@pytree_warns
@pytest.mark.slow
def test_compiled_and_loaded_in_a_fresh_process(tmp_path, backend, device, fresh):
    """AOTInductor's package of a program for any T and N."""
    model = Model(backend).to(device).eval()
    with torch.no_grad():
        program = exported(model, device, False)
    kept_for_later([program], model, device, tmp_path)
    package = str(tmp_path / "aoti.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=package)
    fresh(tmp_path, "aoti")

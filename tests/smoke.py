"""Whether an installed package works: ``python tests/smoke.py`` in an environment that has it,
torch and nothing else; ``--pure`` where it is to be pure Python. Most is held to nn.LSTM by
fastlstm.testing, whose budget is derived.
"""

import argparse
import copy
import io
import json
import pickle
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell, testing
from fastlstm.backends import native

T, N, I, H = 9, 4, 7, 13


def files_and_library(pure: bool) -> None:
    where = Path(fastlstm.__file__).parent
    assert (where / "py.typed").exists(), "py.typed is not installed"
    reason = native.load()
    assert (reason is not None) == pure, reason or "a compiled library, where none was expected"
    shown = subprocess.run([sys.executable, "-m", "fastlstm", "--json"], capture_output=True, text=True, check=True)
    found = json.loads(shown.stdout)
    assert found["library"]["loaded"] != pure
    served = {row["dtype"]: row["backend"] for row in found["backends"] if row["device"] == "cpu"}
    assert served["float32"] == ("reference" if pure else "cpu"), served
    print(f"  kernels: {found['library'].get('cpu_isa')}")


def inference_and_training() -> None:
    for options in ({}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 5}):
        lstm = nn.LSTM(I, H, **options)
        for dtype in (torch.float32, torch.float64):
            fast = FastLSTM.from_torch(lstm.to(dtype))
            used = testing.compare(fast, lstm, torch.randn(T, N, I, dtype=dtype))
            print(f"  {options or 'plain'}, {dtype}: {used:.0%} of the error budget")


def a_step_of_training() -> None:
    lstm = nn.LSTM(I, H)
    losses = []
    for model in (FastLSTM.from_torch(lstm), lstm):
        torch.manual_seed(1)
        x, wanted = torch.randn(T, N, I), torch.randn(T, N, H)
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        losses.append([])
        for _ in range(5):
            optimiser.zero_grad()
            loss = nn.functional.mse_loss(model(x)[0], wanted)
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(*losses)
    assert losses[0][-1] < losses[0][0]


def lengths() -> None:
    lstm, x = FastLSTM(I, H, bidirectional=True), torch.randn(T, N, I)
    n = torch.tensor([9, 2, 5, 1])
    packed = pack_padded_sequence(x, n, enforce_sorted=False)
    expected, states = lstm.to_torch()(packed)
    output, own_states = lstm(x, lengths=n)
    torch.testing.assert_close(output, pad_packed_sequence(expected)[0])
    torch.testing.assert_close(own_states, states)
    torch.testing.assert_close(lstm(packed)[0].data, expected.data)


def reset_mask_and_steps() -> None:
    lstm, x = FastLSTM(I, H, 2), torch.randn(T, N, I)
    begins = torch.zeros(T, N, dtype=torch.bool)
    begins[4] = True
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            output, states = lstm(x, reset_mask=begins)
            torch.testing.assert_close(output[4:], lstm(x[4:])[0])
            state, steps = None, []
            for t in range(T):
                y, state = lstm.step(x[t], None if t == 4 else state)
                steps.append(y)
            torch.testing.assert_close(torch.stack(steps), output)
            torch.testing.assert_close(state, states)


def cell() -> None:
    plain = nn.LSTMCell(I, H)
    fast, x = FastLSTMCell.from_torch(plain), torch.randn(N, I)
    state = torch.randn(N, H), torch.randn(N, H)
    torch.testing.assert_close(fast(x, state), plain(x, state))
    fast(x, state)[0].sum().backward()
    plain(x, state)[0].sum().backward()
    torch.testing.assert_close(fast.weight_hh.grad, plain.weight_hh.grad)


def narrow_weights() -> None:
    x = torch.randn(T, N, I)
    with torch.no_grad():
        model = fastlstm.convert(nn.Sequential(nn.LSTM(I, H)), weight_dtype=torch.bfloat16)
        assert model(x)[0].dtype == torch.float32
        fast = FastLSTM(I, H, 2, weight_dtype=torch.int8, weight_only=True)
        testing.compare(fast, fast.to_torch(), x, gradients=False)
        fast = FastLSTM(I, H, weight_dtype=torch.int8)
        slow = copy.deepcopy(fast)
        slow.backend = "reference"
        # A state at the middle between two integers may go either way: a level of a weight.
        level = max(float(w.abs().max()) for w in fast.all_weights[0][:2]) / 127 + 1e-5
        torch.testing.assert_close(fast(x)[0], slow(x)[0], rtol=0, atol=level)


def compiled() -> None:
    lstm, x = FastLSTM(I, H, 2), torch.randn(T, N, I)
    fast = torch.compile(lstm, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(x)[0], lstm(x)[0])
    expected = torch.autograd.grad(lstm(x)[0].square().sum(), list(lstm.parameters()))
    found = torch.autograd.grad(fast(x)[0].square().sum(), list(lstm.parameters()))
    torch.testing.assert_close(found, expected)


def pickled_and_saved() -> None:
    lstm, x = FastLSTM(I, H, 2, layer_norm=True).eval(), torch.randn(T, N, I)
    with torch.no_grad():
        expected = lstm(x)[0]
        assert torch.equal(pickle.loads(pickle.dumps(lstm))(x)[0], expected)
        file = io.BytesIO()
        torch.save(lstm.state_dict(), file)
        file.seek(0)
        other = FastLSTM(I, H, 2, layer_norm=True).eval()
        other.load_state_dict(torch.load(file))
        assert torch.equal(other(x)[0], expected)


def exported() -> None:
    lstm, x = FastLSTM(I, H, 2).eval(), torch.randn(T, N, I)
    with torch.no_grad():
        file = io.BytesIO()
        torch.export.save(torch.export.export(lstm, (x,)), file)
        file.seek(0)
        torch.testing.assert_close(torch.export.load(file).module()(x)[0], lstm(x)[0])


CHECKS = (
    inference_and_training,
    a_step_of_training,
    lengths,
    reset_mask_and_steps,
    cell,
    narrow_weights,
    compiled,
    pickled_and_saved,
    exported,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pure", action="store_true", help="expect no compiled library")
    pure = parser.parse_args().pure or platform.system() == "Windows"
    torch.manual_seed(0)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"fastlstm {fastlstm.__version__}, {versions}, {platform.machine()}")
    files_and_library(pure)
    for check in CHECKS:
        begin = time.perf_counter()
        check()
        print(f"{check.__name__}: {time.perf_counter() - begin:.1f} s", flush=True)
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Whether an installed wheel works: ``python tests/smoke.py``, in an environment that has it, torch
and nothing else. Every call is held to nn.LSTM by fastlstm.testing, whose budget is derived.
"""

import platform
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import FastLSTM, FastLSTMCell, testing
from fastlstm.backends import native


def main() -> int:
    torch.manual_seed(0)
    where = Path(fastlstm.__file__).parent
    print(
        f"fastlstm {fastlstm.__version__}, torch {torch.__version__}, {platform.python_version()}"
    )
    assert (where / "py.typed").exists(), "py.typed is not installed"
    reason = native.load()
    if platform.system() == "Windows":  # pure Python there
        assert reason is not None
    else:
        assert reason is None, reason
        print("CPU kernels:", native.cpu_isa())

    for options in ({}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 5}):
        lstm = nn.LSTM(7, 13, **options)
        x = torch.randn(9, 4, 7)
        used = testing.compare(FastLSTM.from_torch(lstm), lstm, x)
        print(f"nn.LSTM(7, 13, {options}): {used:.0%} of the error budget")

    lstm = FastLSTM(7, 13)
    lengths = torch.tensor([9, 2, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    expected, (h_n, _) = lstm.to_torch()(packed)
    output, (h, _) = lstm(x, lengths=lengths)
    torch.testing.assert_close(output, pad_packed_sequence(expected)[0])
    torch.testing.assert_close(h, h_n)

    done = torch.zeros(9, 4, dtype=torch.bool)
    done[4] = True
    with torch.no_grad():
        output, _ = lstm(x, reset_mask=done)
        torch.testing.assert_close(output[4:], lstm(x[4:])[0])
        step, _ = lstm.step(x[0])
        torch.testing.assert_close(step, output[0])
        h, c = FastLSTMCell(7, 13)(x[0])
    assert h.shape == c.shape == (4, 13)

    model = fastlstm.convert(nn.Sequential(nn.LSTM(7, 13)), weight_dtype=torch.bfloat16)
    with torch.no_grad():
        assert model(x)[0].dtype == torch.float32
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())

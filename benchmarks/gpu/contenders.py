"""Who is timed on the GPU: nn.LSTM as it is and in other ways, FastLSTM by each of its backends.

The first contender of a case is its baseline. A contender that cannot run a case says why, and the
row keeps the sentence in the place of a time.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.common.peers import CellLoop, FastLSTM, Problem, Runner, TorchLSTM
from benchmarks.common.precision import PRECISIONS
from benchmarks.common.stand_ins import BACKENDS
from benchmarks.gpu.cells import WIDE_T, GpuCell

EAGER, GRAPH = "", " graph"


@dataclass(frozen=True)
class Contender:
    """One row of a table: a peer, and what it stands for.

    ``checked``: held to the error budget; the other ways to run nn.LSTM are there for their time.
    ``graphed``: also timed as a CUDA graph.
    """

    name: str
    peer: TorchLSTM | CellLoop
    checked: bool = True
    graphed: bool = True


class Flat(TorchLSTM):
    """nn.LSTM with its weights in one piece, which torch sees to for float16 and float32, but not
    for bfloat16: there each call copies them.
    """

    def build(self, problem: Problem) -> Runner:
        runner = super().build(problem)
        m = runner.module
        with torch.no_grad():
            torch._cudnn_rnn_flatten_weight(
                m._flat_weights,
                len(m.all_weights[0]),
                m.input_size,
                torch.backends.cudnn.rnn.get_cudnn_mode(m.mode),
                m.hidden_size,
                m.proj_size,
                m.num_layers,
                m.batch_first,
                m.bidirectional,
            )
        return runner


class InTurn(FastLSTM):
    """FastLSTM with its layers one after the other, where it may run them as a wavefront."""

    def forward_of(self, module, problem):
        from fastlstm.stack.wavefront import plan as wavefront

        inner = super().forward_of(module, problem)

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            # The backward follows the forward's way.
            before = os.environ.get(wavefront.VARIABLE)
            os.environ[wavefront.VARIABLE] = "0"
            try:
                return inner(x)
            finally:
                del os.environ[wavefront.VARIABLE]
                if before is not None:
                    os.environ[wavefront.VARIABLE] = before

        return forward


class Autocast:
    """A peer on float32 tensors under autocast to bfloat16."""

    def __init__(self, peer: TorchLSTM) -> None:
        self.peer, self.name = peer, f"{peer.name} under autocast"

    def reject(self, case, dtype, device):
        return self.peer.reject(replace(case, variant="plain"), dtype, device)

    def build(self, problem: Problem) -> Runner:
        runner = self.peer.build(replace(problem, case=replace(problem.case, variant="plain")))
        inner, kind = runner.forward, torch.device(problem.device).type

        def forward(x: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast(kind, torch.bfloat16):
                return inner(x)

        return Runner(runner.module, forward, runner.parameters)


class InDtype:
    """A peer on the same problem in another dtype."""

    def __init__(self, peer, dtype: torch.dtype) -> None:
        self.peer, self.dtype, self.name = peer, dtype, peer.name

    def reject(self, case, dtype, device):
        return self.peer.reject(case, self.dtype, device)

    def build(self, problem: Problem) -> Runner:
        return self.peer.build(problem.to(self.dtype))


def tensor_dtype(cell: GpuCell) -> torch.dtype:
    """The dtype of a cell's tensors; under autocast they are float32."""
    return torch.float32 if cell.case.variant == "autocast" else PRECISIONS[cell.precision][0]


def contenders_of(cell: GpuCell) -> list[Contender]:
    """The contenders of a cell, the baseline first."""
    torch_lstm, loop = TorchLSTM(), CellLoop()
    fast = {name: FastLSTM(name) for name in BACKENDS}
    if cell.case.variant == "autocast":
        peers = {"nn.LSTM": torch_lstm, **fast}
        return [Contender(name, Autocast(peer)) for name, peer in peers.items()]
    if cell.case.variant == "resets":
        return [
            Contender(loop.name, loop),
            *(Contender(name, peer) for name, peer in fast.items()),
        ]
    found = [Contender("nn.LSTM", torch_lstm)]
    found += [Contender(name, peer) for name, peer in fast.items()]
    if cell.case.L > 1 and cell.case.D == 1:
        found += [Contender(f"{name}, layers in turn", InTurn(name), checked=False) for name in BACKENDS]
    if cell.precision == "bf16" and cell.case.variant == "plain" and cell.case.T == WIDE_T:
        found += [
            Contender("nn.LSTM, flat weights", Flat(), checked=False),
            Contender("nn.LSTM, float16", InDtype(torch_lstm, torch.float16), checked=False),
            Contender(
                "nn.LSTM, autocast",
                InDtype(Autocast(torch_lstm), torch.float32),
                checked=False,
                graphed=False,
            ),
        ]
    return found


def baseline_of(name: str, names: list[str]) -> str:
    """The lane that ``name`` is compared with: the first contender, as a graph if ``name`` is one
    and there is that of the first.
    """
    first = names[0].removesuffix(GRAPH)
    return f"{first}{GRAPH}" if name.endswith(GRAPH) and f"{first}{GRAPH}" in names else first

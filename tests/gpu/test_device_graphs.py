"""Streams, CUDA graphs, waiting, repeatability: what a GPU library must not get wrong around its
kernels.
"""

import pytest
import torch
from on_device import DRY, no_waiting, prefix_of, same_bits, scaled
from op_cases import Case, backward, draw, forward, tape_of, to

from fastlstm import FastLSTM
from fastlstm.stack.wavefront import plan as wavefront
from fastlstm.testing import RESULTS

pytestmark = pytest.mark.gpu

MODELS = {
    "plain": {},
    "D2-L2": {"bidirectional": True, "num_layers": 2},
    "P": {"proj_size": 9},
    "wavefront": {"num_layers": 4},
}
models = pytest.mark.parametrize("model", MODELS)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
T, N, I, H = scaled(12, 3), scaled(17, 3), 8, scaled(96, 12)


class Step:
    """A module and its inputs; `run` gives the results and gradients by name."""

    def __init__(self, model, dtype, backend, device):
        options = MODELS[model]
        self.module = FastLSTM(I, H, backend=backend, dtype=dtype, **options).to(device)
        self.x = torch.randn(T, N, I, device=device).to(dtype).requires_grad_()
        self.w = torch.randn(T, N, self.module(self.x)[0].shape[-1], device=device).to(dtype)

    def draw_again(self):
        with torch.no_grad():
            self.x.normal_()
            self.w.normal_()

    def forward(self):
        with torch.no_grad():
            output, (h_n, c_n) = self.module(self.x)
        return dict(zip(RESULTS, (output, h_n, c_n), strict=False))

    def train(self):
        output, (h_n, c_n) = self.module(self.x)
        leaves = dict(self.module.named_parameters()) | {"x": self.x}
        grads = torch.autograd.grad([output, h_n, c_n], list(leaves.values()), self.weights())
        results = {"output": output.detach(), "h_n": h_n.detach(), "c_n": c_n.detach()}
        return results | dict(zip(leaves, grads, strict=True))

    def weights(self):
        output, (h_n, c_n) = self.w, self.states
        return [output, h_n, c_n]

    @property
    def states(self):
        if not hasattr(self, "_states"):
            with torch.no_grad():
                _, state = self.module(self.x)
            self._states = tuple(torch.randn_like(s) for s in state)
        return self._states


@pytest.fixture
def wavefronts(monkeypatch):
    """Layers of one direction run as a wavefront, in several chunks."""
    monkeypatch.setenv(wavefront.VARIABLE, "1")
    monkeypatch.setattr(wavefront, "best_chunk", lambda T, L, step, host: scaled(4, 1))


@pytest.fixture
def step(model, dtype, backend, device, request):
    if model == "wavefront":
        request.getfixturevalue("wavefronts")
    made = Step(model, dtype, backend, device)
    made.train()  # compiles, and sets libraries up
    return made


def copied(results):
    return {name: value.clone() for name, value in results.items()}


@models
@dtypes
@pytest.mark.parametrize("which", ["forward", "train"])
def test_graph_replays_as_it_runs(which, step, real_gpu):
    call = getattr(step, which)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(3):
        step.draw_again()
        for value in captured.values():
            value.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        same_bits(copied(captured), call())


@models
@dtypes
def test_results_repeat_bit_by_bit(step):
    first = copied(step.train())
    for _ in range(scaled(20, 2)):
        same_bits(first, step.train())


@dtypes
@pytest.mark.parametrize("model", ["D2-L2"])
def test_deterministic_algorithms(step):
    first = copied(step.train())
    torch.use_deterministic_algorithms(True)
    try:
        second = step.train()
    finally:
        torch.use_deterministic_algorithms(False)
    same_bits(first, second)


@models
@dtypes
def test_nothing_waits_for_the_device(step, device):
    with no_waiting(device):
        step.forward()
        step.train()


@pytest.mark.parametrize("options", ["lengths", "resets"])
def test_masks_do_not_wait_for_the_device(options, backend, device):
    fast = FastLSTM(I, H, backend=backend, bidirectional=True).to(device)
    x = torch.randn(T, N, I, device=device, requires_grad=True)
    given = {
        "lengths": {"lengths": torch.randint(0, T + 1, (N,)).to(device)},
        "resets": {"reset_mask": (torch.rand(T, N) < 0.3).to(device)},
    }[options]
    fast(x, **given)[0].sum().backward()
    with no_waiting(device):
        fast(x, **given)[0].sum().backward()


@models
@pytest.mark.parametrize("dtype", [torch.float32], ids=str)
def test_side_stream(step, real_gpu):
    """On a stream of its own, while another one is busy."""
    expected = copied(step.train())
    busy = torch.randn(4096, 4096, device="cuda")
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(20):
        busy = busy @ busy
        busy /= busy.abs().max()
    with torch.cuda.stream(side):
        found = step.train()
    side.synchronize()
    same_bits(expected, found)
    torch.cuda.synchronize()


@pytest.mark.parametrize("model", ["plain", "wavefront"])
def test_two_streams_at_once(model, backend, device, real_gpu, request):
    if model == "wavefront":
        request.getfixturevalue("wavefronts")
    made = [Step(model, torch.float32, backend, device) for _ in range(2)]
    expected = [copied(step.train()) for step in made]
    streams = [torch.cuda.Stream() for _ in made]
    torch.cuda.synchronize()
    for _ in range(10):
        found = []
        for step, stream in zip(made, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(step.train())
        torch.cuda.synchronize()
        for mine, right in zip(found, expected, strict=True):
            same_bits(right, mine)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_ops_repeat_bit_by_bit(kind, backend, device):
    sizes = {"T": 3, "N": 5, "H": 9} if DRY else {"T": 20, "N": 70, "H": 130}
    case = Case("recurrence", **sizes, D=2, dtype=kind, masks="random")
    wanted = torch.float64 if kind == torch.float64 else None
    arguments, gradients = (to(wanted, part, device) for part in draw(case))
    found = []
    for _ in range(scaled(10, 2)):
        results = forward(case, prefix_of(backend), arguments)
        tape = tape_of(results)
        found.append(results | backward(case, prefix_of(backend), arguments, gradients, tape))
    for other in found[1:]:
        same_bits(found[0], other)

"""The code that only a GPU runs: its calls of torch.cuda, played by the CPU.

`monkeypatch.setattr` refuses a name that torch.cuda does not have, so a misspelt one shows here.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks.common.peers import TorchLSTM
from benchmarks.common.shapes import Case
from benchmarks.gpu import contenders, device, measure, worker
from benchmarks.gpu.cells import GpuCell
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.device import Device
from benchmarks.gpu.journal import Journal

PROPERTIES = SimpleNamespace(
    name="a GPU",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=2**37,
    L2_cache_size=2**16,
)


class Event:
    """Records a clock of its own, which a test sets forward and every record by a little."""

    clock = 0.0  # seconds

    def __init__(self, enable_timing=False):
        assert enable_timing

    def record(self):
        Event.clock += 0.01
        self.at = Event.clock

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class Stream:
    def wait_stream(self, other):
        assert isinstance(other, Stream)


class Graph:
    replays = 0

    def replay(self):
        Graph.replays += 1


@pytest.fixture
def gpu(monkeypatch):
    """A `Device` whose torch.cuda is the CPU."""

    @contextlib.contextmanager
    def context(which):
        assert isinstance(which, (Stream, Graph))
        yield

    played = {
        "get_device_properties": lambda index: PROPERTIES,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda: (2**33, 2**37),
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 100,
        "max_memory_allocated": lambda: 1100,
        "Event": Event,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": context,
        "CUDAGraph": Graph,
        "graph": context,
    }
    for name, value in played.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Device, "name", "cpu")
    monkeypatch.setattr(Device, "copy_bytes", 4096)
    monkeypatch.setattr(Device, "product_size", 32)
    return Device()


def test_samples_are_seconds_per_call(gpu):
    calls = []

    def call(k):
        calls.append(k)
        Event.clock += 0.25

    assert gpu.sample(call, 3) == pytest.approx(0.25, abs=0.005)
    assert calls == [0, 1, 2]


def test_a_graph_has_every_set_and_is_warmed_up(gpu):
    calls, before = [], Graph.replays
    replay, results = gpu.capture(lambda k: calls.append(k) or k, 3)
    assert calls == [0, 0, 0, 1, 2]
    assert results == [0, 1, 2]
    replay(0)
    assert Graph.replays == before + 1


def test_memory_rates_and_description(gpu):
    assert gpu.peak_bytes(lambda k: None) == 1000
    rates = gpu.rates(torch.float32)
    assert min(rates.values()) > 0
    described = gpu.describe()
    assert (described["capability"], described["l2_bytes"]) == ("9.0", 2**16)
    assert "nvidia_smi" in described or "driver_version" in described


def test_a_device_that_fails_is_ill(gpu, monkeypatch):
    assert gpu.illness() is None

    def fail():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert gpu.illness() == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_nvidia_smi_is_read(monkeypatch):
    said = SimpleNamespace(stdout="580.1, 1980 MHz, 3201 MHz, 40, 120.5 W\n")
    monkeypatch.setattr(device.subprocess, "run", lambda *_, **__: said)
    assert device.nvidia_smi()["clocks.mem"] == "3201 MHz"
    said.stdout = ""
    assert "not read" in device.nvidia_smi()["nvidia_smi"]


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_cell_on_the_device(gpu, mode, monkeypatch, tmp_path):
    peers = [Contender("nn.LSTM", TorchLSTM()), Contender("cuda", TorchLSTM())]
    monkeypatch.setattr(measure, "contenders_of", lambda cell: peers)
    monkeypatch.setattr(worker, "contenders_of", lambda cell: peers)
    journal = Journal(tmp_path / "j", "s")
    made = worker.Worker(gpu, journal, "bench bf16", float("inf"), 0.01)
    made.run([GpuCell(Case(5, 3, 8, 8), "bf16", mode)])
    (record,) = journal.records("row")
    row = record["row"]
    assert (row["status"], row["error"]) == ("ok", None)
    assert set(row["times"]) == {"nn.LSTM", "nn.LSTM graph", "cuda", "cuda graph"}
    assert row["peak_bytes"] == {"nn.LSTM": 1000, "cuda": 1000}
    assert row["input_sets"] == measure.MOST_SETS
    marks = [r["contender"] for r in journal.records("mark")]
    assert marks == ["setup", "nn.LSTM", "nn.LSTM graph", "cuda", "cuda graph", "timing"]


def test_a_capture_that_fails_costs_its_lane_alone(gpu, monkeypatch):
    @contextlib.contextmanager
    def refuse(graph):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    peers = [Contender("nn.LSTM", TorchLSTM()), Contender("cuda", TorchLSTM())]
    monkeypatch.setattr(measure, "contenders_of", lambda cell: peers)
    cell = GpuCell(Case(5, 3, 8, 8), "fp32", "infer")
    bench = measure.make_bench(gpu, cell, cell.case)
    given = {"seconds": 0.0, "product_rate": 1e12, "exclude": {}, "mark": lambda name: None}
    row, of_torch = measure.run_cell(bench, cell, **given)
    assert set(of_torch["times"]) == {"nn.LSTM"}
    assert set(row["times"]) == {"nn.LSTM", "cuda"}
    assert "not permitted" in row["notes"]["nn.LSTM graph"]
    # That nn.LSTM cannot be captured is a note; that fastlstm cannot is a failure.
    assert row["error"] == f"cuda graph: {row['notes']['cuda graph']}"


def test_other_ways_to_run_torch_are_timed_beside_bfloat16(monkeypatch):
    cell = GpuCell(Case(contenders.WIDE_T, 2, 4, 4), "bf16", "train")
    names = [contender.name for contender in contenders.contenders_of(cell)]
    assert names[3:] == ["nn.LSTM, flat weights", "nn.LSTM, float16", "nn.LSTM, autocast"]
    flattened = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: flattened.append(args))
    mode = SimpleNamespace(get_cudnn_mode=lambda mode: 2)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "get_cudnn_mode", mode.get_cudnn_mode)
    problem = contenders.Problem.make(cell.case, torch.bfloat16)
    contenders.Flat().build(problem)
    ((weights, per_layer, *sizes),) = flattened
    assert (len(weights), per_layer, sizes) == (4, 4, [4, 2, 4, 0, 1, False, False])

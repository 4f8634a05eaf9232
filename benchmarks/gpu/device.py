"""The GPU as the benchmark sees it: a clock, graphs, memory, rates. `DryDevice` stands in for it on
a machine without one, so that the same program can be run there; what it measures means nothing.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable

import torch

COPY_BYTES = 2**30
PRODUCT_SIZE = 8192
Call = Callable[[int], object]  # the k-th call takes the k-th set of inputs


class Device:
    """The current CUDA device."""

    name = "cuda"
    dry = False
    copy_bytes, product_size = COPY_BYTES, PRODUCT_SIZE

    def __init__(self) -> None:
        self.properties = torch.cuda.get_device_properties(torch.cuda.current_device())

    @property
    def l2_bytes(self) -> int:
        return getattr(self.properties, "L2_cache_size", 0) or 50 * 2**20

    @property
    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def release(self) -> None:
        """Give cached memory back, so that one contender's does not count as another's."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def illness(self) -> str | None:
        """Why this process can no longer use the GPU (an earlier kernel crashed, a capture was left
        half done), or None.
        """
        try:
            torch.cuda.synchronize()
            x = torch.randn(64, 64, device=self.name)
            return None if torch.isfinite((x @ x).sum()).item() else "a product is not finite"
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"

    def sample(self, call: Call, count: int) -> float:
        """Seconds per call of ``count`` calls back to back, by events on the GPU."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for k in range(count):
            call(k)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count

    def capture(self, call: Call, count: int) -> tuple[Call, list]:
        """A graph of the calls 0 to count - 1: what replays it, and the results it writes into."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # A library sets itself up in its first calls on a stream, which a capture does not allow.
        with torch.cuda.stream(side):
            for _ in range(2):
                call(0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = [call(k) for k in range(count)]

        def replay(_: int) -> None:
            graph.replay()

        return replay, results

    def peak_bytes(self, call: Call) -> int:
        """How far one call raises the memory that is allocated, its results included."""
        self.release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call(0)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del result
        return peak

    def describe(self) -> dict[str, object]:
        """The GPU's part of the ``machine`` block; what cannot be had is left out."""
        p = self.properties
        return {
            "gpu": p.name,
            "capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "l2_bytes": self.l2_bytes,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "torch": torch.__version__,
            "triton": triton_version(),
            "gpus": torch.cuda.device_count(),
            **nvidia_smi(),
        }

    def rates(self, dtype: torch.dtype) -> dict[str, float]:
        """Measured ceilings: a large copy, bytes read and written per second; a large square matrix
        product of random numbers, flops per second.
        """
        copy, product = self._copy_seconds(), self._product_seconds(dtype)
        self.release()
        return {
            "copy_bytes_per_s": 2 * self.copy_bytes / copy,
            "product_flops_per_s": 2 * self.product_size**3 / product,
        }

    def _copy_seconds(self) -> float:
        source = torch.empty(self.copy_bytes, dtype=torch.uint8, device=self.name).random_()
        target = torch.empty_like(source)
        return self._median(lambda _: target.copy_(source))

    def _product_seconds(self, dtype: torch.dtype) -> float:
        size = (self.product_size, self.product_size)
        a, b = (torch.randn(size, device=self.name).to(dtype) for _ in range(2))
        return self._median(lambda _: torch.mm(a, b))

    def _median(self, call: Call) -> float:
        for _ in range(3):
            call(0)
        return statistics.median(self.sample(call, 1) for _ in range(10))


class DryDevice(Device):
    """The CPU in the place of a GPU."""

    name = "cpu"
    dry = True
    copy_bytes, product_size = 2**20, 64

    def __init__(self) -> None:
        torch.set_num_threads(1)

    l2_bytes = 4096
    free_bytes = 2**30

    def synchronize(self) -> None:
        pass

    def release(self) -> None:
        pass

    def sample(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        for k in range(count):
            call(k)
        return (time.perf_counter() - start) / count

    def capture(self, call: Call, count: int) -> tuple[Call, list]:
        def replay(_: int) -> None:
            for k in range(count):
                call(k)

        return replay, [call(k) for k in range(count)]

    def illness(self) -> str | None:
        return None

    def peak_bytes(self, call: Call) -> int:
        call(0)
        return 1

    def describe(self) -> dict[str, object]:
        return {
            "gpu": "none (dry run)",
            "capability": "8.0",
            "multiprocessors": 132,
            "memory_bytes": self.free_bytes,
            "l2_bytes": self.l2_bytes,
            "torch": torch.__version__,
            "triton": triton_version(),
        }


def open_device(dry: bool) -> Device:
    return DryDevice() if dry else Device()


def missing_gpu() -> str | None:
    """Why there is no GPU to run on, or None."""
    if not torch.backends.cuda.is_built():
        return f"this torch ({torch.__version__}) was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU it can use"
    return None


def architecture(capability: str) -> str:
    """A compute capability such as 8.6 or 9.0 as FASTLSTM_CUDA_ARCHS takes it: 86, 90a."""
    major, minor = map(int, capability.split("."))
    # From 9.0 on, the tensor-core instructions that the kernels use are in the `a` targets alone.
    return f"{major}{minor}{'a' if major >= 9 else ''}"


def triton_version() -> str | None:
    try:
        import importlib.metadata

        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks, temperature and power as nvidia-smi reads them; it changes nothing."""
    fields = "driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        values = [value.strip() for value in done.stdout.strip().splitlines()[0].split(",")]
        return dict(zip(fields.split(","), values, strict=True))
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return {"nvidia_smi": f"not read: {type(error).__name__}"}


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]

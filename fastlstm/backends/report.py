"""`python -m fastlstm`: what is installed, and which backend serves which device and dtype."""

import importlib.metadata
import importlib.util
import os
import platform

import torch

from .._version import __version__
from . import gpu, native, table


def _devices() -> list[str]:
    devices = ["cpu", "cuda"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None and accelerator.type not in devices:
        devices.append(accelerator.type)
    return devices


def _triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _serving(device: str, dtype: torch.dtype) -> dict:
    call = table.Call.of(device, dtype)
    refused, chosen = {}, None
    for row in table.TABLE:
        reason = row.reject(call)
        if reason is not None:
            refused[row.name] = reason
        elif chosen is None:
            chosen = row.name
    return {
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "backend": chosen,
        "refused": refused,
    }


def collect() -> dict:
    """The report as plain data, as `--json` prints it.

    Keys: fastlstm, torch, python, machine, threads, cpu_capability (that of torch's own kernels),
    library (name or None; loaded; the reason if it is not; cpu_isa; cpu: `native.cpu_choice`),
    triton (version or None), gpu (name or None), cuda_kernels (None without a GPU or without CUDA
    in the library; chosen: what FASTLSTM_CUDA_KERNELS says, or "auto"; possible: `gpu.families`),
    backends: for each device and dtype the backend that "auto" chooses, and why the others refuse.
    """
    reason = native.load()
    path = native.library_path()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    kernels = "cuda_kernels" if name is not None and reason is None and native.cuda_architectures() else None
    return {
        "fastlstm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "library": {
            "name": None if path is None else path.name,
            "loaded": reason is None,
            "reason": reason,
            "cpu_isa": native.cpu_isa() if reason is None else None,
            "cpu": native.cpu_choice() if reason is None else None,
        },
        "triton": _triton(),
        "gpu": name,
        "cuda_kernels": None if kernels is None else cuda_kernels(kernels, torch.cuda.current_device()),
        "backends": [_serving(d, dtype) for d in _devices() for dtype in table.DTYPES],
    }


def cuda_kernels(name: str, device: int) -> dict:
    """The report's entry for a device. name: as for `gpu.families`."""
    return {"chosen": os.environ.get(gpu.CHOSEN, "auto"), "possible": gpu.families(name, device)}


def _of_cuda_kernels(found: dict) -> str:
    missing = [name for name in gpu.FAMILIES if name not in found["possible"]]
    text = ", ".join(found["possible"])
    if missing:
        text += f"; this GPU, or this process's part of it, has no room for {' and '.join(missing)}"
    if found["chosen"] != "auto":
        text += f"; {gpu.CHOSEN}={found['chosen']} allows no others, but for calls that these cannot serve"
    return text


def _facts(report: dict) -> list[tuple[str, str]]:
    library = report["library"]
    compiled = library["name"] if library["loaded"] else f"none: {library['reason']}"
    cpu = library["cpu"]
    kernels = []
    if cpu is not None:
        made = {}
        for dtype, product in cpu["products"].items():
            made.setdefault(product, []).append(dtype)
        products = "; ".join(f"{', '.join(dtypes)}: {product}" for product, dtypes in made.items())
        kernels = [
            ("CPU kernels", f"{cpu['isa']}: {cpu['why']}"),
            (
                "CPU products",
                f"{products}; cut for {cpu['l2_bytes'] >> 10} KiB of second-level cache",
            ),
        ]
    if report["cuda_kernels"] is not None:
        kernels.append(("CUDA kernels", _of_cuda_kernels(report["cuda_kernels"])))
    return [
        ("fastlstm", report["fastlstm"]),
        ("torch", f"{report['torch']}, {report['threads']} threads, {report['cpu_capability']}"),
        ("Python", f"{report['python']}, {report['machine']}"),
        ("compiled library", compiled),
        *kernels,
        ("GPU", report["gpu"] or "torch finds none that it can use"),
        ("Triton", report["triton"] or "not installed"),
    ]


def _rows(report: dict) -> list[tuple[str, str, str, str]]:
    return [
        (
            entry["device"],
            entry["dtype"],
            entry["backend"] or "none",
            "; ".join(f"not {name}: {reason}" for name, reason in entry["refused"].items()),
        )
        for entry in report["backends"]
    ]


_HEADINGS = ("device", "dtype", "backend", "why not another")


def show(report: dict) -> None:
    """Prints the report: with rich where it is installed, otherwise as plain text."""
    if importlib.util.find_spec("rich") is None:
        _show_plain(report)
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    for fact in _facts(report):
        facts.add_row(*fact)
    table = Table(*_HEADINGS, box=None, header_style="bold", pad_edge=False)
    for row in _rows(report):
        table.add_row(*row)
    console.print(facts)
    console.print()
    console.print(table)


def _show_plain(report: dict) -> None:
    for name, value in _facts(report):
        print(f"{name:<18}{value}")
    print()
    for device, dtype, backend, reasons in (_HEADINGS, *_rows(report)):
        print(f"{device:<8}{dtype:<10}{backend:<11}{reasons}".rstrip())

"""Measures configurations on this machine's GPU, and prints a table for configs.py.

    python -m fastlstm.backends.triton.tune                       everything: minutes for each part
    python -m fastlstm.backends.triton.tune --arithmetic 16bit --passes forward
    python -m fastlstm.backends.triton.tune --dry-run             lists the candidates: needs no GPU

The table goes to standard output, each measurement to standard error. Put the table into
configs.py, with the name of the GPU, and run FASTLSTM_TEST_AOT=all pytest tests/backends/triton:
shared memory was measured for layers without masks and projection, and may be more with them.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator

import torch

from .configs import ANY, TABLE, Config, Row

PASSES = ("forward", "backward")
DTYPES = {"16bit": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}
WIDTHS = (32, 64, 128, 192, 256, 512, 1024, 2048)
ROWS = {32: 16, ANY: 256}  # max_n of a row: the N at which it is measured
STEPS, RUNS = 64, 15
# Roughly the bytes of shared memory of a candidate; one that needs more than there are fails, and
# is left out.
SHARED = 220 << 10


def candidates(which: str, kind: str, width: int) -> Iterator[Config]:
    """The configurations to measure for a layer of `width` units."""
    size = DTYPES[kind].itemsize
    block = max(16, 1 << (width - 1).bit_length())
    if 4 * size * block * block < SHARED:
        for warps in (4, 8, 16):
            yield Config("resident", 16, block, block, warps, 1)
    if width <= 512:
        for block_h, block_k in ((32, 32), (32, 64), (64, 32), (64, 64), (32, 128)):
            for warps, stages in ((4, 3), (8, 3), (8, 4)):
                yield Config("sequence", 16, block_h, block_k, warps, stages)
    if width >= 128:
        tiles = ((16, 16), (16, 32), (32, 32), (64, 32), (64, 64))
        for block_n, block_h in tiles:
            for block_k, warps, stages in ((32, 4, 3), (64, 4, 4), (64, 8, 3), (128, 4, 4)):
                gates = 4 if which == "forward" else 1
                tile = block_k * (gates * block_h + block_n) * size
                if tile * stages < SHARED and (kind != "ieee" or block_k == 32):
                    yield Config("step", block_n, block_h, block_k, warps, stages)


def problem(which: str, kind: str, N: int, width: int) -> tuple:
    """Arguments of launch.forward or launch.backward for one layer and direction, on the GPU."""
    dtype, H = DTYPES[kind], width

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, device="cuda", dtype=torch.float32).to(dtype)

    h0, c0 = normal(1, N, H), normal(1, N, H)
    weight_hh = normal(1, 4 * H, H) * H**-0.5
    tf32 = kind == "tf32"
    if which == "forward":
        gates_x = normal(STEPS, N, 1, 4 * H)
        return gates_x, h0, c0, weight_hh, None, None, None, True, True, tf32
    cells = normal(STEPS, N, 1, H, dtype=torch.float32)
    gates = normal(STEPS, N, 1, 4 * H).sigmoid()
    doutput = normal(STEPS, N, H)
    return (
        doutput, None, None, None, None, h0, c0, weight_hh, None, cells, gates, None, None, False,
        tf32,
    )  # fmt: skip


class _Noted:
    """A kernel that records how much shared memory it uses."""

    def __init__(self, kernel, shared: list[int]):
        self.kernel, self.shared = kernel, shared

    def __getitem__(self, grid):
        def launch(*args, **options):
            compiled = self.kernel[grid](*args, **options)
            self.shared.append(compiled.metadata.shared)
            return compiled

        return launch


def measure(which: str, arguments: tuple, config: Config) -> tuple[float, int]:
    """(us a step, bytes of shared memory) of one pass."""
    from . import launch

    modules = (launch.forward_kernels, launch.backward_kernels, launch.resident_kernels)
    plain, shared = [dict(vars(module)) for module in modules], []
    try:
        for module, names in zip(modules, plain, strict=True):
            for name, kernel in names.items():
                if name.startswith("lstm_"):
                    setattr(module, name, _Noted(kernel, shared))
        times = []
        for run in range(RUNS + 3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            getattr(launch, which)(*arguments, config=config)
            end.record()
            end.synchronize()
            if run >= 3:
                times.append(start.elapsed_time(end) * 1e3 / STEPS)
        return statistics.median(times), max(shared)
    finally:
        for module, names in zip(modules, plain, strict=True):
            for name, kernel in names.items():
                setattr(module, name, kernel)


def best(which: str, kind: str, N: int, width: int) -> Row | None:
    """The row of the fastest candidate, None if none ran."""
    arguments, found = problem(which, kind, N, width), []
    for config in candidates(which, kind, width):
        try:
            time, shared = measure(which, arguments, config)
        except Exception as error:  # too much shared memory, registers, or the compiler's time
            say(f"  {config}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
            continue
        say(f"  {config}: {time:.2f} us a step, {shared >> 10} KiB")
        found.append((time, shared, config))
    if not found:
        return None
    _, shared, config = min(found)
    projected = config.way != "resident" or 5 * DTYPES[kind].itemsize * config.block_h**2 <= 48 << 10
    return Row(N, width, config, -(-shared // (16 << 10)) * 16, projected)


def rows(which: str, kind: str, widths=WIDTHS) -> list[Row]:
    """The rows of TABLE[which, kind]: the fastest for each width, one row for all N where it is the
    same for all. The last row, which fits any GPU, is not changed."""
    table = []
    for width in widths:
        max_h = ANY if width == widths[-1] else width
        fastest = {}
        for max_n, N in ROWS.items():
            say(f"{which} {kind} N = {N} H = {width}")
            row = best(which, kind, N, width)
            if row is not None:
                fastest[max_n] = row._replace(max_n=max_n, max_h=max_h)
        if len({row.config for row in fastest.values()}) == 1:
            fastest = {ANY: max(fastest.values())._replace(max_n=ANY)}
        table += fastest.values()
    return [*table, TABLE[which, kind][-1]]


def text(which: str, kind: str, table: list[Row]) -> str:
    """The rows as source text for configs.py."""
    lines = [f'    ("{which}", "{kind}"): (']
    for row in table:
        max_n, max_h = ("ANY" if n == ANY else str(n) for n in row[:2])
        config = ", ".join([f'"{row.config.way}"', *map(str, row.config[1:])])
        rest = f"{row.shared}" + ("" if row.projected else ", projected=False")
        lines.append(f"        Row({max_n}, {max_h}, Config({config}), {rest}),")
    return "\n".join([*lines, "    ),"])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastlstm.backends.triton.tune",
        description="Measure configurations of the Triton kernels on this machine's GPU and print "
        "a table for fastlstm/backends/triton/configs.py.",
    )
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--arithmetic", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS, metavar="H")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates, measure none")
    chosen = parser.parse_args(arguments)
    cases = [(which, kind) for kind in chosen.arithmetic for which in chosen.passes]
    if chosen.dry_run:
        for which, kind in cases:
            for width in chosen.widths:
                for config in candidates(which, kind, width):
                    print(which, kind, f"H = {width}", *config)
        return
    if not torch.cuda.is_available():
        parser.error("needs a GPU, and torch finds none; --dry-run lists what would be measured")
    for which, kind in cases:
        print(text(which, kind, rows(which, kind, tuple(sorted(chosen.widths)))), flush=True)


if __name__ == "__main__":
    main()

"""A child process that goes through the cells of one part: ``python -m benchmarks.gpu.worker``.

It writes every finished cell into the journal at once. It ends with status 0 when the cells are
done or the time is, and with `drive.LOST` when a contender has broken the process; another one then
goes on without that contender.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

from benchmarks.common import stand_ins
from benchmarks.common.precision import PRECISIONS, fp32_precision
from benchmarks.common.shapes import Case
from benchmarks.gpu import forced, host, profile
from benchmarks.gpu.cells import GpuCell, cells_of, expected_seconds, parse_share
from benchmarks.gpu.contenders import contenders_of
from benchmarks.gpu.device import Device, first_line, open_device
from benchmarks.gpu.drive import LOST
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.measure import Bench, ContextLost, failed_row, make_bench, run_cell

SETUP = "setup"
# A contender that has broken this many cells of a part is not started again.
GIVE_UP_AFTER = 3


class Worker:
    """The cells of a part, as far as the time goes.

    Args:
        stop: `time.time` at which to begin no more cells.
        seconds: for the measured calls of one cell.
    """

    def __init__(self, device: Device, journal: Journal, part: str, stop: float, seconds: float) -> None:
        self.device, self.journal, self.part = device, journal, part
        self.stop, self.seconds = stop, seconds
        self.bench: tuple[object, Bench] | None = None
        # Measured over expected time of the cells so far: the estimate of the next ones.
        self.measured = self.expected = 2.0

    def run(self, cells: list[GpuCell]) -> int:
        """Goes through the cells; gives how many were left out for want of time."""
        done = self.journal.latest("row")
        # What was under way when an earlier run was killed may do it again: it comes last.
        suspects = {key for key in self.journal.latest("mark") if key not in done}
        cells = [cell for cell in cells if cell.key(self.part) not in done]
        cells.sort(key=lambda cell: cell.key(self.part) in suspects)
        left = 0
        for cell in cells:
            expected = expected_seconds(cell, 2 * len(contenders_of(cell)), self.seconds)
            if time.time() + expected * self.measured / self.expected > self.stop:
                left += 1
                continue
            began = time.time()
            self.one(cell)
            self.measured += time.time() - began
            self.expected += expected
        return left

    def one(self, cell: GpuCell) -> None:
        """Measure a cell and write its row; raises `ContextLost`."""
        key, case = cell.key(self.part), cell.case
        if self.device.dry:
            case = stand_ins.shrink(case)
        exclude = self.excluded(key)
        self.journal.mark(key, SETUP)
        with warnings.catch_warnings():
            # nn.LSTM says at each call that bfloat16 weights are not in one piece.
            warnings.simplefilter("ignore")
            try:
                row = self.row(cell, case, exclude)
            except ContextLost as lost:
                self.journal.append("broken", key, contender=lost.contender, reason=lost.reason)
                raise
        self.journal.append("row", key, row={**row, "part": self.part})
        print(f"{key}: {outcome(row)}", flush=True)

    def row(self, cell: GpuCell, case: Case, exclude: dict[str, str]) -> dict[str, object]:
        if SETUP in exclude:
            return failed_row(cell, case, self.device, f"setup: {exclude[SETUP]}")
        which = (cell.case, cell.precision)
        try:
            if self.bench is None or self.bench[0] != which:
                self.bench = None
                self.device.release()
                self.bench = (which, make_bench(self.device, cell, case))
            rate = self.rate(cell)
        except Exception as error:
            said = f"setup: {type(error).__name__}: {first_line(error)}"
        else:
            key = cell.key("baseline")
            row, of_torch = run_cell(
                self.bench[1],
                cell,
                seconds=self.seconds,
                product_rate=rate,
                exclude=exclude,
                mark=lambda name: self.journal.mark(cell.key(self.part), name),
                known=self.journal.lasting("baseline").get(key),
            )
            if of_torch["times"]:
                self.journal.append("baseline", key, **of_torch)
            return row
        illness = self.device.illness()
        if illness:
            raise ContextLost(SETUP, f"{said} ({illness})")
        return failed_row(cell, case, self.device, said)

    def excluded(self, key: str) -> dict[str, str]:
        """Contenders that may not run in this cell, with the reasons."""
        broken = [r for r in self.journal.records("broken") if r["key"].startswith(self.part)]
        found = {r["contender"]: r["reason"] for r in broken if r["key"] == key}
        for name in {r["contender"] for r in broken}:
            cells = {r["key"] for r in broken if r["contender"] == name}
            if len(cells) >= GIVE_UP_AFTER and name not in found:
                reason = next(r["reason"] for r in broken if r["contender"] == name)
                found[name] = f"given up after {len(cells)} cells; the first: {reason}"
        return found

    def rate(self, cell: GpuCell) -> float:
        """Flops per second of large products in the cell's precision, measured once a journal."""
        known = self.journal.latest("rates")
        if cell.precision not in known:
            dtype, mode, _ = PRECISIONS[cell.precision]
            with fp32_precision(mode):
                rates = self.device.rates(dtype)
            self.journal.append("rates", cell.precision, rates=rates)
            return rates["product_flops_per_s"]
        return known[cell.precision]["rates"]["product_flops_per_s"]


def outcome(row: dict) -> str:
    """A row on one line."""
    ratios = " ".join(f"{name} {each['ratio']:.2f}" for name, each in row["ratios"].items())
    return ratios if row["status"] == "ok" else f"FAILED {row['error']} {ratios}".strip()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="one part of ./run gpu; see benchmarks.gpu.plan")
    parser.add_argument("part")
    parser.add_argument("--share", type=parse_share, default=(1, 1))
    parser.add_argument("--cells", type=int)
    parser.add_argument("--stop", type=float, default=float("inf"))
    parser.add_argument("--cell-seconds", type=float, default=1.2)
    args = parser.parse_args(argv)
    journal = Journal.from_environment()
    if journal is None:
        parser.error("no journal in the environment: this is a part of ./run gpu")
    device = open_device(stand_ins.is_dry())
    if device.dry:
        print(f"dry run: {stand_ins.fake_backends()}", flush=True)
    try:
        if args.part == profile.PART:
            left = profile.run(device, journal, args.stop, args.cells)
        elif args.part == forced.PART:
            left = forced.run(device, journal, args.stop, args.cells)
        elif args.part == host.PART:
            left = host.run(device, journal)
        else:
            worker = Worker(device, journal, args.part, args.stop, args.cell_seconds)
            left = worker.run(cells_of(args.part, args.share, args.cells))
    except ContextLost as lost:
        print(f"the GPU cannot be used any more: {lost}", file=sys.stderr, flush=True)
        return LOST
    journal.append("left", args.part, cells=left)
    return 0


if __name__ == "__main__":
    sys.exit(main())

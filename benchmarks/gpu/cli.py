"""The command line: ``./run gpu``, which is ``python -m benchmarks.gpu``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import machine, stand_ins
from benchmarks.common.machine import RESULTS, ROOT
from benchmarks.gpu import build, cells, costs, device, host, plan, predict, report, worth
from benchmarks.gpu.drive import kill
from benchmarks.gpu.forks import Forks
from benchmarks.gpu.journal import Journal, last_stamp, stamp_of

WORK = ROOT / "build" / "gpu"
DRY_WORK = ROOT / "build" / "gpu-dry"
DESCRIBE_SECONDS = 180.0
DRY_CELLS = 4
OK, FAILED, NO_GPU, INCOMPLETE = 0, 1, 2, 3

EPILOG = """\
parts, in the order in which a run without arguments takes them:
  build       the compiled library, for this GPU's architecture alone
  probe       what the choice of kernels assumes of the device, measured (csrc/cuda/costs.h)
  verdicts    every family of kernels, dtype, direction and pass on small calls beside float64,
              in a minute; what is wrong or hangs there is left out of the rest; beside it
              compute-sanitizer on the exchanges between blocks
  bench bf16  the grid of shapes, FastLSTM by each backend beside nn.LSTM; also bench fp32
              (full float32), bench fp16, bench tf32, and bench alone for all four
  families    each family by force at the borders of the choice, measured beside predicted
  host        what a call costs the host, beside nn.LSTM
  edges       odd sizes, packed, projection, layers, directions, resets, autocast, one step
  tests       tests/gpu: both backends against float64 references
  sanitizer   compute-sanitizer's memcheck, racecheck, synccheck, initcheck on tiny shapes
  profile     kernel times of a few shapes, the names of cuDNN's kernels, ncu where it is
  report      tables and picture from all that is there; it also ends every other run
alone, and without a GPU:
  predict     us a step that csrc/cuda predicts and the kernels it chooses, beside the floor;
              predict families: what the wavefront and the projected families gain
  host        where there is no GPU, dry: the same Python and C++ on the CPU, launches checked
              and not run
  pack 90a    the library and the probe for a GPU elsewhere, which then builds neither

examples:
  ./run gpu                            all, as far as eight minutes go; again goes on from there
  ./run gpu tests                      one part
  ./run gpu tests --tests 'graph'      some of the tests, as pytest -k
  ./run gpu bench bf16 --slice 1/2     half of a part; --slice 2/2 is the other
  ./run gpu bench bf16 fp32 --minutes 20
  ./run gpu report                     from the journal of another machine, without a GPU
  ./run gpu --dry-run                  the whole program on a machine without a GPU

What is finished is kept in build/gpu/journal.jsonl, one line for each cell and test, and is not run
again while the kernels' sources, the GPU and torch are the same (--fresh begins anew). A contender
that crashes or hangs costs its own cell. To go on with it on another machine, take that file along.
Results are benchmarks/results/<gpu>-<commit>.{json,md,png}; with --out DIR, or OUT=DIR in the
environment, they go there, with the journal and one file of all logs: five files to take home.

exit status: 0 all that was asked for is done and right; 1 something is wrong (a result, a test, a
report of the sanitizer, a crash); 2 a wrong argument, or no GPU; 3 nothing is wrong, but not all is
done: run it again.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run gpu",
        description="Tests and benchmarks on a GPU, in parts that can be run again and go on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="see below; default: all")
    parser.add_argument(
        "--minutes",
        type=float,
        default=plan.MINUTES,
        help="what the run may take (default: %(default)g)",
    )
    parser.add_argument("--slice", default="1/1", metavar="K/N", help="the K-th of N shares of cells")
    parser.add_argument("--cells", type=int, metavar="COUNT", help="no more cells of a part")
    parser.add_argument("--cell-seconds", type=float, default=0.5, help="measured calls of a cell (%(default)g)")
    parser.add_argument("--tests", metavar="EXPRESSION", help="these tests, as pytest -k")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs finished")
    parser.add_argument("--dry-run", action="store_true", help="the CPU in the GPU's place, tiny shapes")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results, journal, logs")
    parser.add_argument("--commit", help="the commit's name, where git is not at hand (or FASTLSTM_COMMIT)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    started = time.time()
    if args.parts == ["predict"]:
        print(predict.text())
        return OK
    if args.parts == ["predict", "families"]:
        print(worth.text())
        return OK
    if args.parts == ["host"] and not args.dry_run and device.missing_gpu():
        host.dry()
        return OK
    if args.parts[:1] == ["pack"]:
        if len(args.parts) != 2:
            parser.error("pack: expected one architecture after it, such as 90a for an H200")
        return build.pack(args.parts[1]) or costs.pack(args.parts[1])
    try:
        parts = plan.parse_parts(args.parts)
        share = cells.parse_share(args.slice)
    except ValueError as error:
        parser.error(str(error))
    if not args.minutes > 0:
        parser.error(f"minutes: got {args.minutes:g}, expected more than 0")
    given = args.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    out = None if given is None else given.resolve()
    if args.dry_run and out == RESULTS:
        parser.error(f"out: a dry run measures nothing, and {RESULTS} is for measurements")
    if parts == ["report"] and not args.dry_run:
        return only_report(args, out)
    if args.dry_run:
        os.environ[stand_ins.VARIABLE] = "1"
        stand_ins.prepare_environment()
    forks = Forks()  # before anything is asked of the GPU
    try:
        return run(args, parts, share, out, forks, started)
    finally:
        forks.end()


def run(args: argparse.Namespace, parts, share, out: Path | None, forks: Forks, started) -> int:
    """A run of `parts`, begun at `started`; gives the exit status."""
    reason = None if args.dry_run else device.missing_gpu()
    if reason:
        print(
            f"fastlstm: no GPU to run on: {reason}.\n"
            "Run this on a machine with an NVIDIA GPU (compute capability 8.0 or later) and a "
            "torch with CUDA, or see the program at work with ./run gpu --dry-run.",
            file=sys.stderr,
        )
        return NO_GPU
    work = (out or DRY_WORK) if args.dry_run else WORK
    if args.dry_run:
        args.cells = DRY_CELLS if args.cells is None else args.cells
    described = describe(args.commit, forks)
    if described is None:
        return FAILED
    journal_path = work / "journal.jsonl"
    if args.fresh:
        for path in (journal_path, *([out / "journal.jsonl"] if out else [])):
            path.unlink(missing_ok=True)
    mirror = out / "journal.jsonl" if out is not None and out != work else None
    journal = Journal(journal_path, stamp_of(described, args.dry_run), mirror)
    journal.merge()
    journal.append("session", "session", machine=described, parts=parts)
    context = plan.Context(
        journal,
        logs=work / "logs",
        dry=args.dry_run,
        stop=started + 60 * args.minutes,
        architecture=device.architecture(described["capability"]),
        share=share,
        most_cells=args.cells,
        cell_seconds=0.01 if args.dry_run else args.cell_seconds,
        tests=args.tests,
        forks=forks,
    )
    finish = report.stream_logs(context.logs, out / "logs.txt") if out is not None else None
    states = plan.run_parts(context, parts, started + 60 * args.minutes)
    if "build" in states and not args.dry_run:  # only now is there something to say of the library
        described["fastlstm"] = machine.fastlstm_report()
        journal.append("session", "session", machine=described, parts=parts)
    final = out or (work if args.dry_run else RESULTS)
    if finish is not None:
        finish()
    report.write(journal, final, time.time() - started)
    return status_of(states, args.dry_run)


def status_of(states: dict[str, str], dry: bool = False) -> int:
    """A dry run is there to show that every part could run."""
    if "failed" in states.values() or (dry and "skipped" in states.values()):
        return FAILED
    return INCOMPLETE if {"cut", "skipped"} & set(states.values()) else OK


def only_report(args: argparse.Namespace, out: Path | None) -> int:
    """Write the results of a journal that may come from another machine."""
    path = next((p / "journal.jsonl" for p in (out, WORK) if p and (p / "journal.jsonl").exists()), None)
    stamp = None if path is None else last_stamp(path)
    if stamp is None:
        print(f"fastlstm: no run to report on in {out or WORK}", file=sys.stderr)
        return NO_GPU
    report.write(Journal(path, stamp), out or RESULTS, 0.0, args.commit)
    return OK


def describe(commit: str | None, forks: Forks) -> dict[str, object] | None:
    """The machine, asked in a process of its own: this one must not hold the GPU."""
    env = os.environ | ({"FASTLSTM_COMMIT": commit} if commit else {})
    with tempfile.TemporaryFile() as out:
        child = forks.start(["benchmarks.gpu.session"], env, out)
        try:
            child.wait(DESCRIBE_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"fastlstm: the GPU did not answer in {DESCRIBE_SECONDS:.0f} s", file=sys.stderr)
            return None
        finally:
            kill(child)
        out.seek(0)
        said = out.read().decode(errors="replace")
    try:
        return json.loads(said.strip().splitlines()[-1])
    except (IndexError, ValueError):
        print(f"fastlstm: the GPU cannot be used:\n{said[-2000:]}", file=sys.stderr)
        return None

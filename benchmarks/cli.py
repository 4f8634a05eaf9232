"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import busy, errors, floor, machine, memory, plots, report, shapes, sweep, terminal
from benchmarks.schema import SCHEMA, write

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_SECONDS = 120.0
# The share of a default run that is left for other things than cells at their fewest repetitions:
# starting, rates, tables, plot, and more repetitions of the short cells.
RESERVED = 0.35

EPILOG = """\
examples:
  python -m benchmarks                               the default list, about two minutes
  python -m benchmarks --quick                       does it run? about fifteen seconds
  python -m benchmarks --shapes 128,16,512 64,1,256  these shapes, T,N,H or T,N,I,H
  python -m benchmarks --variant packed --mode train an edge variant, its own short list
  python -m benchmarks --features                    reset_mask against a loop over nn.LSTMCell
  python -m benchmarks --memory                      peak memory of a training step
  python -m benchmarks --errors                      every backend's distance from float64
  python -m benchmarks --control --quick             nn.LSTM against itself: the machine's noise
  python -m benchmarks --save                        keep the results under CPU and commit

Every cell is checked against a float64 LSTM before it is timed. A ratio is the baseline's time
over the candidate's, so above 1 fastlstm is faster. Results go to
benchmarks/results/latest.{json,md,png}, which git ignores; with --save to
benchmarks/results/<cpu>-<commit>.{json,md,png}. The exit status is 1 if any cell failed (its row
says why), 2 for a wrong argument; a missed speed target is reported and does not change it.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time fastlstm beside nn.LSTM in one process, each cell checked first.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run (one of)").add_mutually_exclusive_group()
    what.add_argument(
        "--full",
        action="store_true",
        help="all 60 core shapes in every configuration (hours on two cores; see --longest)",
    )
    what.add_argument("--quick", action="store_true", help="four small shapes, a smoke test")
    what.add_argument(
        "--shapes", nargs="+", metavar="T,N,H", help="these shapes; T,N,I,H where I is not H"
    )
    what.add_argument(
        "--variant", choices=shapes.VARIANTS, help="the short list of an edge variant"
    )
    what.add_argument(
        "--features",
        action="store_true",
        help="reset_mask against a loop over nn.LSTMCell; more of the kind, and checkpoints: "
        "python -m benchmarks.features",
    )
    what.add_argument(
        "--memory",
        action="store_true",
        help="peak growth of a training step in fresh processes (Linux)",
    )
    what.add_argument(
        "--errors",
        action="store_true",
        help="errors of every backend and dtype against float64; times nothing",
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--dtype",
        nargs="+",
        choices=shapes.DTYPES,
        default=["float32", "bfloat16"],
        metavar="DTYPE",
        help="float32 bfloat16 float16 (default: float32 bfloat16)",
    )
    how.add_argument(
        "--mode",
        nargs="+",
        choices=shapes.MODES,
        default=list(shapes.MODES),
        metavar="MODE",
        help="infer train (default: both)",
    )
    how.add_argument(
        "--threads",
        type=thread_counts,
        default="1,all",
        metavar="LIST",
        help="thread counts, such as 1,2,all (default: 1,all; --memory: all)",
    )
    how.add_argument(
        "--seconds",
        type=positive,
        default=DEFAULT_SECONDS,
        help="what the default list is trimmed to, in all (default: %(default)g)",
    )
    how.add_argument(
        "--cell-seconds",
        type=positive,
        default=None,
        help="time to measure one cell; five repetitions at least (default: 0.5; --quick: 0.1)",
    )
    how.add_argument(
        "--longest",
        type=positive,
        default=None,
        metavar="SECONDS",
        help="with --full: leave out cells of which one call is expected to take longer",
    )
    how.add_argument(
        "--busy",
        type=int,
        default=0,
        metavar="COUNT",
        help="keep so many other processes busy meanwhile (default: 0)",
    )
    how.add_argument(
        "--control",
        action="store_true",
        help="time nn.LSTM in fastlstm's place: the ratio should be 1",
    )
    keep = parser.add_argument_group("what to keep")
    keep.add_argument(
        "--save", action="store_true", help="name the results after the CPU and the commit"
    )
    keep.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="folder for the results (default: benchmarks/results)",
    )
    keep.add_argument("--no-plot", action="store_true", help="do not draw the picture")
    return parser


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number of seconds")
    return value


def thread_counts(text: str) -> list[int]:
    """Sorted counts from ``1,2,all``, each once."""
    counts = set()
    for part in text.split(","):
        if part != "all" and not (part.isdecimal() and int(part) > 0):
            raise argparse.ArgumentTypeError(
                f"got {part!r}, expected positive whole numbers or all, such as 1,all"
            )
        counts.add(machine.all_threads() if part == "all" else int(part))
    return sorted(counts)


def choose_cells(args: argparse.Namespace) -> list[shapes.Cell]:
    """The cells that the arguments ask for; ValueError names a wrong shape."""
    config = (args.dtype, args.mode, args.threads)
    if args.shapes:
        return shapes.all_cells(shapes.parse_shapes(args.shapes), *config)
    if args.quick:
        return shapes.all_cells(shapes.quick_cases(), *config)
    if args.variant or args.features:
        return shapes.all_cells(shapes.variant_cases(args.variant or "resets"), *config)
    if args.full:
        return shapes.shorter(shapes.all_cells(shapes.core_cases(), *config), args.longest)
    return shapes.trim(shapes.core_cases(), *config, args.seconds * (1 - RESERVED))


def speed_rows(args: argparse.Namespace, cells: list[shapes.Cell], started: float) -> list[dict]:
    """Run the cells with a progress bar."""
    given = args.full or args.quick or args.shapes or args.variant or args.features
    total = None if given else args.seconds - (time.perf_counter() - started)
    # A cell of a timed list may take several times the default: few cells still use their time.
    per_cell = args.cell_seconds or (0.1 if args.quick else 0.5 if given else 2.0)
    candidate = sweep.CONTROL if args.control else sweep.CANDIDATE
    rows = []
    with terminal.progress(len(cells)) as advance:
        for row in sweep.run(cells, candidate=candidate, total=total, per_cell=per_cell):
            rows.append(row)
            advance(f"{sweep.label(row)}: {outcome(row)}")
    return rows


def memory_rows(args: argparse.Namespace) -> list[dict]:
    """Measure the memory cases with a progress bar, at the largest of the thread counts."""
    cases = memory.memory_cases()
    candidate = sweep.CONTROL if args.control else sweep.CANDIDATE
    rows = []
    with terminal.progress(len(cases) * len(args.dtype)) as advance:
        for row in memory.run(cases, args.dtype, max(args.threads), candidate):
            rows.append(row)
            advance(f"{sweep.label(row)}: {outcome(row)}")
    return rows


def error_rows() -> list[dict]:
    """Measure every contender with a progress bar."""
    found, rows = errors.contenders(), []
    with terminal.progress(len(found)) as advance:
        for group in errors.run(found):
            rows += group
            advance(errors.name_of(group[0]))
    return rows


def outcome(row: dict) -> str:
    return f"{row['ratio']:.2f}" if row["status"] == "ok" else row["error"].splitlines()[0]


def stem(args: argparse.Namespace, described: dict) -> str:
    """File name without its ending: ``latest`` or ``<cpu>-<commit>``, with the part that was run
    unless it is the core.
    """
    part = args.variant or (
        "resets"
        if args.features
        else "memory"
        if args.memory
        else "errors"
        if args.errors
        else "control"
        if args.control
        else "full"
        if args.full
        else ""
    )
    name = f"{machine.slug(described['cpu'])}-{described['commit']}" if args.save else "latest"
    isa = described["limits"].get("FASTLSTM_CPU_ISA", "")
    return "-".join(filter(None, [name, isa, part, "busy" if args.busy else ""]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run; gives the exit status."""
    started = time.perf_counter()
    parser = build_parser()
    args = parser.parse_args(argv)
    described = machine.describe()
    rates = floor.Machine()
    left_out = 0
    if args.longest is not None and not args.full:
        parser.error("longest: goes with --full; other lists are as long as they are")
    if args.busy < 0:
        parser.error(f"busy: got {args.busy}, expected a number of processes")
    if args.memory:
        reason = memory.unsupported()
        if reason:
            parser.error(reason)
        rows = memory_rows(args)
    elif args.errors:
        rows = error_rows()
    else:
        try:
            cells = choose_cells(args)
            if args.full:
                configurations = len(args.dtype) * len(args.mode) * len(args.threads)
                left_out = len(shapes.core_cases()) * configurations - len(cells)
        except ValueError as error:
            parser.error(str(error))
        if not cells:
            if args.full:
                parser.error(f"longest: {args.longest:g} leaves out every cell")
            parser.error(
                f"seconds: {args.seconds:g} is too short for any shape; give more, or name --shapes"
            )
        rates.measure_peaks(args.dtype, args.threads)
        for text in rates.disturbed():
            terminal.warn(text)
        with busy.processes(args.busy):
            rows = speed_rows(args, cells, started)
        # Again, because a rate that was disturbed would make a floor that is too high.
        rates.measure_peaks(args.dtype, args.threads)
        sweep.add_floors(rows, rates)
    described["load_average_after"] = machine.load_average()
    result = {
        "schema": SCHEMA,
        "kind": "memory" if args.memory else "errors" if args.errors else "speed",
        "machine": described,
        "settings": {
            "date": datetime.date.today().isoformat(),
            "dtypes": args.dtype,
            "modes": args.mode,
            "threads": args.threads,
            "variant": args.variant or ("resets" if args.features else "plain"),
            "control": args.control,
            "busy": args.busy,
            "longest": args.longest,
            "left_out": left_out,
            "wall_s": time.perf_counter() - started,
        },
        "rates": rates.as_dict(),
        "rows": rows,
        "summary": [] if args.memory or args.errors else report.summarize(rows),
    }
    return finish(args, result, rates)


def finish(args: argparse.Namespace, result: dict, rates: floor.Machine) -> int:
    """Show and write the result; 1 if a row failed."""
    terminal.show(report.tables(result), report.head(result))
    path = args.out / stem(args, result["machine"])
    write(result, path.with_name(path.name + ".json"))
    path.with_name(path.name + ".md").write_text(report.markdown(result))
    endings = [".json", ".md"]
    if not (args.memory or args.errors or args.no_plot):
        reason = plots.save_plot(result, path.with_name(path.name + ".png"))
        if reason:
            terminal.warn(f"no picture: {reason}")
        else:
            endings.append(".png")
    for text in [
        *rates.disturbed(),
        *sorted({text for row in result["rows"] for text in row.get("warnings", [])}),
    ]:
        terminal.warn(text)
    print(f"written: {path}{{{','.join(endings)}}}", f"in {result['settings']['wall_s']:.0f} s")
    failed = [row for row in result["rows"] if row["status"] == "failed"]
    if args.errors:
        # The table has what did not run: nn.LSTM has no float16 on some CPUs, a machine no GPU.
        return 1 if any(row["backend"] in ("cpu", "reference") for row in failed) else 0
    for row in failed:
        print(f"failed: {sweep.label(row)}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0

"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from benchmarks.common import machine, shapes, terminal
from benchmarks.common.schema import SCHEMA, write
from benchmarks.cpu import (
    busy,
    engine_rounds,
    errors,
    floor,
    memory,
    plots,
    products,
    report,
    sweep,
    tables,
)
from benchmarks.cpu.options import build_parser

# The share of a default run that is reserved for other things than the fewest repetitions of cells:
# start-up, rates, tables, plot, and further repetitions of short cells.
RESERVED = 0.35


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
    # With a time limit a cell may take several times the default, so that few cells use it up.
    per_cell = args.cell_seconds or (0.1 if args.quick else 0.5 if given else 2.0)
    candidate = sweep.CONTROL if args.control else sweep.CANDIDATE
    found = sweep.run(cells, candidate=candidate, total=total, per_cell=per_cell)
    return with_progress(found, len(cells), sweep.label, outcome)


def memory_rows(args: argparse.Namespace) -> list[dict]:
    """Measure the memory cases, at the largest of the thread counts."""
    cases = memory.memory_cases()
    candidate = sweep.CONTROL if args.control else sweep.CANDIDATE
    found = memory.run(cases, args.dtype, max(args.threads), candidate)
    return with_progress(found, len(cases) * len(args.dtype), sweep.label, outcome)


def error_rows() -> list[dict]:
    """Measure every contender."""
    found = errors.contenders()
    groups = with_progress(errors.run(found), len(found), lambda group: errors.name_of(group[0]), lambda _: "done")
    return [row for group in groups for row in group]


def product_rows(args: argparse.Namespace, rates: floor.Machine) -> list[dict]:
    """Measure the products, and the machine's peaks before and after."""
    found = products.products(args.dtype, args.threads)
    rates.measure_peaks(args.dtype, args.threads)
    measured = products.run(found, args.cell_seconds or 0.3)
    rows = with_progress(measured, len(found), products.label, products.outcome)
    rates.measure_peaks(args.dtype, args.threads)
    products.add_peaks(rows, rates)
    return rows


def peer_rows(args: argparse.Namespace, rates: floor.Machine) -> list[dict]:
    """Measure every engine at every thread count, and before that the machine's peaks, which show
    whether the cores are free.
    """
    cases = engine_rounds.cases()
    rates.measure_peaks(args.dtype, args.threads)
    rows = []
    for dtype in args.dtype:
        measured = engine_rounds.run(cases, args.threads, args.cell_seconds or 2.0, dtype)
        total = len(cases) * len(args.threads)
        rows += with_progress(measured, total, engine_rounds.label, engine_rounds.outcome)
    return rows


def with_progress(rows: Iterable, total: int, label: Callable, outcome: Callable) -> list:
    """The rows, each announced on a progress bar when it comes."""
    kept = []
    with terminal.progress(total) as advance:
        for row in rows:
            kept.append(row)
            advance(f"{label(row)}: {outcome(row)}")
    return kept


def label_of(kind: str) -> Callable[[dict], str]:
    return {"products": products.label, "peers": engine_rounds.label}.get(kind, sweep.label)


def kind_of(args: argparse.Namespace) -> str:
    """The results file's kind."""
    others = ("memory", "errors", "products", "peers")
    return next((name for name in others if getattr(args, name)), "speed")


def outcome(row: dict) -> str:
    return f"{row['ratio']:.2f}" if row["status"] == "ok" else row["error"].splitlines()[0]


def stem(args: argparse.Namespace, described: dict) -> str:
    """File name without its ending: ``latest`` or ``<cpu>-<commit>``, with the part that was run
    unless it is the core, and int8 if that was run."""
    kind = kind_of(args)
    flags = {"resets": args.features, "control": args.control, "full": args.full}
    part = args.variant or next((name for name, given in flags.items() if given), "")
    part = part if kind == "speed" else kind
    if "int8" in args.dtype:
        part = f"{part}-int8" if part else "int8"
    name = machine.stem(described, args.save)
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
    if "int8" in args.dtype and (args.memory or args.products):
        parser.error("dtype: int8 goes with --peers and with lists of shapes; it is for inference")
    if args.busy < 0:
        parser.error(f"busy: got {args.busy}, expected a number of processes")
    if args.memory:
        reason = memory.unsupported()
        if reason:
            parser.error(reason)
        rows = memory_rows(args)
    elif args.errors:
        rows = error_rows()
    elif args.products:
        with busy.processes(args.busy):
            rows = product_rows(args, rates)
    elif args.peers:
        args.dtype, args.mode = engine_rounds.dtypes(args.dtype), ["infer"]
        with busy.processes(args.busy):
            rows = peer_rows(args, rates)
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
            parser.error(f"seconds: {args.seconds:g} is too short for any shape; give more, or name --shapes")
        rates.measure_peaks(args.dtype, args.threads)
        for text in rates.disturbed():
            terminal.warn(text)
        with busy.processes(args.busy):
            rows = speed_rows(args, cells, started)
        # Again, because a disturbed measurement would give a floor that is too high.
        rates.measure_peaks(args.dtype, args.threads)
        sweep.add_floors(rows, rates)
    kind = kind_of(args)
    summarize = {"speed": report.summarize, "peers": tables.summarize_peers}.get(kind)
    described["load_average_after"] = machine.load_average()
    result = {
        "schema": SCHEMA,
        "kind": kind,
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
        "summary": summarize(rows) if summarize else [],
    }
    return finish(args, result, rates)


def finish(args: argparse.Namespace, result: dict, rates: floor.Machine) -> int:
    """Show and write the result; 1 if a row failed."""
    terminal.show(report.tables(result), report.head(result))
    path = args.out / stem(args, result["machine"])
    write(result, path.with_name(path.name + ".json"))
    path.with_name(path.name + ".md").write_text(report.markdown(result))
    endings = [".json", ".md"]
    if result["kind"] == "speed" and not args.no_plot:
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
        name = label_of(result["kind"])(row)
        print(f"failed: {name}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0

"""The tables of a GPU run: text for the terminal and for Markdown."""

from __future__ import annotations

from benchmarks.common.precision import PRECISIONS
from benchmarks.common.stand_ins import BACKENDS
from benchmarks.common.tables import Table, markdown_table, milliseconds, shape_text
from benchmarks.gpu import forced, verdicts
from benchmarks.gpu.contenders import GRAPH
from benchmarks.gpu.suite import summary as test_counts

NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "tf32": "float32 as TF32"}


def kind_of(row: dict) -> str:
    """``grid``, or which of the edges a row is: its variant, or that its sizes are odd."""
    if row["part"].startswith("bench"):
        return "grid"
    return row["variant"] if row["variant"] != "plain" else "odd sizes"


def place(row: dict) -> tuple:
    """Where a row stands among the others."""
    sizes = tuple(row[k] for k in ("T", "N", "H", "I"))
    order = list(PRECISIONS).index(row["dtype"])
    return (kind_of(row) != "grid", kind_of(row), order, row["mode"], *sizes)


def short(result: dict) -> list[Table]:
    """What the terminal shows: parts, tests that did not pass, the sanitizer, the summary."""
    made = [parts_table(result), tests_table(result)]
    if result.get("verdicts"):
        made.insert(1, verdicts_table(result))
    if result.get("families"):
        made.append(forced_table(result["families"]))
    if result.get("host"):
        made.append(host_table(result["host"]))
    if result["probe"]:
        made.append(probe_table(result["probe"]))
    if result["sanitizer"]:
        made.append(sanitizer_table(result["sanitizer"]))
    if result["summary"]:
        made.append(summary_table(result["summary"]))
    return made


def parts_table(result: dict) -> Table:
    lines = [[part, each["state"], f"{each['seconds']:.0f}"] for part, each in result["parts"].items()]
    verdicts = {"done": 2.0, "cut": 0.95, "skipped": 0.95}
    return (
        "parts",
        ["part", "state", "s"],
        lines,
        [verdicts.get(line[1]) for line in lines],
    )


def verdicts_table(result: dict) -> Table:
    found = {key: {"passes": passes} for key, passes in result["verdicts"].items()}
    lines = verdicts.table(found)
    bad = [not all(w.startswith(("ok", "not possible")) for w in line[2:]) for line in lines]
    names = ["family", "dtype", *verdicts.PASSES]
    return "verdicts beside float64", names, lines, [0.0 if b else 2.0 for b in bad]


def forced_table(rows: list[dict]) -> Table:
    """us a step of each family, measured / predicted."""
    lines = {}
    for row in rows:
        key = row["N"], row["H"], row["backward"]
        if "us" in row:
            said = f"{row['us']:.2f} / {row['predicted_us']:.2f}"
            lines.setdefault(key, {})[row["family"]] = said
    made = [
        [f"N {N}", f"H {H}", "backward" if back else "forward"] + [each.get(name, "-") for name in forced.NAMES]
        for (N, H, back), each in lines.items()
    ]
    title = "us a step by each family, measured / predicted"
    return title, ["rows", "units", "pass", *forced.NAMES], made, [None] * len(made)


def host_table(rows: list[dict]) -> Table:
    columns = ("fast_us", "torch_us", "target_us")
    lines = [[row["shape"], *(f"{row[c]:.0f}" if c in row else "-" for c in columns)] for row in rows]
    return (
        "us a call costs the host, the least",
        ["call", "FastLSTM", "nn.LSTM", "target"],
        lines,
        [None] * len(lines),
    )


def tests_table(result: dict) -> Table:
    tests = result["tests"]
    bad = {k: t for k, t in tests.items() if t["outcome"] in ("failed", "broken")}
    lines = [
        [nodeid, each["outcome"], (each["reason"].strip().splitlines() or [""])[-1][:200]]
        for nodeid, each in sorted(bad.items())
    ]
    return f"tests: {test_counts(tests)}", ["test", "outcome", "said"], lines, [None] * len(lines)


def probe_table(answers: list[dict]) -> Table:
    """What csrc/cuda/costs.h assumes, beside what was measured; the rest decides nothing yet."""
    lines = [
        [each["question"], each["detail"], f"{each['value']:.4g}", each["unit"],
         f"{each['assumed']:.4g}" if each["assumed"] else ""]
        for each in answers
    ]  # fmt: skip
    header = ["question", "detail", "measured", "unit", "assumed"]
    return "the device", header, lines, [None] * len(lines)


def sanitizer_table(rows: list[dict]) -> Table:
    lines = [
        [row["tool"], row["backend"], row["status"], f"{row['seconds']:.0f}",
         (row["said"].strip().splitlines() or [""])[0][:160]]
        for row in rows
    ]  # fmt: skip
    verdicts = {"ok": 2.0, "unavailable": 0.95}
    header = ["tool", "backend", "status", "s", "said"]
    return "compute-sanitizer", header, lines, [verdicts.get(row["status"]) for row in rows]


def summary_table(summary: list[dict]) -> Table:
    lines = [
        [
            entry["kind"],
            entry["dtype"],
            entry["mode"],
            entry["lane"],
            str(entry["cells"]),
            f"{entry['geomean']:.2f}",
            f"{entry['least']:.2f}",
            entry["worst"],
            f"{entry['floor_share']:.0%}",
        ]
        for entry in summary
    ]
    header = [
        "shapes", "dtype", "mode", "lane", "cells", "geomean", "least", "at T,N,H", "of floor",
    ]  # fmt: skip
    return "summary", header, lines, [entry["geomean"] for entry in summary]


def cell_tables(rows: list[dict]) -> list[Table]:
    """One table per dtype and mode of the grid, and of each kind of edge."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{kind_of(row)}: {NAMES[row['dtype']]}, {row['mode']}", []).append(row)
    return [cell_table(title, group) for title, group in groups.items()]


def cell_table(title: str, rows: list[dict]) -> Table:
    base = next((row["baseline"] for row in rows if row.get("baseline")), "baseline")
    lanes = [f"{name}{end}" for name in (base, *BACKENDS) for end in ("", GRAPH)]
    header = [
        "T,N,H",
        *(f"{lane} ms" for lane in lanes),
        "us a step",
        "of floor",
        "MiB",
        "other ms",
    ]
    lines, ratios = [], []
    for row in rows:
        times, best = row["times"], best_lane(row)
        line = [shape_text(row)]
        for lane in lanes:
            if lane not in times:
                note = row["notes"].get(lane)
                line.append("" if note is None else note.split(":")[0])
                continue
            text = milliseconds(times[lane]["median_s"])
            if lane in row["ratios"]:
                text += f" ({row['ratios'][lane]['ratio']:.2f})"
            line.append(text)
        if best is None:
            line += ["", "", memory(row), others(row, lanes)]
        else:
            step = times[best]["median_s"] / row["T"] * 1e6
            line += [
                f"{step:.2f}",
                f"{row['floor_share'][best]:.0%}",
                memory(row),
                others(row, lanes),
            ]
        if row["status"] == "failed":
            line[0] += f" FAILED: {row['error'][:200]}"
        lines.append(line)
        ratios.append(None if best is None else row["ratios"][best]["ratio"])
    return title, header, lines, ratios


def best_lane(row: dict) -> str | None:
    """The fastest lane of fastlstm."""
    ours = [lane for lane in row["times"] if lane.removesuffix(GRAPH) in BACKENDS]
    return min(ours, key=lambda lane: row["times"][lane]["median_s"], default=None)


def memory(row: dict) -> str:
    """Peak MiB of one call, by contender."""
    return ", ".join(
        f"{name} {size / 2**20:.0f}"
        for name, size in row["peak_bytes"].items()
        if name in (row.get("baseline"), *BACKENDS)
    )


def others(row: dict, lanes: list[str]) -> str:
    return ", ".join(
        f"{lane} {milliseconds(each['median_s'])}" for lane, each in row["times"].items() if lane not in lanes
    )


def kernel_table(profile: list[dict]) -> Table:
    lines = []
    for each in profile:
        named = "; ".join(f"{k['name']} x{k['count']} {k['us']:.0f} us" for k in each["kernels"][:4])
        said = named or each.get("note", "no kernel was seen")
        lines.append([each["case"], NAMES[each["dtype"]], each["mode"], each["contender"], said])
    header = ["case", "dtype", "mode", "contender", "kernels of one call"]
    return "kernels", header, lines, [1.0] * len(lines)


def heading(result: dict) -> str:
    m, settings = result["machine"], result["settings"]
    lines = []
    if settings["dry_run"]:
        lines += [
            "**A dry run: the CPU stood in for the GPU, with tiny shapes. Nothing was measured.**",
            "",
        ]
    lines.append(
        f"{m['gpu']} (compute capability {m['capability']}, {m['multiprocessors']} SMs, "
        f"L2 {m['l2_bytes'] / 2**20:.0f} MiB), torch {m['torch']}, CUDA {m.get('cuda')}, "
        f"cuDNN {m.get('cudnn')}, Triton {m.get('triton')}, driver "
        f"{m.get('driver_version', 'unknown')}, commit {m['commit']}, {settings['date']}."
    )
    lines.append(
        "Medians in ms by events on the GPU; in brackets the ratio of the baseline's time to the "
        "lane's (above 1 the lane is faster), eager to eager and graph to graph. `us a step`, `of "
        "floor`: the fastest lane of fastlstm, T steps, the floor of `benchmarks/gpu/floor.py`. "
        "`MiB`: peak of one call."
    )
    for precision, rates in result["rates"].items():
        lines.append(
            f"Measured ceilings, {NAMES[precision]}: copy "
            f"{rates['copy_bytes_per_s'] / 1e12:.2f} TB/s (read and written), product "
            f"{rates['product_flops_per_s'] / 1e12:.0f} TFLOP/s."
        )
    return "\n".join(lines)


def markdown(result: dict) -> str:
    made = [*short(result), *cell_tables(result["rows"])]
    if result["profile"]:
        made.append(kernel_table(result["profile"]))
    texts = [markdown_table(table) for table in made if table[2] or table[0].startswith("tests")]
    return "\n\n".join([heading(result), *texts]) + "\n"

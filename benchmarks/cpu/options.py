"""The arguments of ``python -m benchmarks``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import machine, shapes
from benchmarks.common.machine import RESULTS

DEFAULT_SECONDS = 120.0

EPILOG = """\
examples:
  python -m benchmarks                               the default list, about two minutes
  python -m benchmarks --quick                       does it run? about fifteen seconds
  python -m benchmarks --shapes 128,16,512 64,1,256  these shapes, T,N,H or T,N,I,H
  python -m benchmarks --variant packed --mode train an edge variant, its own short list
  python -m benchmarks --features                    reset_mask against a loop over nn.LSTMCell
  python -m benchmarks --memory                      peak memory of a training step
  python -m benchmarks --errors                      every backend's distance from float64
  python -m benchmarks --products                    large products beside torch.mm and oneDNN
  python -m benchmarks --peers                       ONNX Runtime and OpenVINO (extra: peers)
  python -m benchmarks --peers --dtype int8          int8 weights, beside torch's and ONNX Runtime's
  python -m benchmarks --control --quick             nn.LSTM against itself: the machine's noise
  python -m benchmarks --save                        keep the results under CPU and commit

Every cell is checked against a float64 LSTM before it is timed. A ratio is the baseline's time
over the candidate's, so above 1 fastlstm is faster: the median over rounds, beside its 95 %
interval. Results go to
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
    what.add_argument("--shapes", nargs="+", metavar="T,N,H", help="these shapes; T,N,I,H where I is not H")
    what.add_argument("--variant", choices=shapes.VARIANTS, help="the short list of an edge variant")
    what.add_argument(
        "--features",
        action="store_true",
        help="reset_mask against a loop over nn.LSTMCell; more of the kind, and checkpoints: "
        "python -m benchmarks.cpu.features",
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
    what.add_argument(
        "--products",
        action="store_true",
        help="large matrix products by themselves: the kernels' own, torch.mm, oneDNN's linear, "
        "in GF/s and as shares of the machine's peak",
    )
    what.add_argument(
        "--peers",
        action="store_true",
        help="inference (--dtype float32, int8) beside ONNX Runtime and OpenVINO, each engine in a "
        "process of its own; ./run setup bench peers installs them, and without them their column "
        "says why",
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--dtype",
        nargs="+",
        choices=shapes.DTYPES,
        default=["float32", "bfloat16"],
        metavar="DTYPE",
        help="float32 bfloat16 float16, or int8: int8 weights beside float32, inference alone, "
        "against torch's quantize_dynamic; with --peers int8 too (default: float32 bfloat16)",
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
        help="time to measure one cell; five repetitions at least (default: 0.5; --quick: 0.1; "
        "--products: 0.3; --peers: 2)",
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
    keep.add_argument("--save", action="store_true", help="name the results after the CPU and the commit")
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
            raise argparse.ArgumentTypeError(f"got {part!r}, expected positive whole numbers or all, such as 1,all")
        counts.add(machine.all_threads() if part == "all" else int(part))
    return sorted(counts)

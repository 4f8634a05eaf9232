"""Which kernel configuration serves a layer: one fixed table, by dtype, rows and units.

There is no tuning at run time, and nothing here depends on T, so a new T or N compiles nothing
beyond the two heights of tiles below. `python -m fastlstm.triton_kernels.tune` measures other
configurations on a GPU and prints a new table. The rows that stand here were chosen by reckoning
(shared memory, registers, enough programs to fill a GPU) and have not been tuned.
"""

import os
from typing import NamedTuple

import torch

WAYS = ("sequence", "step")
WAY_VARIABLE = "FASTLSTM_TRITON_WAY"
SOME = 1 << 62  # "any number" in the table


class Config(NamedTuple):
    """How a pass runs.

    way: "sequence", one launch in which each program takes some rows through all steps and streams
    the weights at every step, or "step", a launch (with a projection, two) for each step.
    block_n, block_h, block_k: rows and units of a tile, and how much of a product's sum is loaded
    at a time; powers of two.
    """

    way: str
    block_n: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int


class Row(NamedTuple):
    """The configuration for up to max_n rows and max_h units."""

    max_n: int
    max_h: int
    config: Config


# (pass, arithmetic) -> rows; the first that fits serves. A program streams all of W_hh at every
# step in a "sequence", so that ends where that takes longer than launching a kernel.
TABLE = {
    ("forward", "16bit"): (
        Row(SOME, 64, Config("sequence", 16, 64, 64, 4, 2)),
        Row(SOME, 256, Config("sequence", 16, 64, 64, 8, 3)),
        Row(32, SOME, Config("step", 16, 16, 128, 4, 4)),
        Row(SOME, SOME, Config("step", 64, 32, 64, 4, 3)),
    ),
    ("forward", "tf32"): (
        Row(SOME, 64, Config("sequence", 16, 64, 32, 4, 2)),
        Row(SOME, 192, Config("sequence", 16, 64, 32, 8, 3)),
        Row(32, SOME, Config("step", 16, 16, 64, 4, 4)),
        Row(SOME, SOME, Config("step", 64, 32, 32, 4, 3)),
    ),
    ("forward", "ieee"): (
        Row(SOME, 128, Config("sequence", 16, 32, 32, 4, 2)),
        Row(32, SOME, Config("step", 16, 16, 32, 4, 3)),
        Row(SOME, SOME, Config("step", 32, 32, 32, 4, 2)),
    ),
    ("forward", "float64"): (
        Row(SOME, 32, Config("sequence", 4, 16, 16, 4, 1)),
        Row(SOME, SOME, Config("step", 4, 16, 16, 4, 1)),
    ),
    ("backward", "16bit"): (
        Row(SOME, 64, Config("sequence", 16, 64, 64, 4, 3)),
        Row(SOME, 256, Config("sequence", 16, 64, 128, 8, 3)),
        Row(32, SOME, Config("step", 16, 16, 128, 4, 4)),
        Row(SOME, SOME, Config("step", 64, 32, 64, 4, 4)),
    ),
    ("backward", "tf32"): (
        Row(SOME, 64, Config("sequence", 16, 64, 32, 4, 3)),
        Row(SOME, 192, Config("sequence", 16, 64, 64, 8, 3)),
        Row(32, SOME, Config("step", 16, 16, 64, 4, 4)),
        Row(SOME, SOME, Config("step", 64, 32, 32, 4, 4)),
    ),
    ("backward", "ieee"): (
        Row(SOME, 128, Config("sequence", 16, 32, 32, 4, 2)),
        Row(32, SOME, Config("step", 16, 16, 32, 4, 3)),
        Row(SOME, SOME, Config("step", 32, 32, 32, 4, 2)),
    ),
    ("backward", "float64"): (
        Row(SOME, 32, Config("sequence", 4, 16, 16, 4, 1)),
        Row(SOME, SOME, Config("step", 4, 16, 16, 4, 1)),
    ),
}


def arithmetic(dtype: torch.dtype, tf32: bool) -> str:
    """The table's name for what products are made of: "16bit", "tf32", "ieee" or "float64"."""
    if dtype in (torch.bfloat16, torch.float16):
        return "16bit"
    if dtype == torch.float64:
        return "float64"
    return "tf32" if tf32 else "ieee"


def forced_way() -> str | None:
    """What the environment variable FASTLSTM_TRITON_WAY asks for, None for the table's choice.

    Raises:
        ValueError: it is set to something else than "sequence" or "step".
    """
    way = os.environ.get(WAY_VARIABLE) or None
    if way is not None and way not in WAYS:
        raise ValueError(f"{WAY_VARIABLE}: got {way!r}, expected one of {', '.join(WAYS)}")
    return way


def choose(which: str, kind: str, N: int, H: int, way: str | None = None) -> Config:
    """The configuration of pass `which` ("forward", "backward") for arithmetic `kind`.

    way: take no other. Where none of that way is meant for so many units, the widest one serves:
    every configuration is right for every size.
    """
    rows = [row for row in TABLE[which, kind] if way in (None, row.config.way)]
    for row in rows:
        if row.max_n >= N and row.max_h >= H:
            return row.config
    return rows[-1].config

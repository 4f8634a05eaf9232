"""The kernel configuration of a layer: one fixed table, by dtype, rows and units.

There is no tuning at run time, and nothing depends on T, so a new T or N compiles at most the
second of the tile heights below. `python -m fastlstm.backends.triton.tune` measures other
configurations on a GPU and prints a new table. The rows below were estimated (registers, shared
memory, bytes in flight from the cache) and have not been tuned.
"""

import os
from typing import NamedTuple

import torch

WAYS = ("resident", "sequence", "step")
WAY_VARIABLE = "FASTLSTM_TRITON_WAY"
ANY = 1 << 62  # no limit


class Config(NamedTuple):
    """The configuration of a pass.

    way: "resident", one launch in which each program runs all steps of some rows with the weights
    on chip; "sequence", the same with the weights read again at every step; or "step", a launch for
    each step (two with a projection).
    block_n, block_h, block_k: rows and units of a tile, and the depth of a product that is loaded
    at a time (unused by "resident", whose single tile has all units); powers of two, at least 16
    for tensor cores.
    """

    way: str
    block_n: int
    block_h: int
    block_k: int
    num_warps: int
    num_stages: int


class Row(NamedTuple):
    """The configuration for up to max_n rows, and up to max_h units and outputs.

    shared: KiB of shared memory that a program needs at most. projected: whether layers with a
    projection may use it.
    """

    max_n: int
    max_h: int
    config: Config
    shared: int
    projected: bool = True


# (pass, arithmetic) -> rows; the first that fits is used. "resident" ends where W_hh does not fit
# in shared memory, "sequence" where reading all of W_hh in each program takes longer than launching
# a kernel that divides it over the GPU. The last row fits any GPU.
TABLE = {
    ("forward", "16bit"): (
        Row(ANY, 32, Config("resident", 16, 32, 32, 4, 1), 16),
        Row(ANY, 64, Config("resident", 16, 64, 64, 8, 1), 48),
        Row(ANY, 128, Config("resident", 16, 128, 128, 8, 1), 152, projected=False),
        Row(ANY, 256, Config("sequence", 16, 32, 128, 8, 3), 80),
        Row(32, ANY, Config("step", 16, 16, 128, 4, 4), 80),
        Row(ANY, ANY, Config("step", 64, 32, 64, 8, 3), 80),
        Row(ANY, ANY, Config("step", 32, 32, 32, 4, 2), 32),
    ),
    ("forward", "tf32"): (
        Row(ANY, 32, Config("resident", 16, 32, 32, 4, 1), 32),
        Row(ANY, 64, Config("resident", 16, 64, 64, 8, 1), 80, projected=False),
        Row(ANY, 192, Config("sequence", 16, 32, 64, 8, 3), 80),
        Row(32, ANY, Config("step", 16, 16, 64, 4, 4), 80),
        Row(ANY, ANY, Config("step", 64, 32, 32, 8, 3), 80),
        Row(ANY, ANY, Config("step", 32, 32, 32, 8, 2), 32),
    ),
    ("forward", "ieee"): (
        Row(ANY, 32, Config("resident", 16, 32, 32, 8, 1), 32),
        Row(ANY, 64, Config("resident", 16, 64, 64, 8, 1), 80, projected=False),
        Row(ANY, 96, Config("sequence", 16, 32, 32, 4, 3), 48),
        Row(32, ANY, Config("step", 16, 16, 32, 4, 3), 32),
        Row(ANY, ANY, Config("step", 32, 32, 32, 8, 2), 32),
    ),
    ("forward", "float64"): (
        Row(ANY, 32, Config("sequence", 4, 16, 16, 8, 1), 8),
        Row(ANY, ANY, Config("step", 4, 16, 16, 4, 1), 8),
    ),
    ("backward", "16bit"): (
        Row(ANY, 32, Config("resident", 16, 32, 32, 4, 1), 16),
        Row(ANY, 64, Config("resident", 16, 64, 64, 8, 1), 48),
        Row(ANY, 128, Config("resident", 16, 128, 128, 8, 1), 152, projected=False),
        Row(ANY, 256, Config("sequence", 16, 64, 64, 8, 5), 80),
        Row(32, ANY, Config("step", 16, 16, 256, 4, 4), 80),
        Row(ANY, ANY, Config("step", 64, 32, 64, 8, 4), 80),
        Row(ANY, ANY, Config("step", 32, 32, 32, 4, 2), 32),
    ),
    ("backward", "tf32"): (
        Row(ANY, 32, Config("resident", 16, 32, 32, 4, 1), 32),
        Row(ANY, 64, Config("resident", 16, 64, 64, 8, 1), 96, projected=False),
        Row(ANY, 192, Config("sequence", 16, 32, 64, 8, 4), 48),
        Row(32, ANY, Config("step", 16, 16, 128, 4, 4), 80),
        Row(ANY, ANY, Config("step", 64, 32, 32, 8, 4), 80),
        Row(ANY, ANY, Config("step", 32, 32, 32, 4, 2), 32),
    ),
    ("backward", "ieee"): (
        Row(ANY, 96, Config("sequence", 16, 64, 32, 8, 3), 32),
        Row(32, ANY, Config("step", 16, 16, 32, 4, 3), 32),
        Row(ANY, ANY, Config("step", 32, 32, 32, 4, 2), 32),
    ),
    ("backward", "float64"): (
        Row(ANY, 32, Config("sequence", 4, 16, 16, 8, 1), 8),
        Row(ANY, ANY, Config("step", 4, 16, 16, 4, 1), 8),
    ),
}


def arithmetic(dtype: torch.dtype, tf32: bool) -> str:
    """The table's key for the precision of products: "16bit", "tf32", "ieee" or "float64"."""
    if dtype in (torch.bfloat16, torch.float16):
        return "16bit"
    if dtype == torch.float64:
        return "float64"
    return "tf32" if tf32 else "ieee"


def forced_way() -> str | None:
    """The value of the environment variable FASTLSTM_TRITON_WAY, None for the table's choice.

    Raises:
        ValueError: it is not one of WAYS.
    """
    way = os.environ.get(WAY_VARIABLE) or None
    if way is not None and way not in WAYS:
        raise ValueError(f"{WAY_VARIABLE}: got {way!r}, expected one of {', '.join(WAYS)}")
    return way


def choose(
    which: str,
    kind: str,
    N: int,
    width: int,
    *,
    projected: bool = False,
    shared: int = ANY,
    way: str | None = None,
) -> Config:
    """The configuration of pass `which` ("forward", "backward") for arithmetic `kind`.

    N: rows. width: the larger of H and P. projected: whether there is a projection. shared: KiB of
    shared memory that a program may use. way: prefer configurations of this way, even one meant for
    narrower layers; another is used only where none of them fits.
    """
    rows = [row for row in TABLE[which, kind] if row.shared <= shared] or TABLE[which, kind][-1:]
    for asked in (way, None):
        fitting = [
            row
            for row in rows
            if asked in (None, row.config.way)
            and (row.config.way != "resident" or width <= row.config.block_h)
            and (row.projected or not projected)
        ]
        for row in fitting:
            if row.max_n >= N and row.max_h >= width:
                return row.config
        if fitting and asked is not None:
            return fitting[-1].config
    return rows[-1].config

"""Prints what the numbers are taken on, one line of JSON: ``python -m benchmarks.gpu.session``."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.common import machine, stand_ins
from benchmarks.gpu.device import open_device


def collect() -> dict[str, object]:
    """The ``machine`` block of the results: that of a run on the CPU, and the GPU's."""
    described = {**machine.describe(), **open_device(stand_ins.is_dry()).describe()}
    described["commit"] = os.environ.get("FASTLSTM_COMMIT") or described["commit"]
    return described


def main(argv: list[str] | None = None) -> int:
    print(json.dumps(collect()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The size of the compiled library by source: ``python -m benchmarks.sizes``, ``./run sizes``.

The linker writes a map of every build (build/library.map, GNU ld or gold on Linux); this sums the
loaded code and data of each object, without symbols and debugging information.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import ROOT
from benchmarks.common.tables import markdown_line

MAP = ROOT / "build" / "library.map"
# " .text._ZN3foo", possibly on a line of its own, then address, size and object.
SECTION = re.compile(r"^ (\.[\w.$]+)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+(\S.*)$")
BEGIN = "Linker script and memory map"


def sizes(text: str) -> Counter[str]:
    """Bytes by object: its path in csrc, or its file name if it is from elsewhere."""
    found: Counter[str] = Counter()
    lines = re.sub(r"^( \.\S+)\n\s+0x", r"\1 0x", text.split(BEGIN)[-1], flags=re.MULTILINE)
    for line in lines.splitlines():
        match = SECTION.match(line)
        if match and int(match[2], 16):  # sections that are not loaded have no address
            found[name_of(match[4])] += int(match[3], 16)
    return found


def name_of(path: str) -> str:
    ours = re.search(r"csrc/(.+)\.o$", path)
    if ours:
        return ours[1]
    return "(libraries linked in) " + Path(path.partition("(")[0]).name


def by_part(found: Counter[str]) -> Counter[str]:
    """Sums over folders, but each instruction set separately."""
    parts: Counter[str] = Counter()
    for name, size in found.items():
        part = name
        if not name.startswith(("cpu/isa/", "(")):
            part = name.rpartition("/")[0]
        parts["(libraries linked in)" if name.startswith("(") else part] += size
    return parts


def table(found: Counter[str]) -> str:
    """In Markdown, the largest first."""
    total = sum(found.values())
    lines = [["part", "KiB", "share"], ["---"] * 3]
    for name, size in [*found.most_common(), ("all", total)]:
        lines.append([name, f"{size / 1024:.1f}", f"{size / max(total, 1):.1%}"])
    return "".join(f"{markdown_line(line)}\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("map", nargs="?", type=Path, default=MAP, help="a linker's map")
    parser.add_argument("--all", action="store_true", help="each object by itself")
    args = parser.parse_args(argv)
    if not args.map.exists():
        print(f"{args.map.name}: not there; a build on Linux writes it", file=sys.stderr)
        return 1
    found = sizes(args.map.read_text(errors="replace"))
    print(table(found if args.all else by_part(found)), end="")
    library = ROOT / "fastlstm" / "_C.abi3.so"
    if args.map == MAP and library.exists():
        print(f"\n{library.name}: {library.stat().st_size / 1024:.1f} KiB with symbols, if it has any")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each CUDA kernel may take of a multiprocessor stands in cuda_budget.json: registers, shared
memory, and nothing in local memory, which is where registers spill to.

After a change on purpose,

    python tests/cuda/test_cuda_budget.py --update

shows what is different, and writes it.
"""

import argparse
import json
import re
import sys
from functools import cache
from pathlib import Path

import pytest

if __name__ == "__main__":
    root = Path(__file__).parents[2]
    sys.path[:0] = map(str, (root, root / "tests" / "support"))

from cuda_usage import Compiled, Usage, read_dump, read_launches, read_library

from fastlstm.backends import native

FILE = Path(__file__).with_name("cuda_budget.json")
# KiB of shared memory that a block may have.
ARCHITECTURES = {"sm_80": 163, "sm_90a": 227, "sm_100a": 227}
HOW = "If that is meant: python tests/cuda/test_cuda_budget.py --update"
NO_SPILLS = "No budget allows that: a kernel must hold less, or have fewer threads"


def read_budget() -> dict:
    """{"ptx": version, "kernels": {kernel: {"shared": bytes, architecture: registers}}}; without
    "shared" if no size launches the kernel."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"ptx": None, "kernels": {}}


def write_budget(budget: dict) -> None:
    """One line for each kernel."""
    kernels = sorted(budget["kernels"].items())
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(line)}" for name, line in kernels)
    head = f'{{\n  "ptx": {json.dumps(budget["ptx"])},\n  "kernels": {{\n'
    FILE.write_text(f"{head}{lines}\n  }}\n}}\n")


def spills(kernels: dict[str, Usage]) -> list[str]:
    return [f"{name}: {u.local} bytes in local memory" for name, u in kernels.items() if u.local]


def strangers(budget: dict, kernels, key: str) -> list[str]:
    """Kernels that have no `key` in the budget, and the reverse."""
    known = {name for name, line in budget["kernels"].items() if key in line}
    new = [f"{name}: is not in {FILE.name} for {key}" for name in sorted(set(kernels) - known)]
    return new + [f"{name}: is in {FILE.name} only" for name in sorted(known - set(kernels))]


def over(budget: dict, found: dict[str, int], key: str) -> list[str]:
    """Kernels that take more than the budget's `key`, of those that are in it."""
    return [
        f"{name}: {amount} {'bytes' if key == 'shared' else 'registers'}, "
        f"{budget['kernels'][name][key]} in {FILE.name} for {key}"
        for name, amount in found.items()
        if amount > budget["kernels"].get(name, {}).get(key, amount)
    ]


def expect_none(problems: list[str], advice: str = HOW) -> None:
    if problems:
        pytest.fail("\n".join([*problems, advice]), pytrace=False)


@cache
def compiled() -> Compiled:
    if native.load() is None and not native.cuda_architectures():
        pytest.skip("the library was built without CUDA")
    found = read_library(native.library_path())
    if isinstance(found, str):
        pytest.skip(found)
    return found


def kernels_for(architecture: str) -> dict[str, Usage]:
    if architecture not in compiled().kernels:
        built = ", ".join(compiled().kernels)
        pytest.skip(f"the library was built for {built}, not for {architecture}")
    return compiled().kernels[architecture]


def launches() -> dict[str, int]:
    found = read_launches()
    if isinstance(found, str):
        pytest.skip(found)
    return found


each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@each_architecture
def test_nothing_spills(architecture):
    expect_none(spills(kernels_for(architecture)), NO_SPILLS)


@each_architecture
def test_every_kernel_is_in_the_budget(architecture):
    expect_none(strangers(read_budget(), kernels_for(architecture), architecture))


@each_architecture
def test_registers(architecture):
    kernels, budget = kernels_for(architecture), read_budget()
    if compiled().ptx not in (None, budget["ptx"]):
        pytest.skip(f"budget of the compiler of PTX {budget['ptx']}, built by {compiled().ptx}'s")
    found = {name: usage.registers for name, usage in kernels.items()}
    expect_none(over(budget, found, architecture))


@each_architecture
def test_static_shared_memory_is_not_used(architecture):
    """Kernels may have the dynamic alone; then the budget is all there is."""
    used = {name: usage.static_shared for name, usage in kernels_for(architecture).items()}
    assert {name: amount for name, amount in used.items() if amount} == {}


def test_shared_memory():
    budget = read_budget()
    expect_none([*strangers(budget, launches(), "shared"), *over(budget, launches(), "shared")])
    assert max(launches().values()) <= ARCHITECTURES["sm_90a"] << 10
    # The others are only launched where there is room.
    always = [amount for name, amount in launches().items() if not re.search("cluster|grid", name)]
    assert max(always) <= ARCHITECTURES["sm_80"] << 10


DUMP = """
Fatbin ptx code:
================
arch = sm_80
code version = [9,0]
ptxasOptions = -v

Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function void space::fine<space::Shape<int, (int)4>, (bool)1>(space::Call<float>, long):
  REG:40 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:668 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function space::none(int):
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:668 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function space::bad(int):
  REG:41 STACK:16 SHARED:1152 LOCAL:8 CONSTANT[0]:668 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_too_much_is_found():
    found = read_dump(DUMP)
    assert found.ptx == "9.0"
    kernels = found.kernels["sm_90a"]
    fine = {"fine<Shape<int, 4>, 1>": Usage(40, 0, 0), "none": Usage(8, 0, 0)}
    assert kernels == {**fine, "bad": Usage(48, 24, 128)}
    assert spills(kernels) == ["bad: 24 bytes in local memory"]
    budget = {"kernels": {"bad": {"sm_90a": 40}, "gone": {"sm_90a": 8}, "other": {"shared": 1}}}
    registers = {name: usage.registers for name, usage in kernels.items()}
    assert over(budget, registers, "sm_90a") == ["bad: 48 registers, 40 in cuda_budget.json for sm_90a"]
    assert strangers(budget, kernels, "sm_90a") == [
        "fine<Shape<int, 4>, 1>: is not in cuda_budget.json for sm_90a",
        "none: is not in cuda_budget.json for sm_90a",
        "gone: is in cuda_budget.json only",
    ]


def differences(before: dict, after: dict) -> list[str]:
    """What changed between two {kernel: {key: amount}}, one line for each kernel and key."""
    said = []
    for name in sorted(before | after):
        for key in ("shared", *ARCHITECTURES):
            was, now = (part.get(name, {}).get(key) for part in (before, after))
            if was == now:
                continue
            word = "new" if was is None else "gone" if now is None else None
            word = word or ("raised" if now > was else "lowered")
            said.append(f"{word:8}{key:8} {was or 0:>6} -> {now or 0:<6} {name}")
    return said


def update(libraries: list[Path]) -> None:
    """Write what the libraries' kernels take as the budget. What cannot be told here stays."""
    budget, found = read_budget(), read_launches()
    kernels: dict[str, dict[str, int]] = {}
    measured = set()
    if isinstance(found, str):
        print(f"shared memory stays as it was: {found}")
    else:
        measured.add("shared")
        for name, amount in found.items():
            kernels.setdefault(name, {})["shared"] = amount
    for path in libraries:
        compiled = read_library(path)
        if isinstance(compiled, str):
            print(f"registers stay as they were: {compiled}")
            continue
        budget["ptx"] = compiled.ptx or budget["ptx"]
        for architecture, usages in compiled.kernels.items():
            measured.add(architecture)
            for name, usage in usages.items():
                if usage.local:
                    print(f"spills: {name}, {architecture}: {usage.local} bytes in local memory")
                kernels.setdefault(name, {})[architecture] = usage.registers
    for name, line in budget["kernels"].items():
        kept = {key: amount for key, amount in line.items() if key not in measured}
        if kept:
            kernels[name] = kept | kernels.get(name, {})
    for name in sorted(name for name, line in kernels.items() if "shared" not in line):
        print(f"no size launches {name}, or launch_everything lacks it")
    changes = differences(budget["kernels"], kernels)
    print("\n".join(changes) or "nothing is different")
    write_budget(budget | {"kernels": kernels})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the kernels with their budget.")
    parser.add_argument("--update", action="store_true", required=True, help="and write it anew")
    parser.add_argument("libraries", nargs="*", type=Path, default=[native.library_path()])
    update(parser.parse_args().libraries)

"""The package in a fresh interpreter, with and without its parts; and its layers, one way only."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pairs import needs_library

import fastlstm

PACKAGE = Path(fastlstm.__file__).parent

# The package's rooms, lowest first: a file imports from its own room and from those below. A folder
# that stands here by itself is a room within another; the rest of a folder is one room.
ROOMS = (
    "words",
    "reference",
    "ops",
    "backends/triton",
    "backends",
    "stack/wavefront",
    "stack",
    "nn",
    "interop",
    "doors",
    "integrations",
)
# The files beside the folders: what all share, at the bottom, and what users import, at the top.
WORDS = {"_version", "checks", "fields", "int8", "precision", "torch_classes", "weights"}
DOORS = {"__init__", "__main__", "functional", "init", "testing"}

# Packages beyond torch, rich and Python's own; all but numpy are imported late.
OTHERS = {
    "backends/triton": {"triton"},
    "interop": {"numpy", "onnx", "onnxscript"},
    "integrations": {"numpy", "sb3_contrib", "tensordict", "torchrl"},
}

FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in FILES}


def room_of(name: str) -> str:
    """The room of a file, or of a folder's __init__.py, by its path in the package."""
    if "/" not in name:
        return "words" if name in WORDS else "doors" if name in DOORS else f"none, of {name}.py"
    return max((room for room in ROOMS if name.startswith(f"{room}/")), key=len, default=name)


def imported(name: str):
    """The package's files that a file imports, wherever in it, and its other imports."""
    own, others = set(), set()
    folder = name.split("/")[:-1]
    for node in ast.walk(ast.parse(NAMES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                own |= {file_of([*base, alias.name]) or file_of(base)}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return own - {None, name}, others


def file_of(parts: list[str]) -> str | None:
    """The file of a module or package, by its path in the package; None where there is none."""
    path = "/".join(parts)
    return next((p for p in (path, f"{path}/__init__".strip("/")) if p in NAMES), None)


@pytest.mark.parametrize("name", NAMES)
def test_rooms_import_downwards_only(name):
    own, others = imported(name)
    room = room_of(name)
    assert room in ROOMS, f"say in ROOMS, WORDS or DOORS where {name}.py stands"
    below = ROOMS[: ROOMS.index(room) + 1]
    above = {other: room_of(other) for other in own if room_of(other) not in below}
    assert not above, f"{name}.py, in {room}, imports from above itself: {above}"
    allowed = {"torch", "rich", *sys.stdlib_module_names}
    assert others <= allowed | OTHERS.get(room, set())


def test_every_room_has_files():
    assert set(map(room_of, NAMES)) == set(ROOMS)


def test_files_have_no_circle():
    rest = {name: imported(name)[0] for name in NAMES}
    while rest:
        bottom = [name for name, uses in rest.items() if not uses & rest.keys()]
        assert bottom, f"a circle among {sorted(rest)}"
        for name in bottom:
            del rest[name]


@pytest.mark.parametrize("folder", sorted({str(Path(n).parent) for n in NAMES if "/" in n}))
def test_every_folder_says_what_lives_in_it(folder):
    assert (PACKAGE / folder / "README.md").is_file()


def fresh(code, **environment):
    """Run code in a new interpreter in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
    )


def test_import_without_triton():
    found = fresh(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, fastlstm\n"
        "fastlstm.FastLSTM(3, 5, backend='reference')(torch.zeros(4, 2, 3))\n"
    )
    assert found.returncode == 0, found.stderr


def test_import_brings_few_modules():
    """No package beyond torch; the parts for other libraries and for tests come when asked for."""
    found = fresh(
        "import json, sys, torch\n"
        "before = set(sys.modules)\n"
        "import fastlstm\n"
        "made = [of.__name__ for of in torch.autograd.Function.__subclasses__()]\n"
        "print(json.dumps([sorted(set(sys.modules) - before), made]))\n"
    )
    assert found.returncode == 0, found.stderr
    new, made = json.loads(found.stdout)
    own = [name for name in new if name.partition(".")[0] == "fastlstm"]
    assert len(own) <= 86
    late = ("integrations", "testing", "interop.flops", "interop.opacus", "backends.report")
    assert not [name for name in own if name.startswith(tuple(f"fastlstm.{n}" for n in late))]
    # Torch's classes of an op's derivative are made at its first call (ops/library.py).
    assert len([name for name in made if name.startswith("GeneratedBackwardFor_fastlstm")]) == 0
    others = {name.partition(".")[0] for name in set(new) - set(own)}
    assert others <= {"torch", *sys.stdlib_module_names}
    assert len(new) - len(own) <= 10


def test_import_is_lean():
    found = fresh(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import fastlstm\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert not new & {'rich', 'triton', 'numpy', 'matplotlib', 'IPython'}, new\n"
        "assert 'torch._dynamo' not in set(sys.modules) - before\n"
    )
    assert found.returncode == 0, found.stderr


RUN_TWICE = """
import json, warnings, torch, fastlstm
x, lstm = torch.zeros(4, 2, 3), fastlstm.FastLSTM(3, 5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        y = lstm(x)[0]
    fastlstm.FastLSTM(3, 5)(x)
    fastlstm.FastLSTM(3, 5, backend="reference")(x)
refused = None
try:
    fastlstm.FastLSTM(3, 5, backend="cpu")(x)
except RuntimeError as error:
    refused = str(error)
print(json.dumps([[str(w.message) for w in caught], refused, list(y.shape)]))
"""


def test_without_the_library_the_reference_serves_and_says_so_once():
    found = fresh(RUN_TWICE, FASTLSTM_NATIVE="0")
    assert found.returncode == 0, found.stderr
    warned, refused, shape = json.loads(found.stdout)
    assert shape == [4, 2, 5]
    assert len(warned) == 1
    assert "slow reference backend" in warned[0]
    assert "FASTLSTM_NATIVE=0" in warned[0]
    assert "backend 'cpu' cannot run torch.float32 on 'cpu'" in refused
    assert "python -m fastlstm" in refused


@needs_library
def test_with_the_library_nothing_is_warned_of():
    found = fresh(RUN_TWICE)
    assert json.loads(found.stdout) == [[], None, [4, 2, 5]], found.stderr


def test_public_names():
    assert {"FastLSTM", "FastLSTMCell", "convert", "functional", "__version__"} <= set(fastlstm.__all__)
    assert all(hasattr(fastlstm, name) for name in fastlstm.__all__)

"""The small kernels of tests/simt/kernels as a runner, for the tests of the harness itself."""

import re
from functools import cache

import pytest

from . import build, run

SOURCES = [build.HERE / "kernels" / f"{name}.cu" for name in ("gemm", "rings", "instructions")]
SOURCES += [build.HERE / "kernels" / name for name in ("misuse.cu", "entries.cpp")]

needs_compiler = pytest.mark.skipif(
    build.compiler() is None, reason="needs a C++ compiler, and none is on PATH or named by CXX"
)


def broken_kinds():
    """Names of the enum Broken in kernels.h, in camel case without the k, to their numbers."""
    text = (build.HERE / "kernels" / "kernels.h").read_text()
    body = re.search(r"enum Broken : int \{(.*?)\};", text, re.DOTALL).group(1)
    return {name: number for number, name in enumerate(re.findall(r"^\s+k(\w+)", body, re.M))}


@cache
def runner(sanitize=False):
    if sanitize:
        return build.executable("small-sanitize", SOURCES, ["-O0"], sanitize=True)
    return build.executable("small", SOURCES)


def run_small(entry, values, seed=0, sanitize=False):
    return run.run(runner(sanitize), entry, values, seed)


@cache
def portable_runner():
    """The same with fibers by ucontext, as on machines for which there is no switch of our own."""
    fiber = build.HERE / "fiber.cpp"
    others = [*SOURCES, *(source for source in build.RUNNER if source != fiber)]
    return build.executable("small-portable", [fiber], ["-DSIMT_UCONTEXT"], harness=others)

"""Compiles CUDA sources with a C++ compiler against the harness, into build/simt.

    executable("runner", sources), library("kernels", sources)

Sources are recompiled when their text, a header they include, the flags or the compiler change.
`python tests/simt/build.py [--sanitize] NAME SOURCE...` builds an executable and prints its path.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "simt"

# Kernels read arrays of numbers as vectors and words, which CUDA allows.
FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-fno-strict-aliasing", "-ffp-contract=off"]
FLAGS += ["-fPIC", "-fvisibility=hidden"]
PLAIN = ["-O2"]
SANITIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address"]
SANITIZE_SOURCES = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]  # not the harness
INCLUDES = [HERE / "include", HERE.parent, ROOT / "csrc"]

HARNESS = ["chance", "collectives", "fiber", "ptx", "runtime", "scheduler", "shared_memory"]
HARNESS = [HERE / f"{name}.cpp" for name in [*HARNESS, "tensor_core", "threads"]]
RUNNER = [*HARNESS, HERE / "problem.cpp"]


@cache
def compiler():
    """Path of the C++ compiler, as in setup.py; None if there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


@cache
def compiler_version():
    result = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    return result.stdout


def digest(*parts):
    text = json.dumps([str(part) for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path):
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def building(target):
    """One process at a time for each file: another that wants the same waits, and finds it made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(target.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def call(command, what):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{what} failed:\n{shlex.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def fresh(target, stamp):
    """What `stamp` says, if all that `target` was made from is as it was then."""
    try:
        made_from = json.loads(stamp.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same = target.exists() and all(file_digest(path) == was for path, was in made_from.items())
    return made_from if same else None


def make(target, command, what, read_inputs):
    """Run `command`, which writes to another name first: `target` is always whole.

    `read_inputs(run)` runs it, and gives what it was made from: {path: digest}. A file that may
    have changed meanwhile has no digest, and `target` is not fresh.
    """
    stamp = target.with_suffix(target.suffix + ".json")
    passing = target.with_name(f"{os.getpid()}-{target.name}")
    inputs = read_inputs(lambda *more: call([*command, *more, "-o", passing], what))
    passing.replace(target)
    passing = stamp.with_name(f"{os.getpid()}-{stamp.name}")
    passing.write_text(json.dumps(inputs))
    passing.replace(stamp)


def read_by_compiler(run):
    """The source and all that it includes, but for what comes with the system."""
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        began = modified(folder)
        while modified(folder) == began:  # later changes are then told from earlier ones
            time.sleep(0.001)
            os.utime(folder)
        listing = Path(folder, "read")
        run("-MMD", "-MF", listing)
        text = listing.read_text().replace("\\\n", " ")
    files = [file for file in shlex.split(text.partition(":")[2]) if not file.startswith("/usr/")]
    return {file: file_digest(file) if modified(file) <= began else None for file in files}


def modified(path):
    return os.stat(path).st_mtime_ns


def compile_object(source, flags):
    key = digest(compiler(), compiler_version(), source, flags)
    target = BUILD / "objects" / f"{Path(source).stem}-{key}.o"
    with building(target):
        if fresh(target, target.with_suffix(".o.json")) is None:
            command = [compiler(), *flags, *(f"-I{path}" for path in INCLUDES)]
            make(target, [*command, "-x", "c++", "-c", source], f"compiling {source}", read_by_compiler)
    return target


def link(name, sources, harness, flags, options, sanitize):
    if compiler() is None:
        raise RuntimeError("no C++ compiler on PATH, nor named by CXX")
    base = [*FLAGS, *(SANITIZE if sanitize else PLAIN)]
    own = [*base, *(SANITIZE_SOURCES if sanitize else []), *flags]
    wanted = [(source, own) for source in sources] + [(source, base) for source in harness]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count())
    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(lambda one: compile_object(*one), wanted))
    stem, suffix = os.path.splitext(name)
    key = digest(compiler_version(), own, options, objects)
    target = BUILD / "bin" / f"{stem}-{key}{suffix}"
    with building(target):
        if fresh(target, target.with_suffix(target.suffix + ".json")) is None:

            def read_objects(run):
                inputs = {str(path): file_digest(path) for path in objects}
                run()
                return inputs

            command = [compiler(), *own, *options, *objects]
            make(target, command, f"linking {name}", read_objects)
    return target


def executable(name, sources, flags=(), sanitize=False, harness=RUNNER):
    """Path of the program made of `sources`, which define main(), and the harness.

    `flags` are for `sources` only, and come after those that all files get.
    """
    return link(name, sources, harness, flags, [], sanitize)


def library(name, sources, flags=(), options=(), sanitize=False):
    """Path of the shared library `name`.so made of `sources` and the harness.

    Visible are the simt_* functions and what `sources` mark so. `flags` are for `sources` only;
    `options` go to the linker.
    """
    return link(f"{name}.so", sources, HARNESS, flags, ["-shared", *options], sanitize)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("sources", nargs="+", type=lambda path: Path(path).resolve())
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--flags", type=shlex.split, default=[])
    arguments = parser.parse_args()
    path = executable(arguments.name, arguments.sources, arguments.flags, arguments.sanitize)
    print(path)

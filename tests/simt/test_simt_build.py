"""How tests/simt compiles: what is made anew when, and the fibers of other machines."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from simt import build, run
from simt.small_kernels import needs_compiler, portable_runner

pytestmark = needs_compiler

SOURCE = """
#include <cuda_runtime.h>
#include <iterator>
#include "answer.h"
#include "cuda/device/ptx.h"
#include "simt/problem.h"

__global__ void answer_kernel(int* to) { to[threadIdx.x] = ANSWER; }

std::string answer(simt::Problem& p) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(4);
  return cudaGetErrorString(cudaLaunchKernelEx(&config, answer_kernel, p.array<int>("to")));
}

int main(int argc, char** argv) {
  const simt::NamedEntry entries[] = {{"answer", answer}};
  const int code = simt::runner_main(argc, argv, entries, 1);
  return code == 1 ? 0 : code;
}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A source with a header, and a build folder of its own that begins with the harness."""
    (tmp_path / "answer.cu").write_text(SOURCE)
    (tmp_path / "answer.h").write_text("#define ANSWER 42")
    monkeypatch.setattr(build, "BUILD", tmp_path / "build")
    return tmp_path


def test_an_object_is_made_anew_when_what_it_includes_changes(folder):
    flags = [*build.FLAGS, "-O0"]

    def compile_it():
        target = build.compile_object(folder / "answer.cu", flags)
        return target, target.stat().st_mtime_ns

    first, made = compile_it()
    assert compile_it() == (first, made)
    (folder / "answer.h").write_text("#define ANSWER 43")
    again, made_again = compile_it()
    assert again == first
    assert made_again != made
    assert compile_it() == (first, made_again)
    other = build.compile_object(folder / "answer.cu", [*flags, "-DOTHER"])
    assert other != first


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_edit_during_the_compilation_is_not_lost(folder, monkeypatch, moment):
    """Whether the compiler saw it or not, the next time the object is made anew."""
    call, flags = build.call, [*build.FLAGS, "-O0"]

    def call_and_edit(command, what):
        edits = "-c" in command
        if edits and moment == "before":
            (folder / "answer.h").write_text("#define ANSWER 44")
        result = call(command, what)
        if edits and moment == "after":
            (folder / "answer.h").write_text("#define ANSWER 44")
        return result

    monkeypatch.setattr(build, "call", call_and_edit)
    target = build.compile_object(folder / "answer.cu", flags)
    monkeypatch.setattr(build, "call", call)
    assert build.fresh(target, target.with_suffix(".o.json")) is None
    made = target.stat().st_mtime_ns
    assert build.compile_object(folder / "answer.cu", flags) == target
    assert target.stat().st_mtime_ns != made
    assert build.fresh(target, target.with_suffix(".o.json")) is not None


@pytest.mark.parametrize("other, compiled", [([], 1), (["-DOTHER"], 2)], ids=["same", "different"])
def test_two_that_compile_at_once(folder, monkeypatch, other, compiled):
    """The second waits for the same object and finds it made; a different one is made meanwhile."""
    call, calls, together = build.call, [], threading.Barrier(compiled)

    def call_together(command, what):
        calls.append(command)
        together.wait(timeout=300)  # for ever, if one of them waited for the other
        return call(command, what)

    monkeypatch.setattr(build, "call", call_together)
    flags = [*build.FLAGS, "-O0"]
    with ThreadPoolExecutor(2) as pool:
        made = pool.map(lambda more: build.compile_object(folder / "answer.cu", [*flags, *more]), [[], other])
        assert len(set(made)) == compiled
    assert len(calls) == compiled


def test_a_compiler_error_is_shown(folder):
    (folder / "answer.h").write_text('#error "no answer today"')
    with pytest.raises(RuntimeError, match="no answer today"):
        build.compile_object(folder / "answer.cu", build.FLAGS)
    assert not list((folder / "build").rglob("*.o"))


@pytest.mark.parametrize("seed", [0, 1])
def test_fibers_by_ucontext(seed):
    """An exchange between the blocks of a cluster, on the portable switch."""
    x = torch.randint(1000, (1, 3, 128), dtype=torch.int32)
    values = {"x": x, "clusters": 1, "size": 3, "steps": 4, "broken": 0}
    outcome = run.run(portable_runner(), "ring", values, seed)
    assert outcome.code == "ok", outcome.report
    for _ in range(4):
        x = x + x.roll(1, 1).flip(2)
    assert torch.equal(outcome.arrays["x"], x)


def test_from_the_command_line(tmp_path):
    source = tmp_path / "answer.cu"
    source.write_text(SOURCE)
    (tmp_path / "answer.h").write_text("#define ANSWER 42")
    command = [sys.executable, build.HERE / "build.py", "answer", source, "--flags=-O0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    called = subprocess.run([done.stdout.strip()], capture_output=True, text=True)
    assert called.returncode == 2
    assert "expected: problem results entry seed" in called.stderr

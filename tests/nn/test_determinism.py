"""The same seed gives the same bits on the CPU: on several threads and in another process, too."""

import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from determinism_cases import (
    assert_same_bits,
    bits_of,
    problem,
    test_again_and_under_the_deterministic_setting,
    test_forked_and_checkpointed,  # noqa: F401
)
from op_cases import threads
from pairs import on_cpu

pytest.mark.shows("repeat")(test_again_and_under_the_deterministic_setting)


@pytest.fixture
def device():
    return torch.device("cpu")


@pytest.fixture(params=[on_cpu, "reference"])
def backend(request):
    return request.param


def digest(values) -> str:
    joined = hashlib.sha256()
    for v in values:
        joined.update(v.contiguous().numpy().tobytes())
    return joined.hexdigest()


def digests() -> list[str]:
    """Of a problem with every kind of dropout for each backend, on one and on two threads."""
    found = []
    for name, backend in (("dropout", "cpu"), ("variants", "cpu")):
        for count in (1, 2):
            with threads(count):
                found.append(digest(bits_of(*problem(name, backend, torch.device("cpu")))))
    return found


@pytest.mark.parametrize("backend", [on_cpu])
def test_in_another_process_and_on_several_threads(backend):
    here = digests()
    assert here == digests()
    paths = Path(__file__).parent, *sys.path
    code = "import test_determinism; print(*test_determinism.digests())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == here


@pytest.mark.parametrize("backend", [on_cpu])
def test_modules_in_threads_of_python(backend, device):
    """Calls at the same time, from threads that share the module."""
    from concurrent.futures import ThreadPoolExecutor

    module, x, hx, options = problem("plain", backend, device)
    with torch.no_grad():
        expected = copy.deepcopy(module)(x, hx, **options)[0]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: module(x, hx, **options)[0], range(8)))
    assert_same_bits(found, [expected] * 8)

"""What every test shares: the thread count, a seed of its own, the rule for tests on a GPU."""

import os
import random
import zlib
from functools import partial

import feature_table
import numpy as np
import pytest
import torch

from fastlstm.backends import native

# What the compiled library allocates itself, read when it first does.
os.environ.setdefault("FASTLSTM_POISON", "1")

# The tests of threads want as many workers as they ask for, on any machine, however busy.
os.environ.setdefault("FASTLSTM_CORES", "64")

# On a busy machine, more threads than free cores cost a small call a hundred times its time.
torch.set_num_threads(int(os.environ.get("FASTLSTM_TEST_THREADS", "1")))


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="long sweeps too (marked sweep)")


def pytest_configure(config):
    if feature_table.RECORD in os.environ:
        config.pluginmanager.register(feature_table.Recorder(os.environ[feature_table.RECORD]))
    if native.load() is not None:  # then "auto" is right to take the reference, and to say so
        config.addinivalue_line("filterwarnings", "ignore:fastlstm runs .* slow reference backend:RuntimeWarning")


def pytest_report_header(config):
    built = f"cpu library: {native.load() or native.cpu_isa()}"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {built}"


def left_out(item, mark) -> bool:
    """Whether a mark `sweep` leaves a test to --all: `sweep(but=f)` keeps those of the test's cases
    for whose parameters, by name, f is true."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return not ("but" in mark.kwargs and mark.kwargs["but"](**params))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        skip = pytest.mark.skip(reason="a long sweep: ./run test --all")
        for item in items:
            if any(map(partial(left_out, item), item.iter_markers("sweep"))):
                item.add_marker(skip)
    # Workers take the files in this order: a long one at the end would leave the others idle.
    long = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in long)
    # A dry run of ./run gpu puts the CPU in the GPU's place.
    if torch.cuda.is_available() or os.environ.get("FASTLSTM_GPU_DRY") == "1":
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch finds none")
    for item in items:
        if item.get_closest_marker("gpu") is not None:  # a folder may be called so, too
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded(request):
    """Seed all generators from the test's id, without its folder: the same numbers whichever other
    tests run, and wherever the file is moved."""
    _, _, name = request.node.nodeid.partition("::")
    seed = zlib.crc32(f"tests/{request.node.path.name}::{name}".encode())
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed formats the stack for each kind of device that is not in use yet: a millisecond a test.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@pytest.fixture
def poisoned_empty():
    """Fill what torch allocates uninitialised with NaN: a forgotten write shows. What the compiled
    library allocates is always so in tests, see FASTLSTM_POISON."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before, warn_only=warn_only)

"""Derivatives of every kind on every backend, for the table of features; the CUDA kernels run on
the CPU."""

import sys
from pathlib import Path

import pytest
import torch
from derivative_features import CHECKS
from on_backends import served_here
from pairs import on_cpu

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))
import family

no_cuda = pytest.mark.skipif(family.load() is not None, reason=str(family.load()))
BACKENDS = [on_cpu, "reference", pytest.param("cuda", marks=no_cuda)]
pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("feature", [pytest.param(f, marks=pytest.mark.shows(f), id=f) for f in CHECKS])
def test_feature(feature, backend):
    with served_here("cuda", "simt"):
        CHECKS[feature](backend, torch.device("cpu"))

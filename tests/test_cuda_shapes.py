"""Every shape of the kernels that keep the weights on the chip, on the CPU by tests/simt, against
the float64 reference; and which kernels take which sizes.

Every tensor that torch allocates is filled with NaN beforehand, and so is shared memory.
"""

from dataclasses import replace

import pytest
import torch
from cuda_kinds import check_kind, family
from op_cases import Case

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
]


def pairs(of: dict) -> list:
    return [(key, value) for key, values in of.items() for value in values]


# Every shape in clusters.h: kind, rows a cluster takes (16 where there are few multiprocessors),
# and the largest H that a shape serves, or one more than the one before does.
CLUSTERS = [("bfloat16", 8, H) for H in (64, 65, 128, 130, 256, 257, 512, 530)]
CLUSTERS += [("bfloat16", 16, H) for H in (33, 130, 257)]
CLUSTERS += [("tf32", 8, H) for H in (64, 65, 128, 130)] + [("tf32", 16, H) for H in (33, 100)]
CLUSTERS += [("tf32", 8, 258), ("float16", 8, 65), ("float16", 16, 130)]


@pytest.mark.parametrize(("kind", "rows", "H"), CLUSTERS)
def test_every_cluster_under_any_schedule(kind, rows, H):
    case = Case("recurrence", T=3, N=9, H=H, dtype=torch.float32, masks="random")
    if rows == 16:
        case = replace(case, T=2, N=17, D=2 if H <= 256 else 1)
    before = family.launches()
    with family.simulated(seed=rows + H, multiprocessors=132 if rows == 8 else 16):
        check_kind(case, kind)
    assert family.launches() - before == 2


# The shapes in float32_clusters.h: H as above, and the multiprocessors with which 2, 4, 8 and 16 of
# the 9 rows are predicted to be fastest. A sum on tensor cores is cut off as A100s do it.
FLOAT32_CLUSTERS = {64: (132, 4, 2, 1), 65: (132, 16, 10, 8), 129: (132, 27, 18, 9)}
FLOAT32_CLUSTERS |= {256: (132, 16), 257: (22, 11), 384: (132,), 385: (39,), 512: (132,)}


@pytest.mark.parametrize(("H", "multiprocessors"), pairs(FLOAT32_CLUSTERS))
def test_every_float32_cluster_under_any_schedule(H, multiprocessors):
    case = Case("recurrence", T=3, N=9, H=H, dtype=torch.float32, masks="random")
    if H > 256:
        case = replace(case, T=2, masks="resets")
    before = family.launches()
    device = {"multiprocessors": multiprocessors, "tensor_core_extra_bits": 1}
    with family.simulated(seed=multiprocessors, **device):
        check_kind(case, "float32")
    assert family.launches() - before == 2


# kind: H, N, and multiprocessors that leave room for groups of some of the rows.
GRIDS = {kind: [(100, 20, m) for m in (39, 26, 13)] for kind in ("bfloat16", "float16", "tf32")}
GRIDS["bfloat16"] += [(1030, 2, 132)]
GRIDS["tf32"] += [(520, 2, 132)]
# The shapes in float32_grid.h.
GRIDS["float32"] = [(100, 20, 39), (100, 30, 26), (300, 12, 76), (300, 8, 76), (300, 40, 76)]
GRIDS["float32"] += [(100, 2, 132), (100, 4, 40), (390, 8, 132)]
GRIDS["float32"] += [(513, 2, 132), (641, 8, 132), (1025, 3, 132), (1281, 2, 132)]


@pytest.mark.parametrize(("kind", "sizes"), pairs(GRIDS))
def test_every_grid_under_any_schedule(kind, sizes, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "grid")
    H, N, multiprocessors = sizes
    case = Case("recurrence", T=3 if H < 300 else 2, N=N, H=H, dtype=torch.float32, masks="random")
    before = family.launches()
    with family.simulated(seed=multiprocessors, multiprocessors=multiprocessors):
        check_kind(case, kind)
    # With few multiprocessors steps are predicted to be faster.
    assert family.launches() - before <= (2 if multiprocessors > 13 else 3 + 2 * case.T)


def test_a_grid_forward_and_steps_backward():
    """float32 with 16 rows a group: backward there is no room for them."""
    case = Case("recurrence", T=2, N=12, H=641, dtype=torch.float32, masks="resets")
    before = family.launches()
    check_kind(case, "float32")
    assert family.launches() - before == 1 + 2 + case.T + 1


# Every shape on clusters in projected_shapes.h: kind, rows, H, P. Outputs that leave some blocks
# without any, slices that P does not fill, one output.
PROJECTED = [("bfloat16", 8, *HP) for HP in ((100, 50), (130, 3), (200, 199), (320, 70))]
PROJECTED += [("bfloat16", 16, 130, 70), ("bfloat16", 16, 200, 130), ("float16", 8, 129, 1)]
for wide in ("tf32", "float32"):
    PROJECTED += [(wide, 8, *HP) for HP in ((50, 49), (65, 1), (140, 130))]
    PROJECTED += [(wide, 16, 70, 35), (wide, 16, 140, 131)]


@pytest.mark.parametrize(("kind", "rows", "H", "P"), PROJECTED)
def test_every_cluster_with_a_projection_under_any_schedule(kind, rows, H, P):
    case = Case("recurrence", T=3, N=9, H=H, P=P, dtype=torch.float32, masks="random")
    blocks = -(-H // (32 if kind in ("tf32", "float32") else 64))
    if rows == 16:  # room for four clusters
        case = replace(case, T=2, N=17, D=2)
    before = family.launches()
    with family.simulated(seed=rows + H + P, multiprocessors=132 if rows == 8 else 4 * blocks):
        check_kind(case, kind)
    assert family.launches() - before == 2


# kind, H, P, and the multiprocessors that leave room for groups of 8 or 16 of the rows.
PROJECTED_GRIDS = [("float16", 50, 25, 12), ("bfloat16", 50, 49, 8), ("tf32", 70, 50, 15)]
PROJECTED_GRIDS += [("tf32", 70, 1, 10), ("bfloat16", 530, 520, 132), ("float32", 70, 69, 15)]


@pytest.mark.parametrize(("kind", "H", "P", "multiprocessors"), PROJECTED_GRIDS)
def test_every_grid_with_a_projection_under_any_schedule(kind, H, P, multiprocessors, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "grid")
    case = Case("recurrence", T=3, N=20, H=H, P=P, dtype=torch.float32, masks="random")
    if H > 512:
        case = replace(case, T=2, N=2)
    before = family.launches()
    with family.simulated(seed=multiprocessors, multiprocessors=multiprocessors):
        check_kind(case, kind)
    assert family.launches() - before == 2


def test_who_takes_which_sizes():
    def launches(kind, T=3, **sizes):
        before = family.launches()
        check_kind(Case("recurrence", T=T, dtype=torch.float32, **sizes), kind)
        return family.launches() - before

    in_steps = 1 + 3 + 2 + 3 + 1
    assert launches("tf32", N=4, H=96) == 2
    with family.simulated(capability_major=8):  # no clusters there: the grid
        assert launches("tf32", N=4, H=96) == 2
        with family.simulated(multiprocessors=1):
            assert launches("tf32", N=4, H=96) == in_steps
    in_projected_steps = 1 + 2 * 3 + 3 + 2 * 3 + 1
    assert launches("tf32", N=4, H=96, P=50) == 2
    with family.simulated(capability_major=8):  # one block, then the grid
        assert launches("tf32", N=4, H=48, P=40) == launches("tf32", N=4, H=96, P=50) == 2
    # More outputs than a block takes.
    assert launches("tf32", N=4, H=2, P=300) >= in_projected_steps
    assert launches("float32", N=4, H=96, P=50) == launches("float32", N=4, H=96) == 2
    assert launches("float64", N=4, H=96, P=50) >= in_projected_steps
    assert launches("float64", N=4, H=96) == in_steps
    assert launches("bfloat16", T=2, N=2, H=800) == 2  # no cluster holds it: the grid


def test_clusters_need_code_of_their_own(monkeypatch):
    """A newer GPU, for which there is only PTX of sm_80."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "cluster step")
    before = family.launches()
    with family.simulated(capability_major=12, ptx_version=80):
        check_kind(Case("recurrence", T=3, N=4, H=96, dtype=torch.float32), "tf32")
    assert family.launches() - before == 1 + 3 + 2 + 3 + 1

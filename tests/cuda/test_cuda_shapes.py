"""Every shape of the kernels that keep the weights on the chip, on the CPU by tests/simt, against
the float64 reference.

Every tensor that torch allocates is filled with NaN beforehand, and so is shared memory.
"""

from dataclasses import replace
from unittest import mock

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


def check_shape(kind, case, shape: str, seed=0, **device):
    """Forward and backward by a shape of the kernels that stay on the chip, such as "grid:1"; by
    the step kernels in a direction that has no such shape, not in both."""
    name, number = shape.split(":")
    with mock.patch.dict("os.environ", FASTLSTM_CUDA_KERNELS=shape):
        with family.simulated(seed=seed, **device):
            sizes = (kind, case.T, case.N, case.H, case.P, case.D)
            chosen = [family.choose(*sizes, backward=backward) for backward in (False, True)]
            assert any((c.family, c.shape) == (name, int(number)) for c in chosen)
            before = family.launches()
            check_kind(case, kind)
        if {c.family for c in chosen} == {name}:
            assert family.launches() - before == 2


# The shapes in cluster/shapes.h: kind, number, and an H that they serve, some the largest, or one
# more than other shapes do. The last number has 16 rows, where there is room for them.
CLUSTERS = [("bfloat16", 0, 64), ("bfloat16", 1, 33), ("bfloat16", 0, 65), ("bfloat16", 1, 128)]
CLUSTERS += [("bfloat16", 2, 100), *(("bfloat16", number, 130) for number in (0, 2, 3))]
CLUSTERS += [("bfloat16", 1, 256), *(("bfloat16", number, 257) for number in (0, 2))]
CLUSTERS += [("bfloat16", 1, 512), ("bfloat16", 0, 530), ("float16", 0, 65), ("float16", 3, 130)]
CLUSTERS += [("tf32", 0, 64), ("tf32", 1, 33), ("tf32", 0, 65), ("tf32", 1, 128), ("tf32", 2, 100)]
CLUSTERS += [*(("tf32", number, 130) for number in range(4)), ("tf32", 0, 258)]
ROWS_16 = {(33, 1), (100, 2), (130, 3), (257, 2)}


@pytest.mark.parametrize(("kind", "number", "H"), CLUSTERS)
def test_every_cluster_under_any_schedule(kind, number, H):
    case = Case("recurrence", T=3, N=9, H=H, dtype=torch.float32, masks="random")
    if (H, number) in ROWS_16:
        case = replace(case, T=2, N=17, D=2 if H <= 256 else 1)
    check_shape(kind, case, f"cluster:{number}", seed=H + number)


# The shapes in cluster/float32_shapes.h: H as above, and their numbers. A sum on tensor cores is
# cut off as A100s do it.
FLOAT32_CLUSTERS = {64: (0, 1, 2, 3, 4, 5), 65: (0, 1, 2, 3), 129: (0, 1, 2, 3), 256: (0, 3)}
FLOAT32_CLUSTERS |= {257: (1, 2, 3), 384: (0, 2), 385: (1,), 512: (0,)}


@pytest.mark.sweep(but=lambda H, number: (H, number) not in {(384, 2), (257, 2), (385, 1)})
@pytest.mark.parametrize(("H", "number"), pairs(FLOAT32_CLUSTERS))
def test_every_float32_cluster_under_any_schedule(H, number):
    case = Case("recurrence", T=3, N=9, H=H, dtype=torch.float32, masks="random")
    if H > 256:
        case = replace(case, T=2, masks="resets")
    check_shape("float32", case, f"cluster:{number}", seed=number, tensor_core_extra_bits=1)


# kind: H, N, and the shape's number: the rows of a group.
GRIDS = {kind: [(100, 20, number) for number in range(3)] for kind in ("bfloat16", "tf32")}
GRIDS["float16"] = [(100, 20, 1)]
GRIDS["bfloat16"] += [(1030, 2, 0)]
GRIDS["tf32"] += [(520, 2, 0)]
# The shapes in grid/float32_shapes.h.
GRIDS["float32"] = [(100, 9, number) for number in range(6)]
GRIDS["float32"] += [(390, 8, 3), (513, 2, 0), (641, 8, 2), (1025, 3, 1), (1281, 2, 0)]


# Above, where a case takes seconds, two have all that these shapes have: weights in shared memory
# too, on tensor cores and without.
@pytest.mark.sweep(but=lambda sizes, **_: sizes[0] <= 100 or sizes in {(513, 2, 0), (520, 2, 0)})
@pytest.mark.parametrize(("kind", "sizes"), pairs(GRIDS))
def test_every_grid_under_any_schedule(kind, sizes):
    H, N, number = sizes
    case = Case("recurrence", T=3 if H < 300 else 2, N=N, H=H, dtype=torch.float32, masks="random")
    check_shape(kind, case, f"grid:{number}", seed=H + number)


def test_a_grid_forward_and_steps_backward(monkeypatch):
    """float32 with 16 rows a group: backward there is no room for them."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "grid")
    case = Case("recurrence", T=2, N=12, H=641, dtype=torch.float32, masks="resets")
    before = family.launches()
    check_kind(case, "float32")
    assert family.launches() - before == 1 + 2 + case.T + 1


# The shapes on clusters in projected/shapes.h: kind, number, H, P. Outputs that leave some blocks
# without any, slices that P does not fill, one output. Up to 2 have 8 rows, the others 16.
PROJECTED = [("bfloat16", 0, 100, 50), ("bfloat16", 1, 130, 3), ("bfloat16", 2, 200, 199)]
PROJECTED += [("bfloat16", 1, 320, 70), ("bfloat16", 3, 130, 70), ("bfloat16", 4, 200, 130)]
PROJECTED += [("float16", 1, 129, 1)]
for wide in ("tf32", "float32"):
    PROJECTED += [(wide, 0, 50, 49), (wide, 1, 65, 1), (wide, 2, 140, 130)]
    PROJECTED += [(wide, 3, 70, 35), (wide, 4, 140, 131)]


@pytest.mark.sweep(but=lambda kind, number, **_: (kind, number) != ("float32", 4))
@pytest.mark.parametrize(("kind", "number", "H", "P"), PROJECTED)
def test_every_cluster_with_a_projection_under_any_schedule(kind, number, H, P):
    case = Case("recurrence", T=3, N=9, H=H, P=P, dtype=torch.float32, masks="random")
    if number > 2:
        case = replace(case, T=2, N=17, D=2)
    check_shape(kind, case, f"cluster:{number}", seed=H + P)


# kind, number, H, P: 8 rows, more of W_hr, and 16 rows.
PROJECTED_GRIDS = [("float16", 0, 50, 25), ("bfloat16", 2, 50, 49), ("tf32", 0, 70, 50)]
PROJECTED_GRIDS += [("tf32", 1, 70, 1), ("bfloat16", 1, 530, 520), ("float32", 0, 70, 69)]


@pytest.mark.sweep(but=lambda H, **_: H < 512)
@pytest.mark.parametrize(("kind", "number", "H", "P"), PROJECTED_GRIDS)
def test_every_grid_with_a_projection_under_any_schedule(kind, number, H, P):
    case = Case("recurrence", T=3, N=20, H=H, P=P, dtype=torch.float32, masks="random")
    if H > 512:
        case = replace(case, T=2, N=2)
    check_shape(kind, case, f"grid:{number}", seed=H + number)

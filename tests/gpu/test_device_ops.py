"""The recurrence and layer ops of the GPU backends against the float64 reference: every dtype,
option and size.
"""

from dataclasses import replace

import pytest
import torch
from on_device import DRY, KINDS, check_kind, prefix_of, scaled
from op_cases import Case, backward, by_id, draw, forward, sampled_cases, tape_of, to

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_empty")]
kinds = pytest.mark.parametrize("kind", KINDS)


def sampled(entry: str, count: int, seed: int) -> list[Case]:
    cases = sampled_cases(entry, count, seed)
    if DRY:
        cases = [c for c in cases if c.T * c.N * c.H * max(c.I, c.outputs) < 2000]
    return cases[: scaled(count, 6)]


def kind_of(case: Case, index: int) -> str:
    name = str(case.dtype).removeprefix("torch.")
    return "tf32" if name == "float32" and index % 8 > 3 else name


@pytest.mark.parametrize(**by_id(sampled("recurrence", 40, seed=2)))
def test_recurrence(case, backend, device):
    check_kind(case, backend, kind_of(case, case.T + case.N), device)


@pytest.mark.parametrize(**by_id(sampled("layer", 16, seed=3)))
def test_layer(case, backend, device):
    check_kind(case, backend, kind_of(case, case.T + case.N), device)


# One row, a few, more than a tile; less than a tile of units, one, several with a rest.
GRID = [(3, 1, 7), (3, 17, 64), (2, 130, 33), (2, 65, 129)] if not DRY else [(2, 3, 5)]


@kinds
@pytest.mark.parametrize(("T", "N", "H"), GRID)
@pytest.mark.parametrize("P", [None, 5])
def test_tiles(T, N, H, P, kind, backend, device):
    case = Case("recurrence", T=T, N=N, H=H, P=P, D=2, dtype=torch.float32, masks="random")
    check_kind(case, backend, kind, device)


# Rows and units for every shape of the families of CUDA kernels (csrc/cuda), which take what they
# can and leave the rest to the step kernels.
FAMILY_SIZES = [(9, 64), (20, 128), (17, 250), (9, 500), (9, 700), (17, 1000), (5, 2000)]


@pytest.mark.parametrize("kernels", ["step", "cluster", "grid"])
@pytest.mark.parametrize("kind", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize(("N", "H"), FAMILY_SIZES if not DRY else [(3, 5), (9, 20)])
def test_every_family_of_cuda_kernels(kernels, kind, N, H, device, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=scaled(40, 3), N=N, H=H, dtype=torch.float32, masks="random")
    check_kind(case, "cuda", kind, device)
    check_kind(replace(case, D=2), "cuda", kind, device)


PROJECTED_SIZES = [(9, 128, 50), (20, 200, 100), (300, 500, 250), (17, 1000, 256), (20, 1000, 512)]
PROJECTED_SIZES += [(5, 2000, 901)]


@pytest.mark.parametrize("kernels", ["cluster", "grid"])
@pytest.mark.parametrize("kind", ["tf32", "bfloat16", "float16"])
@pytest.mark.parametrize(("N", "H", "P"), PROJECTED_SIZES if not DRY else [(3, 5, 2)])
def test_every_family_with_a_projection(kernels, kind, N, H, P, device, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=scaled(40, 3), N=N, H=H, P=P, dtype=torch.float32, masks="random")
    check_kind(case, "cuda", kind, device)
    check_kind(replace(case, D=2), "cuda", kind, device)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_wide(kind, backend, device):
    """Far more units than any block holds, and not a multiple of anything."""
    case = Case("recurrence", T=2, N=3, H=scaled(4097, 37), dtype=torch.float32)
    check_kind(case, backend, kind, device)


def test_many_rows(backend, device):
    case = Case("recurrence", T=2, N=scaled(5000, 70), H=20, dtype=torch.float32, masks="lengths")
    check_kind(case, backend, "float32", device)


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_no_steps_no_rows(T, N, kind, backend, device):
    case = Case("recurrence", T=T, N=N, H=5, P=2, D=2, dtype=torch.float32)
    check_kind(case, backend, kind, device)


@kinds
def test_one_unit(kind, backend, device):
    case = Case("recurrence", T=4, N=3, H=1, dtype=torch.float32, masks="random")
    check_kind(case, backend, kind, device)


@pytest.mark.parametrize("gradients", range(0, 16, 1 if not DRY else 5))
def test_gradients_that_are_not_there(gradients, backend, device):
    case = Case("recurrence", T=3, N=4, H=18, dtype=torch.float32, gradients=gradients)
    check_kind(case, backend, "float32", device)


def run_op(case, backend, arguments, gradients):
    results = forward(case, prefix_of(backend), arguments)
    return results | backward(case, prefix_of(backend), arguments, gradients, tape_of(results))


def strided(t):
    """The same numbers, every second in memory and at an address that is not a multiple of 16."""
    if t is None:
        return t
    holder = t.new_zeros([*t.shape[:-1], 2 * t.shape[-1] + 1])
    holder[..., 1::2] = t
    return holder[..., 1::2]


def shifted(t):
    """The same numbers, contiguous, one element off the start of an allocation."""
    if t is None:
        return t
    view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    view.copy_(t)
    return view


@pytest.mark.parametrize("change", [strided, shifted])
@pytest.mark.parametrize("P", [None, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_strides_and_addresses_do_not_matter(change, P, dtype, backend, device):
    case = Case("recurrence", T=3, N=5, H=16, P=P, D=2, dtype=dtype, masks="random")
    arguments, gradients = (to(None, part, device) for part in draw(case))
    plain = run_op(case, backend, arguments, gradients)
    other = run_op(case, backend, [change(a) for a in arguments], [change(g) for g in gradients])
    for name, value in plain.items():
        assert torch.equal(value, other[name]), name


def test_lengths_out_of_range_are_clamped(backend, device):
    case = Case("recurrence", T=4, N=4, H=6, D=2, dtype=torch.float32)
    arguments, gradients = (to(None, part, device) for part in draw(case))
    found = []
    for lengths in ([-3, 0, 4, 9], [0, 0, 4, 4]):
        arguments[5] = torch.tensor(lengths, device=device)
        found.append(run_op(case, backend, arguments, gradients))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("other", ["cuda", "triton", "reference"])
def test_one_tape_for_all(other, backend, device):
    """The forward of one backend differentiated by another."""
    case = Case("recurrence", T=4, N=3, H=6, P=4, D=2, dtype=torch.float64, masks="random")
    arguments, gradients = (to(torch.float64, part, device) for part in draw(case))
    tape = tape_of(forward(case, prefix_of(backend), arguments))
    got, expected = (backward(case, prefix_of(name), arguments, gradients, tape) for name in (other, "reference"))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)

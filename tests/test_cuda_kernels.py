"""The CUDA kernels, run on the CPU by tests/simt, against the float64 reference: every dtype, tile
and option.

Every tensor that torch allocates is filled with NaN beforehand, and so is shared memory.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from op_cases import Case, backward, check, draw, forward, sampled_cases, tape_of
from stretches import check_stretches

sys.path.insert(0, str(Path(__file__).parent / "simt"))
import family

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
]

# The dtype of the tensors, and to what the tensor cores round the factors of products.
KINDS = {
    "float64": (torch.float64, None),
    "float32": (torch.float32, None),
    "tf32": (torch.float32, "tf32"),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
}
kinds = pytest.mark.parametrize("kind", KINDS)
# Those that cluster kernels take; the rest always goes to the step kernels.
ON_TENSOR_CORES = [name for name, (_, factors) in KINDS.items() if factors is not None]


@pytest.fixture
def in_steps(monkeypatch):
    """Keeps the cluster kernels out."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "step")


@pytest.fixture(autouse=True)
def precision():
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


def check_kind(case: Case, kind: str) -> None:
    dtype, factors = KINDS[kind]
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    wide = case.wide and dtype in (torch.bfloat16, torch.float16)
    check(replace(case, dtype=dtype, wide=wide), "simt", factors=factors)


SAMPLED = [c for c in sampled_cases("recurrence", 75, 5) if c.T * c.N * c.H <= 4_000]


def taken_in_turns(names, count):
    """(case, kind) pairs: every sampled case with `count` of the kinds, in turns."""
    turns = itertools.cycle(names)
    pairs = [(case, next(turns)) for case in SAMPLED for _ in range(count)]
    ids = [f"{kind}-{case}" for case, kind in pairs]
    return pytest.mark.parametrize(("case", "kind"), pairs, ids=ids)


@taken_in_turns(KINDS, 2)
def test_any_case_in_steps(case, kind, in_steps):
    check_kind(case, kind)


@taken_in_turns(ON_TENSOR_CORES, 1)
def test_any_case_on_clusters(case, kind):
    before = family.launches()
    outputs = case.P if case.P is not None and case.P < case.H else None
    check_kind(replace(case, P=outputs), kind)
    assert family.launches() - before == 2 * (case.T > 0 and case.N > 0)


# Every shape in clusters.h: kind, rows a cluster takes (16 where there are few multiprocessors),
# and the largest H that a shape serves, or one more than the one before does.
CLUSTERS = [("bfloat16", 8, H) for H in (64, 65, 128, 130, 256, 257, 512, 530)]
CLUSTERS += [("bfloat16", 16, H) for H in (33, 130, 257)]
CLUSTERS += [("tf32", 8, H) for H in (64, 65, 128, 130)] + [("tf32", 16, H) for H in (33, 100)]
CLUSTERS += [("float16", 8, 65), ("float16", 16, 130)]


@pytest.mark.parametrize(("kind", "rows", "H"), CLUSTERS)
def test_every_cluster_under_any_schedule(kind, rows, H):
    case = Case("recurrence", T=3, N=9, H=H, dtype=torch.float32, masks="random")
    if rows == 16:
        case = replace(case, T=2, N=17, D=2 if H <= 256 else 1)
    before = family.launches()
    with family.simulated(seed=rows + H, multiprocessors=132 if rows == 8 else 16):
        check_kind(case, kind)
    assert family.launches() - before == 2


# Every shape on clusters in projected_shapes.h: kind, rows, H, P. Outputs that leave some blocks
# without any, slices that P does not fill, one output.
PROJECTED = [("bfloat16", 8, *HP) for HP in ((100, 50), (130, 3), (200, 199), (320, 70))]
PROJECTED += [("bfloat16", 16, 130, 70), ("bfloat16", 16, 200, 130), ("float16", 8, 129, 1)]
PROJECTED += [("tf32", 8, *HP) for HP in ((50, 49), (65, 1), (140, 130))]
PROJECTED += [("tf32", 16, 70, 35), ("tf32", 16, 140, 131)]


@pytest.mark.parametrize(("kind", "rows", "H", "P"), PROJECTED)
def test_every_cluster_with_a_projection_under_any_schedule(kind, rows, H, P):
    case = Case("recurrence", T=3, N=9, H=H, P=P, dtype=torch.float32, masks="random")
    device = {}
    if rows == 16:  # room for four clusters
        case = replace(case, T=2, N=17, D=2)
        blocks = -(-H // (64 if kind != "tf32" else 32))
        device = {"multiprocessors": 4 * blocks, "max_threads_multiprocessor": 256}
    before = family.launches()
    with family.simulated(seed=rows + H + P, **device):
        check_kind(case, kind)
    assert family.launches() - before == 2


# kind, H, P, and the multiprocessors that leave room for groups of 8 or 16 of the rows.
PROJECTED_GRIDS = [("float16", 50, 25, 12), ("bfloat16", 50, 49, 8), ("tf32", 70, 50, 15)]
PROJECTED_GRIDS += [("tf32", 70, 1, 10), ("bfloat16", 530, 520, 132)]


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


# kind, H, and the multiprocessors that leave room for groups of 8, 16 or 32 of the 20 rows.
GRIDS = [(kind, 100, m) for kind in ON_TENSOR_CORES for m in (39, 26, 13)]


@pytest.mark.parametrize(("kind", "H", "multiprocessors"), [*GRIDS, ("bfloat16", 1030, 132)])
def test_every_grid_under_any_schedule(kind, H, multiprocessors, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "grid")
    case = Case("recurrence", T=3, N=20, H=H, dtype=torch.float32, masks="random")
    if H > 512:
        case = replace(case, T=2, N=2)
    before = family.launches()
    with family.simulated(seed=multiprocessors, multiprocessors=multiprocessors):
        check_kind(case, kind)
    assert family.launches() - before <= 3 + 2 * case.T


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
    assert (
        launches("tf32", N=4, H=2, P=300) >= in_projected_steps
    )  # more outputs than a block takes
    assert launches("float32", N=4, H=96, P=50) >= in_projected_steps
    assert launches("float32", N=4, H=96) >= in_steps
    assert launches("bfloat16", T=2, N=2, H=800) == 2  # no cluster holds it: the grid


# With few multiprocessors the larger tiles serve even the sizes that a test can afford.
TILES = {"narrow": 10_000, "medium": 4, "large": 1}


@kinds
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("seed", "P"), [(1, None), (2, 70)])
def test_every_tile_under_any_schedule(kind, tile, seed, P, in_steps):
    case = Case("recurrence", T=2, N=131, H=75, P=P, D=2, dtype=torch.float32, masks="random")
    if kind == "float64":
        case = replace(case, N=17)
    with family.simulated(seed, multiprocessors=TILES[tile]):
        check_kind(case, kind)


REPEATED = [(kind, kernels, None) for kind in KINDS for kernels in ("step", "cluster", "grid")]
REPEATED += [("tf32", kernels, 21) for kernels in ("cluster", "grid")]


@pytest.mark.shows("repeat", backend="cuda")
@pytest.mark.parametrize(("kind", "kernels", "P"), REPEATED)
def test_results_repeat_bit_by_bit_under_any_schedule(kind, kernels, P, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=4, N=19, H=40, P=P, dtype=KINDS[kind][0], masks="random")
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    arguments, gradients = draw(case)
    found = []
    for seed in range(4):
        with family.simulated(seed):
            results = forward(case, "simt", arguments)
            results |= backward(case, "simt", arguments, gradients, tape_of(results))
        found.append(results)
    for other in found[1:]:
        for name, value in other.items():
            assert torch.equal(value, found[0][name]), name


@pytest.mark.parametrize("kind", ["float64", "float32", "tf32"])
@pytest.mark.parametrize(
    ("kernels", "P"), [("step", None), ("step", 7), ("auto", None), ("grid", None)]
)
def test_a_sequence_cut_in_stretches(kind, kernels, P, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    sizes = {"T": 5, "N": 9, "H": 20, "P": P, "dtype": KINDS[kind][0]}
    check_stretches(Case("recurrence", masks="random", **sizes), "simt", at=2)
    check_stretches(Case("recurrence", gradients=0b0001, **sizes), "simt", at=4)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second in memory and at an address that is not a multiple of 16."""
    if t is None or t.dim() == 0:
        return t
    holder = t.new_zeros([*t.shape[:-1], 2 * t.shape[-1] + 1])
    view = holder[..., 1::2]
    view.copy_(t)
    return view


def shifted(t: torch.Tensor) -> torch.Tensor:
    """The same numbers, contiguous, one element off the start of an allocation."""
    if t is None:
        return t
    view = t.new_empty(t.numel() + 1)[1:].view(t.shape)
    view.copy_(t)
    return view


@pytest.mark.parametrize("change", [strided, shifted])
@pytest.mark.parametrize("P", [None, 8])
@pytest.mark.parametrize("kernels", ["step", "auto"])
def test_strides_and_addresses_do_not_matter(change, P, kernels, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=3, N=5, H=16, P=P, D=2, dtype=torch.bfloat16, masks="random")
    arguments, gradients = draw(case)
    plain = forward(case, "simt", arguments)
    plain |= backward(case, "simt", arguments, gradients, tape_of(plain))
    other = forward(case, "simt", [change(a) for a in arguments])
    tape = [change(t) for t in tape_of(other)]
    other |= backward(
        case, "simt", [change(a) for a in arguments], [change(g) for g in gradients], tape
    )
    for name, value in plain.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0), (0, 0)])
def test_no_steps_and_no_rows_launch_nothing(T, N):
    case = Case("recurrence", T=T, N=N, H=5, P=2, D=2, dtype=torch.float32)
    before = family.launches()
    check(case, "simt")
    assert family.launches() == before


@pytest.mark.parametrize("gradients", range(16))
def test_gradients_that_are_not_there(gradients):
    case = Case("recurrence", T=3, N=4, H=7, dtype=torch.float32, gradients=gradients)
    check_kind(case, "float32")
    check_kind(replace(case, P=3, masks="random"), "float32")
    check_kind(case, "float16")
    check_kind(replace(case, P=3, masks="random"), "float16")


def test_lengths_out_of_range_are_clamped():
    case = Case("recurrence", T=4, N=4, H=6, D=2, dtype=torch.float64)
    arguments, gradients = draw(case)
    arguments[5] = torch.tensor([-3, 0, 4, 9])
    clamped = [*arguments[:5], torch.tensor([0, 0, 4, 4]), None]
    found = []
    for given in (arguments, clamped):
        results = forward(case, "simt", given)
        found.append(results | backward(case, "simt", given, gradients, tape_of(results)))
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_one_launch_a_step_for_both_directions():
    case = Case("recurrence", T=6, N=3, H=8, D=2, dtype=torch.float32)
    arguments, gradients = draw(case)
    before = family.launches()
    results = forward(case, "simt", arguments)
    assert family.launches() - before == 1 + case.T
    before = family.launches()
    backward(case, "simt", arguments, gradients, tape_of(results))
    # Beside the steps: the weights transposed, the first states, the initial states.
    assert family.launches() - before == 2 + case.T + 1


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_a_launch_that_fails_is_named_with_its_sizes(which):
    case = Case("recurrence", T=2, N=3, H=8, P=4, dtype=torch.float32)
    arguments, gradients = draw(case)
    tape = tape_of(forward(case, "reference", arguments))
    run = {
        "forward": lambda: forward(case, "simt", arguments),
        "backward": lambda: backward(case, "simt", arguments, gradients, tape),
    }[which]
    invalid_configuration = 9
    kernel = "copy_matrix" if which == "backward" else "forward_kernel_start"
    expected = rf"launching lstm_(kernel_)?{kernel} for T=2, N=3, D=1, H=8, P=4: .*configuration"
    with (
        family.simulated(fail_launch=invalid_configuration),
        pytest.raises(RuntimeError, match=expected),
    ):
        run()
    run()
    check(case, "simt")


def test_too_little_shared_memory_is_an_error():
    case = Case("recurrence", T=2, N=200, H=130, dtype=torch.float32)
    arguments, _ = draw(case)
    with (
        family.simulated(multiprocessors=1, max_shared_opt_in=50 << 10),
        pytest.raises(RuntimeError, match="lstm_forward_kernel_step for T=2, N=200, D=1, H=130"),
    ):
        forward(case, "simt", arguments)


WRONG = {
    "gates_x": (0, lambda t: t[..., :-1], "gates_x has shape"),
    "h0": (1, lambda t: t[:, :2], r"h0 has shape \(1, 2, 5\), expected \(1, 3, 5\)"),
    "c0": (2, lambda t: t.double(), "c0 has a dtype that does not fit"),
    "weight_hh": (3, lambda t: t.to("meta"), "weight_hh is on|device"),
    "lengths": (5, lambda _: torch.zeros(3, dtype=torch.int32), "lengths has a dtype"),
    "reset_mask": (6, lambda _: torch.zeros(4, 3), "reset_mask has a dtype"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    case = Case("recurrence", T=4, N=3, H=5, dtype=torch.float32)
    arguments, _ = draw(case)
    place, change, message = WRONG[name]
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match=message):
        forward(case, "simt", arguments)


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_out_of_memory_is_torchs_own_error(which):
    case = Case("recurrence", T=1, N=1, H=1, dtype=torch.float32)
    arguments, _ = draw(case)
    tape = tape_of(forward(case, "simt", arguments))
    T = N = 2**24  # petabytes of output, from one number
    many = [t.expand(T, N, *t.shape[2:]) for t in (arguments[0], *tape)]
    huge = [many[0], *(t.expand(1, N, 1) for t in arguments[1:3]), *arguments[3:]]
    with pytest.raises(RuntimeError, match=r"allocate memory|not enough memory|Storage size"):
        if which == "forward":
            forward(case, "simt", huge)
        else:
            backward(case, "simt", huge, [None] * 4, many[1:])
    check(case, "simt")


def test_clusters_need_code_of_their_own(monkeypatch):
    """A newer GPU, for which there is only PTX of sm_80."""
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "cluster step")
    before = family.launches()
    with family.simulated(capability_major=12, ptx_version=80):
        check_kind(Case("recurrence", T=3, N=4, H=96, dtype=torch.float32), "tf32")
    assert family.launches() - before == 1 + 3 + 2 + 3 + 1


@kinds
def test_large_tiles_only_where_they_fit(kind, in_steps):
    case = Case("recurrence", T=1, N=131, H=75, P=70, dtype=torch.float32)
    with family.simulated(multiprocessors=1, max_shared_opt_in=99 << 10):
        check_kind(case, kind)

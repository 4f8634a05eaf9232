"""The CUDA kernels, run on the CPU by tests/simt, against the float64 reference: every dtype, tile
and option.

Every tensor that torch allocates is filled with NaN beforehand, and so is shared memory.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from chunks_of_steps import check_chunks_of_steps
from cuda_kinds import KINDS, ON_CHIP, check_kind, family, kinds
from op_cases import Case, backward, check, draw, forward, sampled_cases, tape_of

pytestmark = [
    pytest.mark.skipif(family.load() is not None, reason=str(family.load())),
    pytest.mark.usefixtures("poisoned_empty"),
]


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


SAMPLED = [c for c in sampled_cases("recurrence", 75, 5) if c.T * c.N * c.H <= 4_000]


def taken_in_turns(names, count):
    """(case, kind) pairs: every sampled case with `count` of the kinds, in turns."""
    turns = itertools.cycle(names)
    pairs = [(case, next(turns)) for case in SAMPLED for _ in range(count)]
    ids = [f"{kind}-{case}" for case, kind in pairs]
    return pytest.mark.parametrize(("case", "kind"), pairs, ids=ids)


def every_second(case, **_):
    return SAMPLED.index(case) % 2 == 0


@pytest.mark.sweep(but=every_second)
@taken_in_turns(KINDS, 2)
def test_any_case_in_steps(case, kind, in_steps):
    check_kind(case, kind)


@pytest.mark.sweep(but=every_second)
@taken_in_turns(ON_CHIP, 1)
def test_any_case_on_clusters(case, kind, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "cluster")
    before = family.launches()
    outputs = case.P if case.P is not None and case.P < case.H else None
    check_kind(replace(case, P=outputs), kind)
    assert family.launches() - before == 2 * (case.T > 0 and case.N > 0)


# With few multiprocessors the larger tiles serve even the sizes that a test can afford.
TILES = {"narrow": 10_000, "medium": 4, "large": 1}


def in_turn(kind, tile, P, **_):
    """Each tile of each kind, with a projection or without."""
    return (list(KINDS).index(kind) + list(TILES).index(tile)) % 2 == (P is None)


@pytest.mark.sweep(but=in_turn)
@kinds
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize(("seed", "P"), [(1, None), (2, 70)])
def test_every_tile_under_any_schedule(kind, tile, seed, P, in_steps):
    case = Case("recurrence", T=2, N=131, H=75, P=P, D=2, dtype=torch.float32, masks="random")
    if kind == "float64":
        case = replace(case, N=17)
    with family.simulated(seed, multiprocessors=TILES[tile]):
        check_kind(case, kind)


# float64 has step kernels alone.
FAMILIES = [("float64", "step")]
FAMILIES += [(kind, kernels) for kind in ON_CHIP for kernels in ("step", "cluster", "grid")]
REPEATED = [(*each, None) for each in FAMILIES]
REPEATED += [("tf32", kernels, 21) for kernels in ("cluster", "grid")]


# Waits and barriers are the same for all kinds.
@pytest.mark.sweep(but=lambda kind, P, **_: kind in ("float64", "bfloat16") or P is not None)
@pytest.mark.shows("repeat", backend="cuda")
@pytest.mark.parametrize(("kind", "kernels", "P"), REPEATED)
def test_results_repeat_bit_by_bit_under_any_schedule(kind, kernels, P, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=4, N=11, H=40, P=P, dtype=KINDS[kind][0], masks="random")
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


@pytest.mark.sweep(but=lambda kind, kernels, **_: kind == "bfloat16" or kernels == "step")
@pytest.mark.parametrize("P", [None, 7])
@pytest.mark.parametrize(("kind", "kernels"), FAMILIES)
def test_a_sequence_cut_in_chunks(kind, kernels, P, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if kind == "tf32" else "ieee"
    sizes = {"T": 5, "N": 9, "H": 20, "P": P, "dtype": KINDS[kind][0]}
    with family.simulated(seed=3):
        check_chunks_of_steps(Case("recurrence", masks="random", **sizes), "simt", at=2)
    check_chunks_of_steps(Case("recurrence", gradients=0b0001, **sizes), "simt", at=4)


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
@pytest.mark.parametrize("kernels", ["step", "cluster"])
def test_strides_and_addresses_do_not_matter(change, P, kernels, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=3, N=5, H=16, P=P, D=2, dtype=torch.bfloat16, masks="random")
    arguments, gradients = draw(case)
    plain = forward(case, "simt", arguments)
    plain |= backward(case, "simt", arguments, gradients, tape_of(plain))
    other = forward(case, "simt", [change(a) for a in arguments])
    tape = [change(t) for t in tape_of(other)]
    other |= backward(case, "simt", [change(a) for a in arguments], [change(g) for g in gradients], tape)
    for name, value in plain.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("T", "N"), [(0, 3), (3, 0), (0, 0)])
def test_no_steps_and_no_rows_launch_nothing(T, N):
    case = Case("recurrence", T=T, N=N, H=5, P=2, D=2, dtype=torch.float32)
    before = family.launches()
    check(case, "simt")
    assert family.launches() == before


@pytest.mark.parametrize("gradients", range(16))
def test_gradients_that_are_not_there(gradients, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", "cluster")
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


def test_one_launch_a_step_for_both_directions(in_steps):
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
def test_a_launch_that_fails_is_named_with_its_sizes(which, in_steps):
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


def test_too_little_shared_memory_is_an_error(in_steps):
    case = Case("recurrence", T=2, N=256, H=128, dtype=torch.float32)
    arguments, _ = draw(case)
    with (
        family.simulated(multiprocessors=1, max_shared_opt_in=50 << 10),
        pytest.raises(RuntimeError, match="lstm_forward_kernel_step for T=2, N=256, D=1, H=128"),
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


@kinds
def test_large_tiles_only_where_they_fit(kind, in_steps):
    case = Case("recurrence", T=1, N=131, H=75, P=70, dtype=torch.float32)
    with family.simulated(multiprocessors=1, max_shared_opt_in=99 << 10):
        check_kind(case, kind)

"""Which family of CUDA kernels takes which sizes, by what csrc/cuda predicts of a simulated device;
what it chooses where the device has less; and launches that fail."""

import itertools
import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from cuda_kinds import ON_CHIP, check_kind, family
from op_cases import Case, backward, draw, forward, tape_of

from benchmarks.gpu import predict
from fastlstm.stack.wavefront import plan as wavefront

pytestmark = pytest.mark.skipif(family.load() is not None, reason=str(family.load()))

# A byte more than other tests' devices have: answers are kept by device.
H200 = {**predict.H200, "max_shared_opt_in": (227 << 10) + 1}
BOTH = (False, True)


def offered(name: str, *call, **options):
    """What a family, or one of its shapes, offers for a call; None if it cannot take it."""
    with mock.patch.dict("os.environ", FASTLSTM_CUDA_KERNELS=name):
        found = family.choose(*call, **options)
    return found if found.family == name.partition(":")[0] else None


def cost(choice, T: int) -> float:
    return choice.once + choice.step * T


# (kind, N, H, T): forward and backward. c, g, s for cluster, grid and step.
EXPECTED = {
    ("bfloat16", 1, 64, 1024): "cc",
    ("bfloat16", 16, 256, 1024): "cc",
    ("bfloat16", 64, 512, 1024): "cc",
    ("bfloat16", 64, 768, 1024): "sc",
    ("bfloat16", 16, 768, 1024): "gg",
    ("bfloat16", 16, 1024, 1024): "gg",
    ("bfloat16", 1, 2048, 1024): "gs",
    ("bfloat16", 256, 1024, 1024): "ss",  # bound by its product
    ("bfloat16", 256, 2048, 1024): "ss",
    ("float16", 16, 1024, 1024): "gg",
    ("tf32", 16, 256, 1024): "cc",
    ("tf32", 1, 768, 1024): "gg",
    ("tf32", 256, 512, 1024): "sc",
    ("float32", 16, 128, 1024): "cc",
    ("float32", 1, 512, 1024): "gg",
    ("float32", 16, 1024, 1024): "gs",
    ("float32", 64, 1024, 1024): "ss",
    ("float64", 1, 64, 1024): "ss",
    # The weights' way onto the chip pays for many steps only.
    ("bfloat16", 1, 512, 1): "ss",
    ("bfloat16", 1, 768, 4): "gg",
    ("bfloat16", 1, 768, 64): "gg",
    ("bfloat16", 1, 64, 4): "cc",
    ("float32", 1, 128, 1): "cc",
}


def test_the_table():
    with family.simulated(**H200):
        found = {
            (kind, N, H, T): "".join(family.choose(kind, T, N, H, backward=which).family[0] for which in BOTH)
            for kind, N, H, T in EXPECTED
        }
    assert found == EXPECTED


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "tf32", "float32"])
def test_where_the_wavefront_reckons_with_clusters(kind):
    """`wavefront.ONE_LAUNCH` is where clusters are chosen, in both directions and for few rows."""
    kept = {"tf32": "tf32", "float32": "ieee"}.get(kind, "16bit")
    most = wavefront.ONE_LAUNCH["lstm"][kept], wavefront.ONE_LAUNCH_PROJECTED[kept]
    with family.simulated(**H200):
        for projected, H in zip((False, True), most, strict=True):

            def chosen(H, T=1024, projected=projected):
                P = H // 2 if projected else None
                return {
                    family.choose(kind, T, N, H, P, backward=which).family
                    for N, which in itertools.product((1, 16), BOTH)
                }

            for units in (16, H // 2, H - 1, H):
                assert chosen(units) == {"cluster"}
            assert chosen(H + 64) != {"cluster"}


SIZES = list(itertools.product((1, 9, 64, 300), (1, 64, 100, 500, 1100), (None, 40)))


@pytest.mark.parametrize("kind", ON_CHIP)
def test_the_least_is_chosen_and_less_of_the_device_is_no_faster(kind):
    poorer = [
        H200 | {"multiprocessors": 60},
        H200 | {"capability_major": 8},
        H200 | {"cooperative": 0},
        H200 | {"max_shared_opt_in": 99 << 10},
        H200 | {"multiprocessors": 131, "multiprocessors_together": 9},
    ]
    for (N, H, P), T, which in itertools.product(SIZES, (1, 100), BOTH):
        call, options = (kind, T, N, H, P), {"backward": which}
        if P is not None and P >= H:
            continue
        with family.simulated(**H200):
            offers = [offered(name, *call, **options) for name in ("cluster", "grid", "step")]
            best = family.choose(*call, **options)
            more_rows = family.choose(kind, T, 2 * N, H, P, **options)
            both_directions = family.choose(*call, D=2, **options)
        assert cost(best, T) == min(cost(offer, T) for offer in offers if offer)
        assert best in offers
        # More work takes no less. (More units may: they may belong to a better shape.)
        assert cost(more_rows, T) >= cost(best, T)
        assert cost(both_directions, T) >= cost(best, T)
        for device in poorer:
            with family.simulated(**device):
                assert cost(family.choose(*call, **options), T) >= cost(best, T), device


def test_nothing_is_chosen_that_does_not_fit():
    call = ("bfloat16", 1024, 1, 768)
    with family.simulated(**H200):
        assert family.choose(*call).family == "grid"
    with family.simulated(**H200, cooperative=0):
        assert offered("grid", *call) is None
        assert family.choose(*call).family == "cluster"
        assert offered("grid", "bfloat16", 1024, 1, 512, 256) is None
    with family.simulated(**H200, cooperative=0, capability_major=8):
        assert offered("cluster", *call) is None
        assert family.choose(*call).family == "step"
    with family.simulated(multiprocessors=95):  # 96 blocks of 8 units
        assert offered("grid", *call) is None
    with family.simulated(multiprocessors=96):
        assert offered("grid", *call) is not None
    with family.simulated(multiprocessors=133, multiprocessors_together=7):
        assert offered("cluster", *call) is None  # 16 blocks
    with family.simulated(**{**H200, "max_shared_opt_in": 64 << 10}):
        assert offered("cluster", *call) is None
        assert offered("grid", *call) is not None
    with family.simulated(multiprocessors=129, multiprocessors_together=43, ptx_version=80):
        assert offered("cluster", *call) is None  # there is only PTX of an older GPU


def shapes_on_clusters(*call, backward: bool) -> list[int]:
    """The numbers of the shapes that the family offers for a call."""
    names = [f"cluster:{number}" for number in range(8)]
    return [k for k, name in enumerate(names) if offered(name, *call, backward=backward)]


SMALL = list(itertools.product((2, 16, 17, 32, 64), (False, True), BOTH))


@pytest.mark.parametrize("kind", ON_CHIP)
def test_no_cluster_has_one_block(kind, monkeypatch):
    """There st.async is undefined, and the emulation says so: every shape that is chosen for any
    number of rows, or can be named, runs a step after another."""
    run = set()
    for H, projected, which in SMALL:
        P = H // 2 if projected else None
        with family.simulated(**H200):
            rows = (1, 64, 265, 530, 1060, 2120, 9000)
            chosen = [family.choose(kind, 1024, N, H, P, backward=which) for N in rows]
            numbers = {c.shape for c in chosen if c.family == "cluster"}
            numbers |= set(shapes_on_clusters(kind, 1024, 1, H, P, backward=which))
        assert numbers
        run |= {(H, P, number) for number in numbers}
    case = Case("recurrence", T=2, N=1, H=1, dtype=torch.float32)
    for H, P, number in sorted(run, key=str):
        monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", f"cluster:{number}")
        check_kind(replace(case, H=H, P=P), kind)


@pytest.mark.parametrize("kind", ON_CHIP)
def test_with_ptx_of_an_older_gpu_no_kernel_for_clusters_is_offered(kind):
    """It is empty there: a GPU later than those compiled for takes the PTX of compute_80."""
    for H, projected, which in SMALL:
        call = (kind, 1024, 300, H, H // 2 if projected else None)
        with family.simulated(multiprocessors=127, capability_major=8):
            without_clusters = shapes_on_clusters(*call, backward=which)
        with family.simulated(multiprocessors=126, capability_major=12, ptx_version=80):
            assert shapes_on_clusters(*call, backward=which) == without_clusters
        with family.simulated(multiprocessors=125, capability_major=12, ptx_version=90):
            assert set(shapes_on_clusters(*call, backward=which)) >= set(without_clusters)


def test_clusters_that_find_no_room_wait():
    with family.simulated(multiprocessors=136, multiprocessors_together=17):  # 32 of 4 blocks
        roomy = offered("cluster", "bfloat16", 1024, 256, 512)
    with family.simulated(multiprocessors=128, multiprocessors_together=8):  # none of 16 blocks
        tight = offered("cluster", "bfloat16", 1024, 256, 512)
        again = offered("cluster", "bfloat16", 1024, 512, 512)
        none = offered("cluster", "bfloat16", 1024, 256, 768)
    assert roomy.step == tight.step and again.step == 2 * tight.step
    assert none is None


def test_a_shape_can_be_named():
    call = ("float32", 1024, 1, 100)
    found = [offered(f"cluster:{number}", *call) for number in range(9)]
    offers = [offer for offer in found if offer]
    assert [offer.shape for offer in offers] == list(range(len(offers)))
    assert len(offers) > 2
    assert found[-1] is None
    best = offered("cluster", *call)
    assert best == min(offers, key=lambda offer: cost(offer, 1024))


def test_a_choice_is_what_is_launched(monkeypatch):
    monkeypatch.delenv("FASTLSTM_CUDA_KERNELS", raising=False)

    def launches(kind, T=3, **sizes):
        before = family.launches()
        check_kind(Case("recurrence", T=T, dtype=torch.float32, **sizes), kind)
        return family.launches() - before

    in_steps = 1 + 3 + 2 + 3 + 1
    assert launches("float64", N=4, H=96) == in_steps
    assert launches("bfloat16", N=4, H=40) == 2
    with family.simulated(capability_major=8):
        assert launches("tf32", T=20, N=4, H=96) == 2  # the grid
        with family.simulated(multiprocessors=1):
            assert launches("tf32", N=4, H=96) == in_steps
        assert launches("tf32", T=20, N=4, H=48, P=40) == 2  # one block
    # More outputs than a block takes.
    assert launches("tf32", N=4, H=2, P=300) >= 1 + 2 * 3 + 3 + 2 * 3 + 1


# What a launch may answer, and the words for it.
FAILURES = {720: "too many blocks in cooperative launch", 801: "not supported"}
ADVICE = {
    "cluster": 'clusters that are refused, .* FASTLSTM_CUDA_KERNELS="grid step"',
    "grid": "MPS or a green context .* FASTLSTM_CUDA_KERNELS=step",
}


@pytest.mark.parametrize("P", [None, 10])
@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("kernels, H", [("cluster", 20), ("cluster", 160), ("grid", 20)])
def test_a_launch_on_the_chip_that_fails_is_named(kernels, H, error, P, monkeypatch):
    monkeypatch.setenv("FASTLSTM_CUDA_KERNELS", kernels)
    case = Case("recurrence", T=2, N=3, H=H, P=P, dtype=torch.float32)
    arguments, gradients = draw(case)
    tape = tape_of(forward(case, "reference", arguments))
    projected = "" if P is None else "projected_"
    for which, run in {
        "forward": lambda: forward(case, "simt", arguments),
        "backward": lambda: backward(case, "simt", arguments, gradients, tape),
    }.items():
        sizes = f"T=2, N=3, D=1, H={H}, P={P or H}"
        name = f"lstm_{which}_kernel_{projected}{kernels} for {sizes}: .*{FAILURES[error]}"
        with family.simulated(fail_launch=error), pytest.raises(RuntimeError, match=name) as caught:
            run()
        alone = kernels == "cluster" and H == 20  # one block, which is no cluster
        assert bool(re.search("FASTLSTM_CUDA_KERNELS", str(caught.value))) != alone
        assert alone or re.search(ADVICE[kernels], str(caught.value))
        run()


def test_the_predictions_beside_the_floor():
    """`python -m benchmarks.gpu predict`."""
    lines = predict.table(family, "bf16")
    row = next(line for line in lines if line.startswith("| 256 |"))
    assert re.fullmatch(r"\| 256( \| \d\.\d\dc \(\d\.\d\) / \d\.\d\dc \(\d\.\d\)){4} \|", row)
    assert re.search(r"Within twice the floor: \d+ of 64 cells", lines[-2])

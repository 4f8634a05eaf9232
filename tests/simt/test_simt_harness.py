"""The harness that runs CUDA sources on the CPU finds the mistakes it is there for.

Kernels in tests/simt/kernels are run as they should be, and then broken in one place; what is
wrong has to show under the seeds under which the whole kernel is right.
"""

import pytest
import torch
from simt.small_kernels import broken_kinds, needs_compiler, run_small

pytestmark = needs_compiler

SEEDS = range(6)
BROKEN = broken_kinds()
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
GEMM = {"M": 45, "N": 38, "K": 104}


def gemm(seed, broken="Nothing", dtype=torch.bfloat16, M=45, N=38, K=104, **variant):
    """The outcome, and whether the product is right."""
    # Small integers: sums are exact, in any order and in any of the formats.
    a, b = (torch.randint(-8, 9, (rows, K)).to(dtype) for rows in (M, N))
    values = {"a": a, "b": b, "c": torch.full((M, N), torch.nan), "M": M, "N": N, "K": K}
    values |= {"lda": K, "ldb": K, "dtype": DTYPES.index(dtype), "broken": BROKEN[broken]}
    outcome = run_small("gemm", values, seed, **variant)
    expected = a.double() @ b.double().T
    return outcome, outcome.code == "ok" and torch.equal(outcome.arrays["c"].double(), expected)


def ring(seed, broken="Nothing", clusters=2, size=4, steps=5, **variant):
    x = torch.randint(1000, (clusters, size, 128), dtype=torch.int32)
    values = {"x": x, "clusters": clusters, "size": size, "steps": steps}
    outcome = run_small("ring", values | {"broken": BROKEN[broken]}, seed, **variant)
    for _ in range(steps):
        x = x + x.roll(1, 1).flip(2)
    return outcome, outcome.code == "ok" and torch.equal(outcome.arrays["x"], x)


def grid_ring(seed, broken="Nothing", blocks=7, steps=5, **variant):
    x = torch.randint(1000, (2, blocks, 64), dtype=torch.int32)
    values = {"x": x, "arrived": torch.zeros(1, dtype=torch.int32), "blocks": blocks}
    values |= {"steps": steps, "broken": BROKEN[broken]}
    outcome = run_small("grid_ring", values, seed, **variant)
    x = x[0]
    for _ in range(steps):
        x = x + x.roll(-1, 0).flip(1)
    return outcome, outcome.code == "ok" and torch.equal(outcome.arrays["x"][steps % 2], x)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", [gemm, ring, grid_ring])
def test_right_kernels_are_right(kernel, seed):
    outcome, right = kernel(seed)
    assert outcome.code == "ok", outcome.report
    assert right


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kernel", [gemm, ring, grid_ring])
def test_right_kernels_are_right_for_the_sanitizers(kernel, seed):
    outcome, right = kernel(seed, sanitize=True)
    assert outcome.code == "ok", outcome.report
    assert right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 8), (64, 32, 64), (33, 65, 40)])
def test_products(shape, dtype):
    M, N, K = shape
    outcome, right = gemm(3, dtype=dtype, M=M, N=N, K=K)
    assert right, outcome.report


@pytest.mark.parametrize(
    ("kernel", "broken"),
    [
        (gemm, "NoBarrierAfterLoad"),
        (gemm, "NoBarrierBeforeReuse"),
        (gemm, "NoWait"),
        (ring, "NoBufferWait"),
        (grid_ring, "NoSpin"),
    ],
)
def test_a_race_shows_in_the_result(kernel, broken):
    outcomes = [kernel(seed, broken) for seed in SEEDS]
    assert any(outcome.code != "ok" or not right for outcome, right in outcomes)


def test_uninitialised_shared_memory_is_nan():
    """Seed 0 too: it does not depend on any order."""
    outcome, _ = gemm(0, "Uninitialised", M=64, N=64)
    assert outcome.code == "ok", outcome.report
    unfilled = outcome.arrays["c"].isnan()
    rows = torch.arange(64) % 32 == 5
    assert torch.equal(unfilled, rows[:, None] | rows)


@pytest.mark.parametrize("seed", [0, 5])
def test_shared_memory_past_its_end(seed):
    outcome, _ = gemm(seed, "SharedIndex")
    assert outcome.code == "memory"
    assert "ldmatrix_x2: 16 bytes at offset 102" in outcome.report
    assert "of 10240 bytes of shared memory" in outcome.report
    assert "gemm.cu:" in outcome.report


@pytest.mark.parametrize("seed", [0, 5])
def test_global_memory_past_its_end(seed):
    outcome, _ = gemm(seed, "GlobalIndex", sanitize=True)
    assert outcome.code == "sanitizer"
    assert "heap-buffer-overflow" in outcome.report
    assert "gemm.cu:" in outcome.report


@pytest.mark.parametrize(
    ("broken", "lacks"),
    [
        ("TooFewArrivals", "1 of 2 arrivals and 0 bytes"),
        ("TooFewBytes", "0 of 1 arrivals and 4 bytes"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_deadlock_names_who_waits_for_what(broken, lacks, seed):
    outcome, _ = ring(seed, broken)
    assert outcome.code == "deadlock"
    assert "thread (0,0,0) to thread (127,0,0) polls mbarrier_try_wait at rings.cu:" in outcome.report
    assert f"lacks {lacks}" in outcome.report


def test_a_cluster_that_does_not_wait_for_its_mbarriers():
    """Without the first barrier, someone is early; without the last, someone is gone."""
    for broken, said in (("NoBarrierAfterLoad", "no mbarrier"), ("NoFinalBarrier", "has ended")):
        reports = [ring(seed, broken)[0].report for seed in SEEDS]
        assert any(said in report for report in reports)


def test_a_grid_barrier_needs_a_cooperative_launch():
    outcome, _ = grid_ring(0, "NotCoresident")
    assert outcome.code == "deadlock"
    assert "block (0,0,0) thread (0,0,0) polls ld_acquire_gpu at rings.cu:" in outcome.report
    assert "and sees 1" in outcome.report
    assert "block (0,0,0) thread (1,0,0) to thread (63,0,0) waits in __syncthreads" in outcome.report


MISUSES = {
    0: ("divergence", "__syncthreads"),
    1: ("divergence", "a thread is in __syncthreads while"),
    2: ("divergence", "mma_bf16"),
    3: ("divergence", "wait in mma_"),
    4: ("memory", "ldmatrix_x4: offset 8 of 256 bytes of shared memory is not aligned to 16"),
    5: ("memory", "ldmatrix_x4: 16 bytes at offset 256 of 256 bytes"),
    6: ("memory", "cp_async_16: 16 bytes at offset 248 of 256 bytes"),
    7: ("memory", "cp_async_16: the global address is not aligned"),
    8: ("misuse", "__shfl_sync reads lane 9, not in the mask"),
    9: ("misuse", "__syncwarp: this lane is not in the mask"),
    10: ("memory", "st_cluster_32: 4 bytes at offset 256 of 256 bytes"),
    11: ("memory", "map_to_rank: rank 2 of 2"),
    12: ("misuse", "mbarrier_arrive: no mbarrier was initialised there"),
    13: ("misuse", "more than 1 arrivals in phase 0"),
    14: ("memory", "was written over"),
    15: ("misuse", "of another block than the address"),
    16: ("misuse", "cluster_wait_acquire without a cluster_arrive_release"),
    17: ("memory", "ld_cluster_32: the block of rank 0 has ended"),
    18: ("deadlock", "polls atomicAdd at misuse.cu:"),
    19: ("memory misuse", "st_async"),
    20: ("deadlock", "polls ld_acquire_gpu at misuse.cu:"),
    21: ("misuse", "the block ends, and its mbarrier got 4 bytes more than expected"),
    22: ("misuse", "the block ends, and its mbarrier got 4 bytes fewer than expected"),
    23: ("misuse", "st_async: in a cluster of one block"),
}


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("which", MISUSES)
def test_misuse_is_named(which, seed):
    code, said = MISUSES[which]
    values = {"which": which, "memory": torch.zeros(64, dtype=torch.int32)}
    outcome = run_small("misuse", values, seed)
    assert outcome.code in code.split(), outcome.report
    assert said in outcome.report
    assert f"seed {seed}" in outcome.report


LAUNCHES = {
    # grid, block, cluster, cooperative, shared memory, asked for: the error
    "right": (((3, 2, 1), (32, 2, 2), (1, 1, 1), 0, 48 << 10, 0), 0),
    "no blocks": (((0, 1, 1), (32, 1, 1), (1, 1, 1), 0, 0, 0), 9),
    "no threads": (((1, 1, 1), (32, 0, 1), (1, 1, 1), 0, 0, 0), 9),
    "1024 threads": (((1, 1, 1), (32, 32, 1), (1, 1, 1), 0, 0, 0), 0),
    "1025 threads": (((1, 1, 1), (1025, 1, 1), (1, 1, 1), 0, 0, 0), 9),
    "65536 in y": (((1, 65536, 1), (32, 1, 1), (1, 1, 1), 0, 0, 0), 9),
    "shared memory not asked for": (((1, 1, 1), (32, 1, 1), (1, 1, 1), 0, (48 << 10) + 1, 0), 1),
    "shared memory asked for": (((1, 1, 1), (32, 1, 1), (1, 1, 1), 0, 227 << 10, 227 << 10), 0),
    "too much asked for": (((1, 1, 1), (32, 1, 1), (1, 1, 1), 0, 0, (227 << 10) + 1), 1),
    "cluster": (((4, 2, 1), (32, 1, 1), (2, 2, 1), 0, 0, 0), 0),
    "cluster divides not": (((5, 2, 1), (32, 1, 1), (2, 2, 1), 0, 0, 0), 9),
    "cluster of 16": (((16, 1, 1), (32, 1, 1), (16, 1, 1), 0, 0, 0), 912),
    "cooperative": (((8, 1, 1), (1024, 1, 1), (1, 1, 1), 1, 0, 0), 0),
    "cooperative, too many": (((9, 1, 1), (1024, 1, 1), (1, 1, 1), 1, 0, 0), 720),
}


def test_launch_errors_come_back():
    """As the codes that CUDA gives; the last error is told once."""
    shapes = [[*g, *b, *c, *rest] for (g, b, c, *rest), _ in LAUNCHES.values()]
    n = len(shapes)
    values = {"shapes": torch.tensor(shapes), "errors": torch.full((n, 3), -1), "n": n}
    outcome = run_small("shapes", values | {"device.multiprocessors": 4})
    assert outcome.code == "ok", outcome.report
    expected = [[error, error, 0] for _, error in LAUNCHES.values()]
    wrong = [
        name
        for name, got, want in zip(LAUNCHES, outcome.arrays["errors"].tolist(), expected, strict=True)
        if got != want
    ]
    assert not wrong, outcome.arrays["errors"]


def test_clusters_need_sm_90():
    shapes = torch.tensor([[2, 1, 1, 32, 1, 1, 2, 1, 1, 0, 0, 0]])
    values = {"shapes": shapes, "errors": torch.full((1, 3), -1), "n": 1}
    outcome = run_small("shapes", values | {"device.capability_major": 8})
    assert outcome.arrays["errors"].tolist() == [[801, 801, 0]]


def test_a_seed_repeats_itself():
    reports = [gemm(5, "SharedIndex")[0].report for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0] != gemm(4, "SharedIndex")[0].report

"""The emulated instructions of csrc/cuda/device/ptx.h against plain mathematics."""

import shutil
import subprocess

import pytest
import torch
from simt import build
from simt.small_kernels import needs_compiler, run_small

SEEDS = [0, 1, 2]
MMA = {"bf16": (0, torch.bfloat16, 16), "f16": (1, torch.float16, 16), "tf32": (2, None, 8)}
LANE = torch.arange(32)
GROUP, PAIR = LANE // 4, LANE % 4


def words(halves):
    """Neighbours (..., 2) of 16 bits as the words that hold them, the first in the low half."""
    return halves.contiguous().view(torch.int32).squeeze(-1)


def round_to_tf32(x):
    """float64: to 11 significant bits, ties away from zero; below 2^-126 to multiples of 2^-136."""
    exponent = torch.frexp(x).exponent.clamp(min=-125).double()
    unit = torch.exp2(exponent - 11)
    rounded = torch.floor(x.abs() / unit + 0.5) * unit
    limit = torch.finfo(torch.float32).max
    return torch.where(rounded > limit, torch.inf, rounded).copysign(x)


def run_mma(name, a, b, d, seed=0, **device):
    """d + a b, and a and b as the instruction took them: (matrices, 16, K), (matrices, K, 8)."""
    dtype, torch_dtype, _ = MMA[name]
    matrices = len(d)
    if torch_dtype is None:
        # The last 13 bits do not count, whatever they are.
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
        noise = [torch.randint(0x2000, x.shape, dtype=torch.int32) for x in (a, b)]
        a_bits, b_bits = (x.view(torch.int32) | bits for x, bits in zip((a, b), noise, strict=True))
        a_words = [a_bits[:, GROUP + 8 * (i % 2), PAIR + 4 * (i // 2)] for i in range(4)]
        b_words = [b_bits[:, PAIR + 4 * i, GROUP] for i in range(2)]
    else:
        a, b = a.to(torch_dtype), b.to(torch_dtype)
        both = torch.stack([2 * PAIR, 2 * PAIR + 1], -1)
        group = GROUP[:, None]
        a_words = [words(a[:, group + 8 * (i % 2), both + 8 * (i // 2)]) for i in range(4)]
        b_words = [words(b[:, both + 8 * i, group]) for i in range(2)]
    rows = [GROUP + 8 * (i // 2) for i in range(4)]
    columns = [2 * PAIR + i % 2 for i in range(4)]
    values = {
        "a": torch.stack(a_words, -1),
        "b": torch.stack(b_words, -1),
        "d": torch.stack([d[:, r, c] for r, c in zip(rows, columns, strict=True)], -1),
        "matrices": matrices,
        "count": 0,
        "dtype": dtype,
    }
    values |= {f"device.{field}": value for field, value in device.items()}
    outcome = run_small("mma", values, seed)
    assert outcome.code == "ok", outcome.report
    result = torch.full_like(d, torch.nan)
    for i in range(4):
        result[:, rows[i], columns[i]] = outcome.arrays["d"][..., i]
    return result, a, b


@needs_compiler
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", MMA)
def test_mma(name, seed):
    """d += a b, by the fragment layout that the PTX manual draws, in several warps at once."""
    K = MMA[name][2]
    d = torch.randn(40, 16, 8)
    result, a, b = run_mma(name, torch.randn(40, 16, K), torch.randn(40, K, 8), d, seed)
    a, b, d = a.double(), b.double(), d.double()
    magnitude = d.abs() + a.abs() @ b.abs()
    assert ((result - (d + a @ b)).abs() <= (K + 1) * 2.0**-24 * magnitude).all()


@needs_compiler
@pytest.mark.parametrize("extra_bits", [0, 2])
@pytest.mark.parametrize("name", MMA)
def test_sums_that_are_cut_off(name, extra_bits):
    """All terms to multiples of a unit below the largest's last place, and their sum to float32,
    towards zero."""
    K, matrices = MMA[name][2], 20
    factors = torch.randn(matrices, 16, K) * 2.0 ** torch.randint(-9, 9, (matrices, 16, K))
    d = torch.randn(matrices, 16, 8) * 2.0 ** torch.randint(-20, 20, (matrices, 16, 8))
    d[0], factors[0] = 0, 0
    device = {"tensor_core_extra_bits": extra_bits}
    result, a, b = run_mma(name, factors, torch.randn(matrices, K, 8), d, **device)
    products = a.double()[:, :, None] * b.double().mT[:, None]
    terms = torch.cat([d.double()[..., None], products], -1)
    unit = 2.0 ** (torch.frexp(terms.abs().amax(-1)).exponent.double() - 24 - extra_bits)
    total = (terms / unit[..., None]).trunc().sum(-1) * unit
    last = 2.0 ** (torch.frexp(total).exponent.double() - 24)
    assert torch.equal(result.double(), (total / last).trunc() * last)
    assert not torch.equal(result, (d.double() + a.double() @ b.double()).float())


@needs_compiler
@pytest.mark.parametrize("seed", SEEDS)
def test_ldmatrix(seed):
    tile = torch.randperm(32 * 8).to(torch.int16).view(4, 8, 8)
    fragments = torch.full((2, 32, 4), -1, dtype=torch.int32)
    values = {"tile": tile, "fragments": fragments, "matrices": 0, "count": 0}
    outcome = run_small("ldmatrix", values, seed)
    assert outcome.code == "ok", outcome.report
    both = torch.stack([2 * PAIR, 2 * PAIR + 1], -1)
    straight = words(tile[:, GROUP[:, None], both]).T
    result = outcome.arrays["fragments"]
    assert torch.equal(result[0], straight)
    assert torch.equal(result[1, :, :2], straight[:, :2])
    assert (result[1, :, 2:] == -1).all()


def floats_around(halves):
    """The numbers, what lies halfway to the next, and the floats beside that."""
    bits = halves.float().view(torch.int32)
    step = {torch.bfloat16: 1 << 16, torch.float16: 1 << 13}[halves.dtype]
    halfway = bits + step // 2
    return torch.cat([bits, halfway - 1, halfway, halfway + 1]).view(torch.float32)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_conversions(dtype):
    """All 16-bit numbers, what rounds to and between them, subnormals, and 20000 random floats."""
    halves = torch.arange(1 << 16).to(torch.int16)
    small = torch.arange(2048).float() * 2.0**-25  # halves of float16's subnormals
    random = torch.randint(-(1 << 31), 1 << 31, (20000,)).to(torch.int32).view(torch.float32)
    floats = torch.cat([floats_around(halves.view(dtype)), small, -small, random])
    count = len(floats)
    names = ["to_bf16", "to_f16", "to_tf32"]
    values = {name: torch.zeros(count, dtype=torch.int32) for name in names}
    values |= {name: torch.zeros(count) for name in ("from_bf16", "from_f16")}
    values |= {"floats": floats, "halves": halves.repeat(count // len(halves) + 1)[:count]}
    outcome = run_small("conversions", values | {"count": count, "matrices": 0})
    assert outcome.code == "ok", outcome.report
    got = outcome.arrays
    nan = floats.isnan()
    for name, to in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        assert_same(got[f"from_{name}"], values["halves"].view(to).float())
        rounded = got[f"to_{name}"].to(torch.int16)
        assert_same(rounded.view(to), floats.to(to))
        assert (rounded.view(to).isnan() == nan).all()
    tf32 = got["to_tf32"].view(torch.float32)
    assert_same(tf32, round_to_tf32(floats.double()).float())
    assert (got["to_tf32"][~nan] & 0x1FFF == 0).all()


def assert_same(actual, expected):
    """Equal as numbers, signs of zeros too, and NaN where NaN is expected."""
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(actual[~nan], expected[~nan])
    assert torch.equal(actual[~nan].signbit(), expected[~nan].signbit())


@needs_compiler
@pytest.mark.parametrize("seed", SEEDS)
def test_shuffles_and_votes(seed):
    lanes = torch.randint(-50, 50, (32,), dtype=torch.int32)
    shuffled = torch.zeros(10, 32, dtype=torch.int32)
    values = {"lanes": lanes, "shuffled": shuffled, "matrices": 0, "count": 0}
    outcome = run_small("shuffles", values, seed)
    assert outcome.code == "ok", outcome.report
    odd = (lanes & 1).bool()
    ballot = sum(1 << i for i in range(32) if odd[i])
    any_all = 1 + 2 * bool((lanes > 0).all())
    block = int(odd.sum()) + 100 * bool((lanes == 0).any()) + 200 * bool((lanes > 0).all())
    expected = torch.stack(
        [
            lanes[5].expand(32),
            lanes[LANE // 8 * 8 + (LANE * 7 + 3) % 8],
            lanes[LANE ^ 9],
            lanes[torch.where(LANE + 3 < 32, LANE + 3, LANE)],
            lanes[torch.where(LANE % 16 >= 3, LANE - 3, LANE)],
            torch.full((32,), ballot).to(torch.int32),
            torch.full((32,), any_all),
            lanes[torch.where(LANE < 16, LANE ^ 1, LANE ^ 2)],
            torch.full((32,), block),
            lanes[LANE ^ 1],
        ]
    )
    assert torch.equal(outcome.arrays["shuffled"], expected.to(torch.int32))


@needs_compiler
@pytest.mark.parametrize("seed", SEEDS)
def test_atomics_and_a_lock(seed):
    n = 150
    values = torch.randint(0, 1000, (n,), dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    arrays = {"values": values, "counts": torch.zeros(16, dtype=torch.int32), "most": zero}
    arrays |= {"total": torch.zeros(1, dtype=torch.float64), "lock": zero, "n": n}
    outcome = run_small("atomics", arrays, seed)
    assert outcome.code == "ok", outcome.report
    got = outcome.arrays
    assert torch.equal(got["counts"], torch.bincount(values % 16, minlength=16).to(torch.int32))
    assert (got["most"].item(), got["lock"].item()) == (values.max(), 0)
    assert got["total"].item() == values.sum()


def test_every_instruction_compiles_for_gpus(tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc, and none is on PATH")
    command = [nvcc, "-std=c++17", "-Xptxas=-v,-Werror", "-Werror=all-warnings", "-fatbin"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("80", "90a", "100a")]
    command += [f"-I{build.ROOT / 'csrc'}", "-o", str(tmp_path / "every.fatbin")]
    source = build.HERE / "kernels" / "every_ptx.cu"
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arch in ("80", "90a", "100a"):
        assert f"for 'sm_{arch}'" in done.stderr


@needs_compiler
def test_every_instruction_is_emulated():
    flags = [*build.FLAGS, "-O0", "-Werror"]
    build.compile_object(build.HERE / "kernels" / "every_ptx.cu", flags)
    device = build.ROOT / "csrc" / "cuda" / "device"
    text = "".join((device / name).read_text() for name in ("ptx.h", "ptx_cluster.h"))
    used = (build.HERE / "kernels" / "every_ptx.cu").read_text()
    functions = {
        line.split("(")[0].split()[-1] for line in text.splitlines() if "FASTLSTM_PTX " in line and "(" in line
    }
    assert len(functions) > 30
    assert not {name for name in functions if f"ptx::{name}" not in used}

"""Problems for the ops of both entries, the recurrence and the layer, and their error budget.

The budget has no tolerance chosen by hand. The oracle is the reference in float64 on the same
numbers. With r the largest error of the reference run in the kernel's dtype, as a share of its
tensor's largest magnitude, a kernel may have

    2 r + u + sqrt(K) u_wide

where u is the dtype's unit roundoff, one rounding of the result, and u_wide that of the dtype in
which sums are made. The reference's sums are torch's, which go pairwise or in blocks where they
can. Of K terms added one after the other, the roundings are a random walk (Higham & Mary 2019, "A
new approach to probabilistic rounding error analysis"), K being the longest sum of the problem.

Because the error of one small tensor is a matter of luck, r is the largest of its group of tensors
(what the forward gives, what the backward gives) and, as the magnitudes, of several draws of a
small case. Tensor cores multiply numbers of fewer bits: for backends on them, the run that r is
taken from rounds the factors of the recurrence's products as they do (`rounded_products`), and r is
taken over draws of a large case too, since the rounding of factors is most of it. float64 has no
wider oracle. There r is measured in float32 and carried over in units of
the roundoff, and the oracle may be off by as much again.
"""

import contextlib
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastlstm.backends import native
from fastlstm.ops.recurrence import PREFIXES
from fastlstm.precision import accumulation_dtype
from fastlstm.reference import lstm as reference

SIZES = (1, 2, 3, 5, 7, 16, 17, 33, 64, 65, 129)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MASKS = ("none", "random", "zero", "full", "lengths", "resets")
SMALL = 500  # elements of the output, below which a case is drawn several times
DRAWS = 3


@dataclass(frozen=True)
class Case:
    """One problem for an entry, "recurrence" or "layer"."""

    entry: str
    T: int
    N: int
    H: int
    dtype: torch.dtype
    I: int = 3
    P: int | None = None  # None without a projection
    D: int = 1
    wide: bool = False  # gates_x, or the layer's products, in the accumulation dtype
    wide_states: bool = False  # c and the gradients of both states in the accumulation dtype
    masks: str = "none"
    biases: int = 2
    gradients: int = 0b1111  # which of doutput, dh_n, dc_n, dcells are there

    @property
    def outputs(self) -> int:
        return self.H if self.P is None else self.P

    @property
    def drawn_dtype(self) -> torch.dtype:
        """float64 cases are float32 numbers, so that the reference can run on them in float32."""
        return torch.float32 if self.dtype == torch.float64 else self.dtype

    def __str__(self):
        sizes = [f"{k}{getattr(self, k)}" for k in "TNIHPD" if getattr(self, k) is not None]
        parts = [self.entry, *sizes, str(self.dtype).removeprefix("torch.")]
        parts += ["wide"] * self.wide + ["states"] * self.wide_states
        parts += [self.masks] * (self.masks != "none")
        parts += [f"b{self.biases}"] * (self.entry == "layer")
        return "-".join(parts) + (f"-g{self.gradients:04b}" if self.gradients != 0b1111 else "")


def sampled_cases(entry: str, count: int, seed: int, **fixed) -> list[Case]:
    """`count` cases of all sizes and options, the same for the same seed; `fixed` holds some."""
    rng, of_states, cases = random.Random(seed), random.Random(-seed), []
    while len(cases) < count:
        case = Case(
            entry,
            T=rng.choice(SIZES),
            N=rng.choice(SIZES),
            H=rng.choice(SIZES),
            I=rng.choice(SIZES),
            P=rng.choice((None, None, rng.choice(SIZES))),
            D=rng.choice((1, 2)),
            dtype=DTYPES[len(cases) % 4],
            wide=rng.random() < 0.5,
            masks=rng.choice(MASKS),
            biases=rng.choice((0, 1, 2, 2)),
            gradients=rng.choice((0b1111, 0b1111, rng.randrange(16))),
            wide_states=of_states.random() < 0.5,
        )
        case = replace(case, **fixed)
        # The reference is a loop in Python: a case is long or wide, not both.
        if case.T * case.N * case.H * max(case.outputs, case.I) <= 2e6 and case not in cases:
            cases.append(case)
    return cases


def by_id(cases) -> dict:
    """The arguments of pytest.mark.parametrize for a list of cases."""
    return {"argnames": "case", "argvalues": cases, "ids": [str(c) for c in cases]}


def draw_masks(case: Case) -> list[Tensor | None]:
    """[lengths (N,), reset_mask (T, N)], each or None."""
    lengths = reset_mask = None
    if case.masks in ("random", "lengths"):
        lengths = torch.randint(0, case.T + 1, (case.N,))
    elif case.masks in ("zero", "full"):
        lengths = torch.full((case.N,), 0 if case.masks == "zero" else case.T)
    if case.masks in ("random", "resets", "full"):
        reset_mask = torch.rand(case.T, case.N) < 0.3
    return [lengths, reset_mask]


def draw(case: Case) -> tuple[list, list]:
    """Arguments of the forward up to the masks, and gradients of output, h_n, c_n and cells."""
    T, N, I, D, H, P = case.T, case.N, case.I, case.D, case.H, case.outputs
    dtype, wide = case.drawn_dtype, accumulation_dtype(case.drawn_dtype)

    def normal(*shape, scale=1.0, dtype=dtype):
        return (torch.randn(shape) * scale).to(dtype)

    def weight(*shape):
        return normal(*shape, scale=max(shape[-1], 1) ** -0.5)

    of_states = wide if case.wide_states else dtype
    states = [normal(D, N, P), normal(D, N, H, dtype=of_states)]
    if case.entry == "recurrence":
        gates_x = normal(T, N, D, 4 * H, dtype=wide if case.wide else dtype)
        weight_hr = None if case.P is None else weight(D, P, H)
        arguments = [gates_x, *states, weight(D, 4 * H, P), weight_hr]
    else:
        arguments = [normal(T, N, I), *states]
        for d in range(2):
            weights = [weight(4 * H, I), weight(4 * H, P)]
            weights += [normal(4 * H) if case.biases > k else None for k in range(2)]
            weights += [None if case.P is None else weight(P, H)]
            arguments += weights if d < D else [None] * 5
    gradients = [normal(T, N, D * P)]
    gradients += [normal(D, N, width, dtype=of_states) for width in (P, H)]
    gradients += [normal(T, N, D, H, dtype=wide)]
    present = [g if case.gradients >> k & 1 else None for k, g in enumerate(gradients)]
    return arguments + draw_masks(case), present


def to(dtype: torch.dtype | None, tensors, device: torch.device | str = "cpu") -> list:
    """The tensors with floating-point numbers in `dtype`, or with None as they are, on a device."""
    return [t if t is None else t.to(device, dtype if t.is_floating_point() else None) for t in tensors]


def op(entry: str, family: str, which: str):
    """The op fastlstm::<family>[_layer]_<which>."""
    assert family in PREFIXES
    return getattr(torch.ops.fastlstm, f"{family}{'_layer' * (entry == 'layer')}_{which}").default


def forward(case: Case, family: str, arguments, *, save_tape=True, save_cells=True) -> dict:
    """The results of the forward op, by name."""
    switches = [save_tape, save_cells]
    if case.entry == "layer":
        switches.insert(0, case.wide)
    results = op(case.entry, family, "forward")(*arguments, *switches)
    return dict(zip(("output", "h_n", "c_n", "cells", "gates"), results, strict=True))


def backward_arguments(case, arguments, gradients, tape, *, need_dx=True, need_dweights=True):
    """The arguments of the backward op. tape: [output, cells, gates] of a forward."""
    output, cells, gates = tape
    *inputs, lengths, reset_mask = arguments
    if case.entry == "recurrence":
        _, h0, c0, weight_hh, weight_hr = inputs
        given = [*gradients, None, h0, c0, weight_hh, weight_hr, cells, gates]
        return [*given, lengths, reset_mask, case.wide]
    x, h0, c0, *weights = inputs
    given = [*gradients, x, h0, c0, *(weights[k] for k in (0, 1, 4, 5, 6, 9))]
    switches = [case.wide, need_dx, need_dweights]
    return [*given, output, cells, gates, lengths, reset_mask, *switches]


def backward(case: Case, family: str, arguments, gradients, tape, **needs) -> dict:
    """The results of the backward op, by name."""
    names = {
        "recurrence": ("dgates_x", "dh0", "dc0", "dhidden"),
        "layer": ("dx", "dh0", "dc0", "dweight_ih", "dweight_hh", "dbias", "dweight_hr"),
    }[case.entry]
    given = backward_arguments(case, arguments, gradients, tape, **needs)
    return dict(zip(names, op(case.entry, family, "backward")(*given), strict=True))


def tape_of(results: dict) -> list[Tensor]:
    return [results[k] for k in ("output", "cells", "gates")]


def run_both(case: Case, family: str, problem, tape, dtype=None, device="cpu") -> dict:
    """What forward and backward give on a problem in `dtype` (None: as drawn), by name; run on a
    device, brought back to the CPU."""
    arguments, gradients = (to(dtype, part, device) for part in problem)
    results = forward(case, family, arguments)
    results |= backward(case, family, arguments, gradients, to(dtype, tape, device))
    return {name: value.cpu() for name, value in results.items()}


@contextlib.contextmanager
def threads(count: int):
    """torch's thread count, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Measured:
    """The reference's errors and magnitudes on several draws of a case, by tensor."""

    def __init__(self):
        self.error, self.magnitude = {}, {}

    def add(self, low: dict, oracle: dict) -> None:
        for name, wide in oracle.items():
            if wide.numel():
                error = (low[name].double() - wide).abs().max().item()
                self.error[name] = max(self.error.get(name, 0.0), error)
                magnitude = wide.abs().max().item()
                self.magnitude[name] = max(self.magnitude.get(name, 0.0), magnitude)

    def share(self, name: str) -> float:
        """The largest relative error of the tensors in the group of `name`."""
        shares = [
            self.error[k] / self.magnitude[k]
            for k in self.error
            if k.startswith("d") == name.startswith("d") and self.magnitude[k]
        ]
        return max(shares, default=0.0)


def round_to(x: Tensor, kind: torch.dtype | str) -> Tensor:
    """`x` with every number rounded to a dtype or to "tf32": float32 with 10 bits of mantissa."""
    if kind != "tf32":
        return x.to(kind).to(x.dtype)
    bits = x.float().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)  # ties away from zero


@contextlib.contextmanager
def rounded_products(kind: torch.dtype | str | None):
    """Have the reference round the factors of the recurrence's products to a dtype or "tf32", as
    tensor cores do; None changes nothing."""
    exact = reference.product
    if kind is not None:
        reference.product = lambda a, b: exact(round_to(a, kind), round_to(b, kind))
    try:
        yield
    finally:
        reference.product = exact


def check(case: Case, family: str = "lstm", problem=None, *, factors=None, device="cpu") -> float:
    """Hold a family's results on a case to the budget; returns the largest share of it used.

    factors: the dtype, or "tf32", to which the family rounds the factors of products. device: where
    the family runs; the reference runs on the CPU.
    """
    problem = problem or draw(case)
    if family == "lstm" and device == "cpu" and rounds_gradients(case):
        factors = case.dtype
    measured, found = Measured(), None
    small = case.T * case.N * case.D * case.outputs < SMALL
    for k in range(DRAWS if small or factors else 1):
        drawn = draw(case) if k else problem
        # Thousands of small ops: a second thread only costs.
        with threads(1), rounded_products(factors):
            low = forward(case, "reference", drawn[0])
            tape = tape_of(low)
            low |= backward(case, "reference", *drawn, tape)
        with threads(1):
            oracle = run_both(case, "reference", drawn, tape, torch.float64)
        measured.add(low, oracle)
        if k == 0:
            wanted = torch.float64 if case.dtype == torch.float64 else None
            found = run_both(case, family, drawn, tape, wanted, device), low, oracle
    parts = family == "lstm" and device == "cpu" and multiplies_parts(case)
    return judge(case, *found, measured, factor=2.0**-17 if parts else 0.0)


def rounds_gradients(case: Case) -> bool:
    """Whether the CPU's kernels round the gradients of bfloat16 tensors, which are float32, to the
    factors of products, as nn.LSTM does: AVX512-BF16."""
    return case.dtype == torch.bfloat16 and not native.load() and native.cpu_isa() == "avx512bf16"


def multiplies_parts(case: Case) -> bool:
    """Whether the CPU's kernels take the gradients of 16-bit tensors as two bfloat16 numbers, which
    leave out up to 2^-17 of each: AMX."""
    isa = "" if native.load() else native.cpu_isa()
    return isa.startswith("amx") and case.dtype in (torch.bfloat16, torch.float16)


def judge(case: Case, got: dict, low: dict, oracle: dict, measured: Measured, factor: float = 0.0) -> float:
    """Raises AssertionError where a tensor of `got` is over its budget; returns the share used.

    factor: what a product's rounding leaves out of a factor. A gradient takes it at each of its T
    steps, which is a random walk too.
    """
    exact = case.dtype == torch.float64
    units = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps if exact else 1.0
    longest = max(case.T * case.N, 4 * case.H, case.outputs, case.I)
    used = 0.0
    for name, value in got.items():
        dtype = torch.float64 if exact else low[name].dtype
        assert value.dtype == dtype, f"{name}: {value.dtype}, expected {dtype}"
        assert value.shape == oracle[name].shape, f"{name}: shape {tuple(value.shape)}"
        assert value.is_contiguous(), f"{name}: strides {value.stride()}"
        if not value.numel():
            continue
        wide = accumulation_dtype(case.dtype)
        roundings = torch.finfo(dtype).eps / 2 + longest**0.5 * torch.finfo(wide).eps / 2
        roundings += case.T**0.5 * factor
        budget = 2 * units * measured.share(name) + roundings
        if exact:  # the oracle is float64 too, and as far from the truth as the reference may be
            budget += units * measured.share(name) + roundings
        budget *= measured.magnitude[name]
        error = (value.double() - oracle[name]).abs().max().item()
        assert error <= budget, f"{name}: error {error:.3e} is over its budget of {budget:.3e}"
        used = max(used, error / budget if budget else 0.0)
    return used

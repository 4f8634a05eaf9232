"""Problems for the variants' ops, judged by the error budget of op_cases.py."""

import random
from dataclasses import dataclass, replace

import op_cases
import torch
import torch.nn.functional as F
from op_cases import Measured, judge, rounded_products, threads, to

from fastlstm import reference, variant_backward, variant_kernels  # noqa: F401  (registers all ops)

FORWARD = ("output", "h_n", "c_n", "cells", "gates")
BACKWARD = ("dgates_x", "dh0", "dc0", "dweight_hh", "dweight_hr", "dnorm_hh", "dnorm_c", "dbias_c")


@dataclass(frozen=True)
class Case(op_cases.Case):
    """A recurrence with what of the variants."""

    norm: str = "none"  # "none", "gain" or "bias"
    mask: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    training: bool = True
    reverse: bool = False  # of one direction: the reverse one

    def __str__(self):
        parts = [super().__str__()] + [f"norm-{self.norm}"] * (self.norm != "none")
        parts += ["mask"] * self.mask
        if any(self.zoneout):
            parts.append(f"zoneout{self.zoneout[0]}-{self.zoneout[1]}")
        return "-".join(parts + ["eval"] * (not self.training) + ["reverse"] * self.reverse)


def sampled_cases(count: int, seed: int, largest: float, **fixed) -> list[Case]:
    """`count` cases of all sizes, dtypes and options, the same for the same seed."""
    rng, cases = random.Random(seed), []
    # The variants take c and the gradients of both states in the tensors' dtype alone.
    fixed["wide_states"] = False
    for base in op_cases.sampled_cases("recurrence", 100 * count, seed, **fixed):
        if len(cases) == count:
            break
        if base.T * base.N * base.H * base.outputs > largest:
            continue
        case = Case(
            **vars(base),
            norm=rng.choice(("none", "gain", "bias", "bias")),
            mask=rng.random() < 0.5,
            zoneout=rng.choice(((0.0, 0.0), (0.25, 0.5), (0.3, 0.0), (0.0, 0.6), (1.0, 0.5))),
            training=rng.random() < 0.7,
            reverse=base.D == 1 and rng.random() < 0.5,
        )
        if case.norm != "none" and case.H in (2, 3):
            # Two numbers are normalised to +-1: a matter of signs where they nearly agree.
            case = replace(case, H=case.H + 4)
        if case.norm != "none" and case.outputs < 8:
            # A mask may leave one small number of h, of which the norm makes large ones.
            case = replace(case, mask=False)
        cases.append(replace(case, dtype=fixed.get("dtype", op_cases.DTYPES[len(cases) % 4])))
    return cases


def draw(case: Case):
    """Arguments of the forward up to the seed, and gradients of output, h_n, c_n and cells."""
    arguments, gradients = op_cases.draw(replace(case))
    *tensors, lengths, reset_mask = arguments
    N, D, H, P, dtype = case.N, case.D, case.H, case.outputs, case.drawn_dtype
    wide = reference.accumulation_dtype(dtype)
    mask = F.dropout(torch.ones(D, N, P, dtype=wide), 0.4) if case.mask else None
    norms = [None] * 3
    if case.norm != "none":
        norms[:2] = (1 + 0.3 * torch.randn(D, n).to(dtype) for n in (4 * H, H))
    if case.norm == "bias":
        norms[2] = torch.randn(D, H).to(dtype)
    seed = torch.randint(2**63 - 1, (1,)) if case.training else None
    return [*tensors, mask, *norms, lengths, reset_mask, seed], gradients


def options(case: Case):
    return *case.zoneout, 6 + case.reverse, 5


def forward(case: Case, family: str, arguments, switches=(True, True)) -> dict:
    op = getattr(torch.ops.fastlstm, f"{family}_variant_forward").default
    return dict(zip(FORWARD, op(*arguments, *options(case), *switches), strict=True))


def backward(case: Case, family: str, arguments, gradients, tape, needs=(True,) * 5) -> dict:
    op = getattr(torch.ops.fastlstm, f"{family}_variant_backward").default
    given = [*gradients, None, *arguments[1:9], *tape, *arguments[9:]]
    return dict(zip(BACKWARD, op(*given, *options(case), case.wide, needs), strict=True))


def run_both(case, family, problem, tape, dtype=None, device="cpu") -> dict:
    arguments, gradients = (to(dtype, part, device) for part in problem)
    results = forward(case, family, arguments)
    results |= backward(case, family, arguments, gradients, to(dtype, tape, device))
    return {name: value.cpu() for name, value in results.items()}


def check(case: Case, family: str = "lstm", problem=None, *, factors=None, device="cpu") -> float:
    """As `op_cases.check`."""
    problem = problem or draw(case)
    measured, found = Measured(), None
    small = case.T * case.N * case.D * case.outputs < op_cases.SMALL
    several = small or factors or case.norm != "none"
    for k in range(op_cases.DRAWS if several else 1):
        drawn = draw(case) if k else problem
        with threads(1), rounded_products(factors):
            low = forward(case, "reference", drawn[0])
            tape = [low[name] for name in ("output", "cells", "gates")]
            low |= backward(case, "reference", *drawn, tape)
        with threads(1):
            oracle = run_both(case, "reference", drawn, tape, torch.float64)
        measured.add(low, oracle)
        if k == 0:
            wanted = torch.float64 if case.dtype == torch.float64 else None
            found = run_both(case, family, drawn, tape, wanted, device), low, oracle
    return judge(case, *found, measured)


FROZEN = Case(
    "recurrence", T=3, N=2, H=5, P=4, D=2, dtype=torch.float32, masks="random", norm="bias",
    mask=True, zoneout=(0.25, 0.5),
)  # fmt: skip


def check_frozen(family: str, monkeypatch) -> None:
    """Without each weight's gradient in turn: it is not formed, and the others are the same."""
    made, product = [], variant_backward.products_of_steps
    monkeypatch.setattr(
        variant_backward, "products_of_steps", lambda *of: made.append(of) or product(*of)
    )
    arguments, gradients = draw(FROZEN)
    tape = list(forward(FROZEN, "reference", arguments).values())
    given = FROZEN, family, arguments, gradients, [tape[0], *tape[3:]]
    whole = backward(*given)
    for k, name in enumerate(BACKWARD[3:]):
        made.clear()
        found = backward(*given, [place != k for place in range(5)])
        assert found.pop(name).numel() == 0
        assert len(made) == (1 if name.startswith("dweight") else 2)
        assert all(torch.equal(value, whole[key]) for key, value in found.items())

"""Problems for the variants' ops, judged by the error budget of op_cases.py."""

import random
from dataclasses import dataclass, replace

import op_cases
import torch
import torch.nn.functional as F
from op_cases import Measured, judge, rounded_products, threads, to

from fastlstm.ops import weight_gradients
from fastlstm.precision import accumulation_dtype
from fastlstm.stack.checkpoint.chunks import Chunks

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
    wide = accumulation_dtype(dtype)
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


def forward(case: Case, family: str, arguments, switches=(True, True), at=None) -> dict:
    op = getattr(torch.ops.fastlstm, f"{family}_variant_forward").default
    return dict(zip(FORWARD, op(*arguments, *(at or options(case)), *switches), strict=True))


def backward(case: Case, family: str, arguments, gradients, tape, needs=(True,) * 5, at=None) -> dict:
    op = getattr(torch.ops.fastlstm, f"{family}_variant_backward").default
    given = [*gradients, None, *arguments[1:9], *tape, *arguments[9:]]
    return dict(zip(BACKWARD, op(*given, *(at or options(case)), case.wide, needs), strict=True))


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


CHUNKS = Case(
    "recurrence", T=7, N=4, H=6, D=1, dtype=torch.bfloat16, masks="random", zoneout=(0.25, 0.5),
    mask=True, wide=True, wide_states=True,
)  # fmt: skip
CHUNKED = [
    CHUNKS,
    replace(CHUNKS, P=3, dtype=torch.float16, wide=False, training=False),
    replace(CHUNKS, P=3, norm="bias", zoneout=(0.25, 0.0), reverse=True),
]


def check_chunks(case: Case, family: str, every: int = 3) -> None:
    """All steps at once, in 16 bits with c and the states' gradients in float32 before and after,
    are bit for bit what chunks of them are, each of which takes what the one before left."""
    arguments, gradients = draw(case)
    gates_x, h, c, *weights, lengths, reset_mask, seed = arguments
    whole = forward(case, family, arguments)
    tape = [whole[name] for name in ("output", "cells", "gates")]
    whole |= backward(case, family, arguments, gradients, tape)
    chunks = Chunks(case.T, every, case.reverse, lengths, reset_mask, reversing=False)
    found, states = {name: {} for name in ("output", "cells", "gates", "dgates_x")}, {}

    def part(chunk, h, c):
        inputs = [gates_x[chunk.steps], h, c, *weights, chunk.lengths, chunk.reset_mask, seed]
        return inputs, (*options(case)[:-1], options(case)[-1] + chunk.steps.start)

    for begin in chunks.starts:
        chunk = chunks.chunk(begin)
        h, c = h.clone(), c.clone()
        chunk.cut(h, c)
        states[begin] = h, c
        inputs, at = part(chunk, h, c)
        results = forward(case, family, inputs, at=at)
        h, c = results["h_n"], results["c_n"]
        for name in ("output", "cells", "gates"):
            found[name][begin] = results[name]
    assert torch.equal(h, whole["h_n"]) and torch.equal(c, whole["c_n"])

    doutput, dh, dc, dcells = gradients
    for begin in reversed(chunks.starts):
        chunk = chunks.chunk(begin)
        inputs, at = part(chunk, *states[begin])
        steps = (None if g is None else g[chunk.steps] for g in (doutput, dcells))
        of_output, of_cells = steps
        tape = [found[name][begin] for name in ("output", "cells", "gates")]
        results = backward(case, family, inputs, (of_output, dh, dc, of_cells), tape, at=at)
        dh, dc = results["dh0"], results["dc0"]
        chunk.cut(dh, dc)
        found["dgates_x"][begin] = results["dgates_x"]
    assert torch.equal(dh, whole["dh0"]) and torch.equal(dc, whole["dc0"])
    for name, parts in found.items():
        assert torch.equal(torch.cat([parts[begin] for begin in sorted(parts)]), whole[name]), name


FROZEN = Case(
    "recurrence", T=3, N=2, H=5, P=4, D=2, dtype=torch.float32, masks="random", norm="bias",
    mask=True, zoneout=(0.25, 0.5),
)  # fmt: skip


def check_frozen(family: str, monkeypatch) -> None:
    """Without each weight's gradient in turn: it is not formed, and the others are the same."""
    made, product = [], weight_gradients.product_of_steps
    monkeypatch.setattr(weight_gradients, "product_of_steps", lambda *of: made.append(of) or product(*of))
    arguments, gradients = draw(FROZEN)
    tape = list(forward(FROZEN, "reference", arguments).values())
    given = FROZEN, family, arguments, gradients, [tape[0], *tape[3:]]
    whole = backward(*given)
    for k, name in enumerate(BACKWARD[3:]):
        made.clear()
        found = backward(*given, [place != k for place in range(5)])
        assert found.pop(name).numel() == 0
        # Those of W_hh and W_hr, for each direction.
        assert len(made) == FROZEN.D * (1 if name.startswith("dweight") else 2)
        assert all(torch.equal(value, whole[key]) for key, value in found.items())

"""Comparison of a FastLSTM with an nn.LSTM, for tests, benchmarks and users: inputs, gradients and
the error budget.

The budget has no tolerance chosen by hand. With e(m) = max |m - oracle| for a result of module m,
where the oracle is nn.LSTM in float64 on the same numbers, and r(m) = e(m) / max |oracle|,

    r(fast) <= 2 * r(nn.LSTM) + u

where u is the dtype's unit roundoff, eps / 2: one rounding of the largest number, which nn.LSTM may
happen not to have. The factor is 2, because sums of the same terms in different orders have errors
of the same size, not the same error. And because the error of one small tensor is random,
r(nn.LSTM) is the largest of its group of tensors (the results, or the gradients) and of similar
problems: this one, with inputs and states negated, with their features reversed, and both; and
eight with inputs that differ by one rounding, which have the same conditioning.

float64 has no wider type for an oracle. There, nn.LSTM's error is measured in float32 and scaled by
the ratio of the roundoffs, since the amplification of rounding errors depends on the computation,
not on the dtype. And the oracle, nn.LSTM in float64, itself has the error r(nn.LSTM) and a
rounding:

    r(fast) <= 3 * r(nn.LSTM) + 2 * u
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

RESULTS = ("output", "h_n", "c_n", "cells")


class OverBudget(AssertionError):
    """A result or gradient differs from the oracle by more than its budget; the text names it."""


def make_input(
    T: int,
    N: int,
    I: int,
    dtype: torch.dtype,
    *,
    kind: str = "batched",
    batch_first: bool = False,
) -> Any:
    """Standard normal input: kind "batched", "unbatched" (N is not used), "packed" (rows of 1 to T
    steps in any order) or "packed-sorted" (the same, longest first, enforce_sorted).
    """
    if kind == "unbatched":
        return torch.randn(T, I).to(dtype)
    x = torch.randn(*((N, T) if batch_first else (T, N)), I).to(dtype)
    if kind == "batched":
        return x
    lengths = torch.randint(1, T + 1, (N,))
    lengths[torch.randint(N, ())] = T
    if kind == "packed-sorted":
        lengths = lengths.sort(descending=True).values
    return pack_padded_sequence(x, lengths, batch_first, enforce_sorted=kind == "packed-sorted")


def make_states(module: nn.LSTM, N: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Standard normal h0, c0 for a batch of N; None for an unbatched input."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    lead = (rows,) if N is None else (rows, N)
    sizes = (module.proj_size or module.hidden_size, module.hidden_size)
    return tuple(torch.randn(*lead, size).to(dtype) for size in sizes)


def map_tensors(fn, value):
    """`value`, a tensor, PackedSequence, tuple, list or None, with fn applied to its tensors."""
    if isinstance(value, PackedSequence):
        return PackedSequence(fn(value.data), *value[1:])
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(fn, v) for v in value)
    return fn(value) if isinstance(value, Tensor) else value


def named_results(result) -> dict[str, Tensor]:
    """The results of an LSTM module by name; the data of a PackedSequence."""
    output, (h_n, c_n), *cells = result
    named = {"output": output, "h_n": h_n, "c_n": c_n, **({"cells": cells[0]} if cells else {})}
    return {k: v.data if isinstance(v, PackedSequence) else v for k, v in named.items()}


def run(module, input, hx=None, *, seed=0, gradients=True, dtype=None, **options):
    """Results, and gradients of a fixed random weighted sum of all results, by name; all detached.

    Gradients are those of the input ("d_input"), of hx ("d_h0", "d_c0") and of every parameter
    ("d_weight_ih_l0", ...). dtype: the sum's weights are rounded to it, so that an oracle in
    float64 has the same; by default that of the input. The generators are seeded first, for
    dropout.
    """
    if gradients:
        input, hx = map_tensors(lambda t: t.detach().requires_grad_(), (input, hx))
    data = input.data if isinstance(input, PackedSequence) else input
    _seed(seed)
    named = named_results(module(input, hx, **options))
    found = {name: value.detach() for name, value in named.items()}
    if gradients:
        generator = torch.Generator().manual_seed(seed + 1)
        weights = [torch.randn(v.shape, generator=generator).to(dtype or data.dtype).to(v) for v in named.values()]
        leaves = {"d_input": data, **(dict(zip(("d_h0", "d_c0"), hx, strict=True)) if hx else {})}
        leaves |= {f"d_{k}": p for k, p in module.named_parameters()}
        values = list(named.values())
        found |= zip(leaves, torch.autograd.grad(values, list(leaves.values()), weights), strict=True)
    return found


def _seed(seed):
    # torch.manual_seed also stores a call stack for each device type that is not initialised.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def relative_errors(got: dict[str, Tensor], oracle: dict[str, Tensor]) -> dict[str, float]:
    """max |got - oracle| / max |oracle| by name; the absolute error where the oracle is all 0."""
    errors = {}
    for name, value in got.items():
        if value.shape != oracle[name].shape:
            raise OverBudget(f"{name}: shape {tuple(value.shape)}, expected {tuple(oracle[name].shape)}")
        if not value.numel():
            errors[name] = 0.0
            continue
        scale = float(oracle[name].abs().max()) or 1.0
        errors[name] = float((value.double() - oracle[name]).abs().max()) / scale
    return errors


def judge(got, oracle, errors, dtype) -> float:
    """The largest fraction of its budget that a tensor of `got` uses.

    Args:
        got, oracle: tensors by name, as `run` gives them; got of `dtype`, oracle in float64.
        errors: nn.LSTM's relative errors by name, in `dtype`.

    Raises:
        OverBudget: a tensor is over its budget, is missing, or is not of `dtype`.
    """
    missing = oracle.keys() - got.keys()
    if missing:
        raise OverBudget(f"not given: {', '.join(sorted(missing))}")
    used = 0.0
    for name, error in relative_errors(got, oracle).items():
        if got[name].dtype != dtype:
            raise OverBudget(f"{name}: dtype {got[name].dtype}, expected {dtype}")
        group = [v for k, v in errors.items() if k.startswith("d_") == name.startswith("d_")]
        budget = 2 * max(group) + torch.finfo(dtype).eps / 2
        if dtype == torch.float64:  # the oracle's own error
            budget += max(group) + torch.finfo(dtype).eps / 2
        if not error <= budget:  # so that a NaN is over it
            raise OverBudget(
                f"{name}: relative error {error:.2e} is over its budget of {budget:.2e} "
                f"(nn.LSTM's own is {errors[name]:.2e})"
            )
        used = max(used, error / budget)
    return used


def _neighbours(input, hx):
    """The problem itself, and the similar problems of the budget."""
    for change in (lambda t: t, lambda t: -t, lambda t: t.flip(-1), lambda t: -t.flip(-1)):
        yield map_tensors(change, (input, hx))
    generator = torch.Generator().manual_seed(0)

    def one_rounding_away(t):
        up = torch.rand(t.shape, generator=generator).to(t.device) < 0.5
        return t * (1 + torch.finfo(t.dtype).eps * (2 * up.to(t.dtype) - 1))

    for _ in range(8):
        yield map_tensors(one_rounding_away, (input, hx))


def compare(
    fast: nn.Module,
    lstm: nn.LSTM,
    input: Any,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    seed: int = 0,
    gradients: bool = True,
) -> float:
    """Checks `fast` against the error budget of `lstm`, an nn.LSTM with the same weights and dtype.

    Returns:
        The largest fraction of the budget used; at most 1.

    Raises:
        OverBudget: see `judge`.
    """
    data = input.data if isinstance(input, PackedSequence) else input
    dtype = data.dtype
    options = {"seed": seed, "gradients": gradients, "dtype": dtype}
    # See the top of this file for float64, which has no wider type.
    narrow = torch.float32 if dtype == torch.float64 else dtype
    units = torch.finfo(dtype).eps / torch.finfo(narrow).eps
    oracles = {d: copy.deepcopy(lstm).to(d) for d in (torch.float64, narrow)}
    got, problem, errors = run(fast, input, hx, **options), None, {}
    for neighbour in _neighbours(input, hx):
        wide, low = (
            run(module, *map_tensors(lambda t, d=d: t.to(d), neighbour), **options) for d, module in oracles.items()
        )
        problem = problem or wide
        for name, error in relative_errors(low, wide).items():
            errors[name] = max(errors.get(name, 0.0), units * error)
        try:
            return judge(got, problem, errors, dtype)
        except OverBudget as over:  # the next problem may have a larger r(nn.LSTM)
            verdict = over
    raise verdict

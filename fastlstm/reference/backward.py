"""The backward of the recurrence, plain (lstm.py) and with the variants (variant.py), from the
forward's tape (output, cells, gates). In plain, differentiable torch.

`prepare` computes, for all steps at once, what the loop of a variant needs beyond the tape. `loop`
goes back through the steps; kernels replace it. The plain LSTM is the case without variants, and
needs no preparation. The gradients of weights are computed from the loop's results
(ops/weight_gradients.py).

The candidates c~ are recomputed from the gates and the cells that entered each step, the normalised
products from the h that entered: one large matrix product instead of a tape twice as long. With v^
for LN(v) without gain and s for 1 / sqrt(var(v) + epsilon)::

    v^ = s (v - mean(v))   and   dv = s (dv^ - mean(dv^) - v^ mean(dv^ * v^))
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..fields import joined
from ..precision import accumulation_dtype
from . import lstm as reference
from .lstm import part
from .variant import Options, normalise, zones


class ResultGrads(NamedTuple):
    """Gradients of a forward's first four results, None where zero. dh_n and dc_n are in c0's dtype
    if that is the accumulation dtype."""

    doutput: Tensor | None
    dh_n: Tensor | None
    dc_n: Tensor | None
    dcells: Tensor | None


# The gradient of a forward's fifth result, the gates: not None only in a second derivative.
GATES_GRAD = {"dgates_out": Tensor | None}


class Masks(NamedTuple):
    lengths: Tensor | None
    reset_mask: Tensor | None


class States(NamedTuple):
    """The initial states, and the weights of the recurrence."""

    h0: Tensor
    c0: Tensor
    weight_hh: Tensor
    weight_hr: Tensor | None


@joined(States)
class VariantStates:
    h_mask: Tensor | None
    norm_hh: Tensor | None
    norm_c: Tensor | None
    bias_c: Tensor | None


@joined(Masks, {"seed": Tensor | None}, Options)
class VariantMasks:
    """The masks of the recurrence, and zoneout (`variant.Options`)."""


@joined(ResultGrads, GATES_GRAD, States, {"cells": Tensor, "gates": Tensor}, Masks)
class Backward:
    """The arguments of `lstm_backward`. wide_gates: whether gates_x was, and dgates_x is wanted, in
    the accumulation dtype."""

    wide_gates: bool


@joined(VariantStates, {"output": Tensor, "cells": Tensor, "gates": Tensor}, VariantMasks)
class VariantTape:
    """What a backward needs of the forward's arguments and results. wide_gates: see `Backward`."""

    wide_gates: bool


@joined(ResultGrads, GATES_GRAD, VariantTape)
class VariantBackward:
    """The arguments of a backward with variants. needs: whether the gradients of weight_hh,
    weight_hr, norm_hh, norm_c and bias_c are wanted."""

    needs: list[bool]

    @property
    def options(self) -> Options:
        return Options(self.zoneout_h, self.zoneout_c, self.stream, self.first_step)


class Prepared(NamedTuple):
    """candidates: c~ (T, N, D, H), equal to the cells without zoneout on c. product_hat, cell_hat:
    with layer normalisation LN(a) (T, N, D, 4H) and LN(c~) (T, N, D, H); product_scale, cell_scale:
    their s (T, N, D, 1); else None. All in the accumulation dtype."""

    candidates: Tensor
    product_hat: Tensor | None = None
    product_scale: Tensor | None = None
    cell_hat: Tensor | None = None
    cell_scale: Tensor | None = None


class Arrived(NamedTuple):
    """A loop's results: dgates_x (T, N, D, 4H), dh0 (D, N, P), dc0 (D, N, H); with a projection
    dhidden (T, N, D, P), the gradient of y~_t; with layer normalisation dproducts (T, N, D, 4H),
    that of a_t, and dshown (T, N, D, H), that of tanh's argument. Otherwise these have no elements.
    dproducts is in dgates_x's dtype, dhidden and dshown in the accumulation dtype."""

    dgates_x: Tensor
    dh0: Tensor
    dc0: Tensor
    dhidden: Tensor
    dproducts: Tensor
    dshown: Tensor


def prepare(call: VariantBackward) -> Prepared:
    """What the loop needs beside the tape. call.lengths must be in 0..T."""
    (D, _, P), wide, options = call.h0.shape, call.cells.dtype, call.options
    masks = call.reset_mask, call.lengths

    def entering(sequence, first, d):
        return reference.entering_states(sequence, first, *masks, options.is_reverse(d))

    candidates = call.cells
    if options.zoneout_c:
        cells = [entering(call.cells[:, :, d], call.c0[d].to(wide), d) for d in range(D)]
        i, f, g, _ = call.gates.to(wide).chunk(4, dim=-1)
        candidates = f * torch.stack(cells, dim=2) + i * g
    if call.norm_hh is None:
        return Prepared(candidates)
    products = []
    for d, y in enumerate(call.output.split(P, dim=-1)):
        factor = entering(y, call.h0[d], d)
        if call.h_mask is not None:
            factor = (factor * call.h_mask[d]).to(call.h0.dtype)
        products.append(reference.product(factor.to(wide), call.weight_hh[d].to(wide).t()))
    return Prepared(candidates, *_normalised(torch.stack(products, dim=2)), *_normalised(candidates))


def _normalised(x: Tensor) -> tuple[Tensor, Tensor]:
    # Without steps torch's var_mean would warn.
    return normalise(x) if x.shape[0] else (x, x[..., :1])


def _through_norm(dhat, hat, scale):
    return scale * (dhat - dhat.mean(-1, True) - hat * (dhat * hat).mean(-1, True))


def shown(prepared: Prepared, norm_c: Tensor | None, bias_c: Tensor | None) -> Tensor:
    """The argument of the cell's tanh."""
    if norm_c is None:
        return prepared.candidates
    shown = norm_c.to(prepared.cell_hat.dtype) * prepared.cell_hat
    return shown if bias_c is None else shown + bias_c


def _split(zone, t: int, grad: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradients of the old value, None for zero, and of the new one, which zoneout mixed."""
    if zone is None:
        return None, grad
    if isinstance(zone, float):
        return zone * grad, (1 - zone) * grad
    return grad.masked_fill(~zone[t], 0), grad.masked_fill(zone[t], 0)


def _plus(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b


def _direction(
    dy, dh, dc, dcells, dgates_out, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c, cells, gates,
    shown, prepared, lengths, reset_mask, zone_h, zone_c, reverse,
):  # fmt: skip
    """The loop of one direction: dh0, dc0, and for all steps dgates, dhidden, dproducts, dshown,
    named as in `Arrived`."""
    T = gates.shape[0]
    valid = reference.valid_steps(T, lengths)
    cut = reference.entering_cuts(T, reset_mask, lengths, reverse)
    cells_in = reference.entering_states(cells, c0, reset_mask, lengths, reverse)
    rows = [[None] * T for _ in range(4)]
    for t in range(T) if reverse else range(T - 1, -1, -1):
        i, f, g, o = gates[t].chunk(4, dim=-1)
        tanh_c = shown[t].tanh()
        dh_t, dc_t = (dh, dc) if valid is None else (d.masked_fill(~valid[t], 0) for d in (dh, dc))
        dh_kept, dy_t = _split(zone_h, t, dh_t if dy is None else dh_t + dy[t])
        dhidden = dy_t
        if weight_hr is not None:
            dy_t = reference.product(dy_t, weight_hr)
        dshown = dy_t * o * (1 - tanh_c * tanh_c)
        dc_kept, dcandidate = _split(zone_c, t, dc_t if dcells is None else dc_t + dcells[t])
        through = dshown
        if norm_c is not None:
            through = _through_norm(norm_c * dshown, prepared.cell_hat[t], prepared.cell_scale[t])
        dcandidate = dcandidate + through
        di, df, dg, do = dcandidate * g, dcandidate * cells_in[t], dcandidate * i, dy_t * tanh_c
        if dgates_out is not None:
            ei, ef, eg, eo = dgates_out[t].chunk(4, dim=-1)
            di, df, dg, do = di + ei, df + ef, dg + eg, do + eo
        dgates = torch.cat([di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], dim=-1)
        dproducts = dgates
        if norm_hh is not None:
            dproducts = _through_norm(norm_hh * dgates, prepared.product_hat[t], prepared.product_scale[t])
        dh_in = reference.product(dproducts, weight_hh)
        dh_in = _plus(dh_in if h_mask is None else dh_in * h_mask, dh_kept)
        dc_in = _plus(dcandidate * f, dc_kept)
        if cut is not None:
            dh_in, dc_in = (reference.entered(d, cut[t]) for d in (dh_in, dc_in))
        found = dgates, dhidden, dproducts, dshown
        at_step = None if valid is None else valid[t]
        (dh, dc), found = reference.left((dh, dc), (dh_in, dc_in), found, at_step)
        for row, x in zip(rows, found, strict=True):
            row[t] = x
    return dh, dc, *(torch.stack(row) for row in rows)


def loop(call: VariantBackward, prepared: Prepared) -> Arrived:
    """The backward over the steps of all directions. call.lengths must be in 0..T."""
    gates, h0, c0, lengths, options = call.gates, call.h0, call.c0, call.lengths, call.options
    (T, N, D, _), P, H = gates.shape, h0.shape[-1], c0.shape[-1]
    dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
    gates_dtype = wide if call.wide_gates else dtype
    normed, projected = call.norm_hh is not None, call.weight_hr is not None

    def begin(grad, state):
        return state.new_zeros(state.shape, dtype=wide) if grad is None else grad.to(wide)

    dh_n, dc_n = begin(call.dh_n, h0), begin(call.dc_n, c0)

    def all_steps(sequences, width: int, wanted: bool, dtype: torch.dtype) -> Tensor:
        if not wanted:
            return h0.new_empty((0,), dtype=dtype)
        if T == 0:
            return gates.new_empty((0, N, D, width), dtype=dtype)
        return torch.stack(sequences, dim=2).to(dtype)

    per_direction = [(dh_n[d], dc_n[d], *[None] * 4) for d in range(D)]
    if T:
        doutput, dcells, dgates_out = (
            reference.existing(d, lengths) for d in (call.doutput, call.dcells, call.dgates_out)
        )

        def steps(tensor, d):
            return None if tensor is None else tensor[:, :, d].to(wide)

        in_tanh = shown(prepared, call.norm_c, call.bias_c)
        parameters = call.c0, call.weight_hh, call.weight_hr, call.h_mask, call.norm_hh, call.norm_c
        per_direction = [
            _direction(
                None if doutput is None else doutput[..., d * P : (d + 1) * P].to(wide),
                dh_n[d],
                dc_n[d],
                steps(dcells, d),
                steps(dgates_out, d),
                *(part(x, d, wide) for x in parameters),
                *(steps(x, d) for x in (call.cells, gates, in_tanh)),
                Prepared(*(steps(x, d) for x in prepared)),
                lengths,
                call.reset_mask,
                *zones(call.seed, T, N, P, H, d, options),
                options.is_reverse(d),
            )
            for d in range(D)
        ]
    dh0, dc0, dgates, dhidden, dproducts, dshown = zip(*per_direction, strict=True)
    return Arrived(
        all_steps(dgates, 4 * H, True, gates_dtype),
        torch.stack(dh0).to(c0.dtype),
        torch.stack(dc0).to(c0.dtype),
        all_steps(dhidden, P, projected, wide),
        all_steps(dproducts, 4 * H, normed, gates_dtype),
        all_steps(dshown, H, normed, wide),
    )


# The values of the variants' arguments for a plain LSTM.
_PLAIN = {
    **dict.fromkeys(("h_mask", "norm_hh", "norm_c", "bias_c", "output", "seed")),
    **Options(0.0, 0.0, 0, 0)._asdict(),
    "needs": [],
}


def lstm_backward(*args) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward of `lstm_forward`; takes the fields of `Backward`.

    Returns:
        dgates_x (T, N, D, 4H), dh0 (D, N, P) and dc0 (D, N, H), both in c0's dtype, and with a
        projection dhidden (T, N, D, P), the total gradient of each h_t in the accumulation dtype
        (for W_hr's gradient), else an empty tensor.
    """
    call = VariantBackward(**Backward(*args)._asdict(), **_PLAIN)
    if call.lengths is not None:
        call = call._replace(lengths=call.lengths.clamp(0, call.gates.shape[0]))
    arrived = loop(call, Prepared(call.cells))
    return arrived.dgates_x, arrived.dh0, arrived.dc0, arrived.dhidden

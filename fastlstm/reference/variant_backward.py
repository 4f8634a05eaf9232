"""The backward of variant.py, from the tape (output, cells, gates), in three parts.

`prepare` makes, for all steps at once, what the loop needs and the tape does not hold; `loop` goes
through the steps, and is what kernels take the place of; `finish` makes the gradients of the
weights. All in plain, differentiable torch.

The candidates c~ are made again from the gates and the cells that entered, the normalised products
from the h that entered: one large matrix product in the place of a tape twice as long. With a
hat for what LN gives, s for 1 / sqrt(var + epsilon) and an overline for the mean over a row::

    v^ = s (v - mean(v))   and   dv = s (dv^ - mean(dv^) - v^ mean(dv^ * v^))
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from . import lstm as reference
from .variant import Options, normalise, part, shared, zones


class Prepared(NamedTuple):
    """candidates: c~ (T, N, D, H), the cells themselves without zoneout on c. With layer
    normalisation LN(a) (T, N, D, 4H) and LN(c~) (T, N, D, H) with their s (T, N, D, 1), else None.
    All in the accumulation dtype."""

    candidates: Tensor
    product_hat: Tensor | None
    product_scale: Tensor | None
    cell_hat: Tensor | None
    cell_scale: Tensor | None


def factors(output, h0, h_mask, lengths, reset_mask, options) -> Tensor:
    """What W_hh multiplied at every step: (T, N, D, P) in h0's dtype."""
    D, _, P = h0.shape
    entering = torch.stack(
        [
            reference.entering_states(
                output[..., d * P : (d + 1) * P],
                h0[d],
                reset_mask,
                lengths,
                options.is_reverse(d),
            )
            for d in range(D)
        ],
        dim=2,
    )
    return entering if h_mask is None else (entering * h_mask.transpose(0, 1)).to(h0.dtype)


def prepare(
    h0, c0, weight_hh, norm_hh, norm_c, output, cells, gates, h_mask, lengths, reset_mask, options
) -> Prepared:
    """See the class; the arguments are those of `variant_backward`, lengths clamped."""
    D, wide = h0.shape[0], cells.dtype
    candidates, product_hat, product_scale, cell_hat, cell_scale = cells, None, None, None, None
    if options.zoneout_c:
        entering = torch.stack(
            [
                reference.entering_states(
                    cells[:, :, d], c0[d].to(wide), reset_mask, lengths, options.is_reverse(d)
                )
                for d in range(D)
            ],
            dim=2,
        )
        i, f, g, _ = gates.to(wide).chunk(4, dim=-1)
        candidates = f * entering + i * g
    if norm_hh is not None:
        h_in = factors(output, h0, h_mask, lengths, reset_mask, options)
        products = [
            reference.product(h_in[:, :, d].to(wide), weight_hh[d].to(wide).t()) for d in range(D)
        ]
        product_hat, product_scale = normalise(torch.stack(products, dim=2))
        cell_hat, cell_scale = normalise(candidates)
    return Prepared(candidates, product_hat, product_scale, cell_hat, cell_scale)


def _through_norm(dhat, hat, scale):
    return scale * (dhat - dhat.mean(-1, True) - hat * (dhat * hat).mean(-1, True))


def _shown(prepared: Prepared, norm_c, bias_c) -> Tensor:
    """The argument of the cell's tanh."""
    if norm_c is None:
        return prepared.candidates
    shown = norm_c.to(prepared.cell_hat.dtype) * prepared.cell_hat
    return shown if bias_c is None else shown + bias_c


def _loop_direction(
    dy, dh, dc, dcells, dgates_out, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c, cells, gates,
    shown, product_hat, product_scale, cell_hat, cell_scale, lengths, reset_mask, zone_h, zone_c,
    reverse,
):  # fmt: skip
    T = gates.shape[0]
    valid = reference.valid_steps(T, lengths)
    cut = reference.entering_cuts(T, reset_mask, lengths, reverse)
    cells_in = reference.entering_states(cells, c0, reset_mask, lengths, reverse)
    rows = [[None] * T for _ in range(4)]  # dgates, dhidden, dproducts, dshown
    for t in range(T) if reverse else range(T - 1, -1, -1):
        i, f, g, o = gates[t].chunk(4, dim=-1)
        tanh_c = shown[t].tanh()
        dh_t, dc_t = (dh, dc) if valid is None else (d.masked_fill(~valid[t], 0) for d in (dh, dc))
        dh_kept, dy_t = shared(zone_h, t, dh_t if dy is None else dh_t + dy[t])
        dhidden = dy_t
        if weight_hr is not None:
            dy_t = reference.product(dy_t, weight_hr)
        dshown = dy_t * o * (1 - tanh_c * tanh_c)
        dc_kept, dcandidate = shared(zone_c, t, dc_t if dcells is None else dc_t + dcells[t])
        if norm_c is None:
            dcandidate = dcandidate + dshown
        else:
            dcandidate = dcandidate + _through_norm(norm_c * dshown, cell_hat[t], cell_scale[t])
        di, df, dg, do = dcandidate * g, dcandidate * cells_in[t], dcandidate * i, dy_t * tanh_c
        if dgates_out is not None:
            ei, ef, eg, eo = dgates_out[t].chunk(4, dim=-1)
            di, df, dg, do = di + ei, df + ef, dg + eg, do + eo
        dgates = torch.cat(
            [di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], dim=-1
        )
        dproducts = dgates
        if norm_hh is not None:
            dproducts = _through_norm(norm_hh * dgates, product_hat[t], product_scale[t])
        dh_in, dc_in = reference.product(dproducts, weight_hh), dcandidate * f + dc_kept
        dh_in = (dh_in if h_mask is None else dh_in * h_mask) + dh_kept
        if cut is not None:
            dh_in = dh_in.masked_fill(cut[t].unsqueeze(-1), 0)
            dc_in = dc_in.masked_fill(cut[t].unsqueeze(-1), 0)
        found = dgates, dhidden, dproducts, dshown
        if valid is None:
            dh, dc = dh_in, dc_in
        else:
            dh, dc = torch.where(valid[t], dh_in, dh), torch.where(valid[t], dc_in, dc)
            found = (x.masked_fill(~valid[t], 0) for x in found)
        for row, x in zip(rows, found, strict=True):
            row[t] = x
    return dh, dc, *(torch.stack(row) for row in rows)


class Arrived(NamedTuple):
    """What a loop gives: dgates_x (T, N, D, 4H), dh0 (D, N, P), dc0 (D, N, H); with a projection
    dhidden (T, N, D, P), what arrived at y~, wide; with layer normalisation dproducts (T, N, D,
    4H), what arrived at a_t, in dgates_x's dtype, and dshown (T, N, D, H), what arrived at the
    argument of tanh, wide. What is not there has no elements."""

    dgates_x: Tensor
    dh0: Tensor
    dc0: Tensor
    dhidden: Tensor
    dproducts: Tensor
    dshown: Tensor


def loop(
    doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c,
    bias_c, cells, gates, prepared, lengths, reset_mask, seed, options, wide_gates,
) -> Arrived:  # fmt: skip
    """The loop of the backward over steps; see `variant_backward` for the arguments."""
    T, N, D, _ = gates.shape
    P, H = h0.shape[-1], c0.shape[-1]
    dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
    gates_dtype = wide if wide_gates else dtype
    dh_n = h0.new_zeros(h0.shape, dtype=wide) if dh_n is None else dh_n.to(wide)
    dc_n = c0.new_zeros(c0.shape, dtype=wide) if dc_n is None else dc_n.to(wide)
    shown = _shown(prepared, norm_c, bias_c)
    doutput, dcells, dgates_out = (
        reference.existing(d, lengths) for d in (doutput, dcells, dgates_out)
    )

    def steps(tensor, d):
        return None if tensor is None else tensor[:, :, d].to(wide)

    per_direction = [
        _loop_direction(
            None if doutput is None else doutput[..., d * P : (d + 1) * P].to(wide),
            dh_n[d],
            dc_n[d],
            steps(dcells, d),
            steps(dgates_out, d),
            *(part(x, d, wide) for x in (c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c)),
            *(steps(x, d) for x in (cells, gates, shown, *prepared[1:])),
            lengths,
            reset_mask,
            *zones(seed, T, N, P, H, d, options),
            options.is_reverse(d),
        )
        for d in range(D)
    ]
    dh0, dc0, dgates, dhidden, dproducts, dshown = zip(*per_direction, strict=True)

    def stacked(parts, wanted, dtype):
        return torch.stack(parts, dim=2).to(dtype) if wanted else h0.new_empty((0,), dtype=dtype)

    normed = norm_hh is not None
    return Arrived(
        torch.stack(dgates, dim=2).to(gates_dtype),
        torch.stack(dh0).to(c0.dtype),
        torch.stack(dc0).to(c0.dtype),
        stacked(dhidden, weight_hr is not None, wide),
        stacked(dproducts, normed, gates_dtype),
        stacked(dshown, normed, wide),
    )


def products_of_steps(dy: Tensor, x: Tensor) -> Tensor:
    """(T, N, D, A), (T, N, D, B) -> (D, A, B), in dy's dtype."""
    return torch.stack(
        [
            dy[:, :, d].flatten(0, 1).t() @ x[:, :, d].to(dy.dtype).flatten(0, 1)
            for d in range(dy.shape[2])
        ]
    )


def finish(
    arrived, h0, weight_hr, norm_c, bias_c, output, gates, prepared, h_mask, lengths, reset_mask,
    options, needs,
) -> tuple[Tensor, ...]:  # fmt: skip
    """dweight_hh (D, 4H, P), dweight_hr (D, P, H), dnorm_hh (D, 4H), dnorm_c and dbias_c (D, H):
    those that are there and in `needs`, the others without elements."""
    dtype, wide = h0.dtype, prepared.candidates.dtype
    normed = prepared.cell_hat is not None
    need_hh, need_hr, need_norm_hh, need_norm_c, need_bias_c = needs
    results = [h0.new_empty((0,)) for _ in range(5)]
    if need_hh:
        dproducts = arrived.dproducts if normed else arrived.dgates_x
        h_in = factors(output, h0, h_mask, lengths, reset_mask, options)
        results[0] = products_of_steps(dproducts, h_in)
    if need_hr and weight_hr is not None:
        H = prepared.candidates.shape[-1]
        hidden = gates[..., 3 * H :].to(wide) * _shown(prepared, norm_c, bias_c).tanh()
        results[1] = products_of_steps(arrived.dhidden, hidden)
    if need_norm_hh and normed:
        results[2] = (arrived.dgates_x * prepared.product_hat).sum((0, 1))
    if need_norm_c and normed:
        results[3] = (arrived.dshown * prepared.cell_hat).sum((0, 1))
    if need_bias_c and bias_c is not None:
        results[4] = arrived.dshown.sum((0, 1))
    return tuple(r.to(dtype) for r in results)


def variant_backward(
    run_loop,
    doutput: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    dgates_out: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    h_mask: Tensor | None,
    norm_hh: Tensor | None,
    norm_c: Tensor | None,
    bias_c: Tensor | None,
    output: Tensor,
    cells: Tensor,
    gates: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    seed: Tensor | None,
    *options_and_switches,
) -> tuple[Tensor, ...]:
    """All gradients of `variant.variant_forward`.

    Args:
        run_loop: `loop` or a kernel's with the same arguments.
        doutput, dh_n, dc_n, dcells, dgates_out: gradients of the five results of the forward, each
        None where zero. With c0 in the accumulation dtype, dh_n and dc_n are too.
        options_and_switches: `Options`; whether gates_x came, and dgates_x is wanted, in the
        accumulation dtype; and of weight_hh, weight_hr, norm_hh, norm_c and bias_c, whether a
        gradient is wanted.

    Returns:
        dgates_x (T, N, D, 4H), dh0 (D, N, P) and dc0 (D, N, H), both in c0's dtype, and the
        gradients of weight_hh, weight_hr, norm_hh, norm_c and bias_c, without elements for what is
        None or not wanted.
    """
    *options, wide_gates, needs = options_and_switches
    options = Options(*options)
    T = gates.shape[0]
    if T == 0:
        dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
        weights = weight_hh, weight_hr, norm_hh, norm_c, bias_c
        return (
            gates.new_empty(gates.shape, dtype=wide if wide_gates else dtype),
            torch.zeros_like(h0, dtype=c0.dtype) if dh_n is None else dh_n.clone(),
            torch.zeros_like(c0) if dc_n is None else dc_n.clone(),
            *(
                torch.zeros_like(w) if w is not None and need else h0.new_empty((0,))
                for w, need in zip(weights, needs, strict=True)
            ),
        )
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    prepared = prepare(
        h0, c0, weight_hh, norm_hh, norm_c, output, cells, gates, h_mask, lengths, reset_mask,
        options,
    )  # fmt: skip
    arrived = run_loop(
        doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, h_mask, norm_hh,
        norm_c, bias_c, cells, gates, prepared, lengths, reset_mask, seed, options, wide_gates,
    )  # fmt: skip
    grads = finish(
        arrived, h0, weight_hr, norm_c, bias_c, output, gates, prepared, h_mask, lengths,
        reset_mask, options, needs,
    )  # fmt: skip
    return *arrived[:3], *grads

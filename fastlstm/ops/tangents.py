"""Forward-mode derivatives of a layer, from the tape of its forward.

The recurrence of reference/lstm.py, differentiated. With a' the tangent of a, and at step t the
gates i, f, g, o and the cell c_t of the tape::

    z'_t = (W_ih x_t + b_ih + b_hh)' + W_hh' h_{t-1} + W_hh h'_{t-1}
    i', f', o' = s (1 - s) z'_t for each gate s of these;   g' = (1 - g^2) z'_t
    c'_t = f c'_{t-1} + f' c_{t-1} + i' g + i g'
    h'_t = o' tanh(c_t) + o (1 - tanh(c_t)^2) c'_t
           or, with a projection, W_hr times that, + W_hr' (o tanh(c_t))

All terms of z' but W_hh h'_{t-1} are computed for all steps at once. All of it is plain torch, so
it can be differentiated and batched again.
"""

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..reference import lstm as reference
from ..weights import LSTMWeights, weights_of


def _product(value: Tensor | None, factor: Tensor | None) -> Tensor | float:
    """value @ factor^T, or 0 where either is None."""
    return 0.0 if value is None or factor is None else value @ factor.t()


def _direction(z, h, c, weight_hh, weight_hr, projected, c0, cells, gates, lengths, reset_mask, reverse):
    """The loop over steps of one direction: the tangents of its outputs, last h, last c, cells and
    gates.

    z (T, N, 4H): z' without W_hh h'. h (N, P), c (N, H): tangents of its first states. projected:
    W_hr' (o tanh(c)) for all steps, or 0.
    """
    T, H = z.shape[0], c.shape[-1]
    valid = reference.valid_steps(T, lengths)
    cut = reference.entering_zeros(T, reset_mask, lengths, reverse)
    i, f, g, o = gates.chunk(4, dim=-1)
    tanh_c = cells.tanh()
    slopes = torch.cat([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], dim=-1)
    if valid is not None:  # at steps that do not exist g is 0, so its slope would be 1
        slopes = slopes.masked_fill(~valid, 0)
    before = reference.entering_states(cells, c0, reset_mask, lengths, reverse)
    factors = torch.cat([g, before, i], dim=-1)  # of i', f', g' in c'
    through = o * (1 - tanh_c * tanh_c)  # of c' in h'
    results = [None] * T
    for t in range(T - 1, -1, -1) if reverse else range(T):
        h_in, c_in = h, c
        if cut is not None:
            h_in = h.masked_fill(cut[t].unsqueeze(-1), 0)
            c_in = c.masked_fill(cut[t].unsqueeze(-1), 0)
        gate = (z[t] + h_in @ weight_hh.t()) * slopes[t]
        c_out = f[t] * c_in + sum((gate[..., : 3 * H] * factors[t]).chunk(3, dim=-1))
        h_out = gate[..., 3 * H :] * tanh_c[t] + through[t] * c_out
        if weight_hr is not None:
            h_out = h_out @ weight_hr.t()
            if isinstance(projected, Tensor):
                h_out = h_out + projected[t]
        results[t] = h_out, c_out, gate
        if valid is None:
            h, c = h_out, c_out
        else:
            h, c = torch.where(valid[t], h_out, h), torch.where(valid[t], c_out, c)
    ys, cs, activated = (torch.stack(r) for r in zip(*results, strict=True))
    return ys, h, c, cs, activated


def layer_tangents(call, changes, results) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tangents of a layer's results.

    Args:
        call: its arguments (`layer.LayerForward`). changes: their tangents, None where zero.
        results: `recurrence.Results` of the forward, with a tape.

    Returns:
        the tangents of output, h_n, c_n, cells and gates, with their shapes and dtypes.
    """
    output, cells, gates, (D, _, P) = results.output, results.cells, results.gates, call.h0.shape
    T, dtype, wide = call.x.shape[0], call.h0.dtype, accumulation_dtype(call.h0.dtype)
    lengths, reset_mask = call.lengths, call.reset_mask
    if lengths is not None:
        lengths = lengths.clamp(0, T)

    def widened(value):
        return None if value is None else value.to(wide)

    def begin(tangent, state):
        return torch.zeros_like(state, dtype=wide) if tangent is None else widened(tangent)

    h_first, c_first = begin(changes.h0, call.h0), begin(changes.c0, call.c0)
    if T == 0:
        nothing = (torch.zeros_like(r) for r in (cells, gates))
        return torch.zeros_like(output), h_first.to(dtype), c_first.to(dtype), *nothing
    x, dx = (reference.existing(widened(v), lengths) for v in (call.x, changes.x))
    of_directions = []
    for d in range(D):
        weight, change = (LSTMWeights(*map(widened, weights_of(of, d == 1))) for of in (call, changes))
        y, a, c = widened(output[..., d * P : (d + 1) * P]), widened(gates[:, :, d]), cells[:, :, d]
        h_in = reference.entering_states(y, widened(call.h0[d]), reset_mask, lengths, d == 1)
        z = torch.zeros_like(a) + _product(dx, weight.weight_ih)
        z = z + _product(x, change.weight_ih) + _product(h_in, change.weight_hh)
        for bias in (change.bias_ih, change.bias_hh):
            if bias is not None:
                z = z + bias
        projected = _product(a.chunk(4, dim=-1)[3] * c.tanh(), change.weight_hr)
        of_directions.append(
            _direction(
                z, h_first[d], c_first[d], weight.weight_hh, weight.weight_hr, projected,
                widened(call.c0[d]), c, a, lengths, reset_mask, d == 1,
            )
        )  # fmt: skip
    ys, h_n, c_n, dcells, dgates = zip(*of_directions, strict=True)
    return (
        torch.cat(ys, dim=-1).to(dtype),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(dtype),
        torch.stack(dcells, dim=2),
        torch.stack(dgates, dim=2).to(dtype),
    )

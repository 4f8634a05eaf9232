"""Forward-mode derivatives of a layer, from the tape that its forward leaves.

The recurrence of reference/lstm.py, differentiated. With a' the tangent of a, and at step t the
gates i, f, g, o and the cell c_t of the tape::

    z'_t = (W_ih x_t + b_ih + b_hh)' + W_hh' h_{t-1} + W_hh h'_{t-1}
    i', f', o' = s (1 - s) z'_t for each gate s of these;   g' = (1 - g^2) z'_t
    c'_t = f c'_{t-1} + f' c_{t-1} + i' g + i g'
    h'_t = o' tanh(c_t) + o (1 - tanh(c_t)^2) c'_t
           or, with a projection, W_hr times that, + W_hr' (o tanh(c_t))

All but W_hh h'_{t-1} and the three lines below it is one product for all steps. It is plain torch,
so it can be differentiated and batched again.
"""

import torch
from torch import Tensor

from ..precision import accumulation_dtype
from ..reference import lstm as reference


def _product(value: Tensor | None, factor: Tensor | None) -> Tensor | float:
    """value @ factor^T, or 0 where either is not there."""
    return 0.0 if value is None or factor is None else value @ factor.t()


def _direction(
    z, h, c, weight_hh, weight_hr, projected, c0, cells, gates, lengths, reset_mask, reverse
):
    """The loop of one direction, from its tape: the tangents of its outputs, last h, last c, cells
    and gates.

    z (T, N, 4H): z' without W_hh h'. h (N, P), c (N, H): tangents of the states it begins with.
    projected: W_hr' (o tanh(c)) for all steps, or 0.
    """
    T, H = z.shape[0], c.shape[-1]
    valid = reference.valid_steps(T, lengths)
    cut = reference.entering_zeros(T, reset_mask, lengths, reverse)
    i, f, g, o = gates.chunk(4, dim=-1)
    tanh_c = cells.tanh()
    slopes = torch.cat([i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)], dim=-1)
    if valid is not None:  # the tape is 0 at steps that do not exist, and g's slope is to be too
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


def layer_tangents(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: list[dict[str, Tensor]],
    tangents: dict[str, Tensor | None],
    weight_tangents: list[dict[str, Tensor | None]],
    tape: tuple[Tensor, Tensor, Tensor],
    lengths: Tensor | None,
    reset_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tangents of a layer's results.

    Args:
        x (T, N, I), h0 (D, N, P), c0 (D, N, H), lengths (N,), reset_mask (T, N): the layer's.
        weights: of each direction weight_ih (4H, I), weight_hh (4H, P) and weight_hr (P, H) or
            None, by name.
        tangents: of x, h0 and c0 by name, None for zeros. weight_tangents: of each direction, of
            the weights and of bias_ih and bias_hh (4H,).
        tape: output (T, N, D*P), cells (T, N, D, H) and gates (T, N, D, 4H) of the forward.

    Returns:
        the tangents of output, h_n, c_n, cells and gates, in the shapes and dtypes of these.
    """
    output, cells, gates = tape
    T, P, dtype, wide = x.shape[0], h0.shape[2], h0.dtype, accumulation_dtype(h0.dtype)
    if lengths is not None:
        lengths = lengths.clamp(0, T)

    def widened(value):
        return None if value is None else value.to(wide)

    def begin(name, state):
        tangent = tangents[name]
        return torch.zeros_like(state, dtype=wide) if tangent is None else widened(tangent)

    h_first, c_first = begin("h0", h0), begin("c0", c0)
    if T == 0:
        nothing = (torch.zeros_like(r) for r in (cells, gates))
        return torch.zeros_like(output), h_first.to(dtype), c_first.to(dtype), *nothing
    x, dx = (reference.existing(widened(v), lengths) for v in (x, tangents["x"]))
    results = []
    for d, (weight, change) in enumerate(zip(weights, weight_tangents, strict=True)):
        weight = {name: widened(value) for name, value in weight.items()}
        change = {name: widened(value) for name, value in change.items()}
        y, a, c = widened(output[..., d * P : (d + 1) * P]), widened(gates[:, :, d]), cells[:, :, d]
        h_in = reference.entering_states(y, widened(h0[d]), reset_mask, lengths, d == 1)
        z = torch.zeros_like(a) + _product(dx, weight["weight_ih"])
        z = z + _product(x, change["weight_ih"]) + _product(h_in, change["weight_hh"])
        for name in ("bias_ih", "bias_hh"):
            if change[name] is not None:
                z = z + change[name]
        projected = _product(a.chunk(4, dim=-1)[3] * c.tanh(), change["weight_hr"])
        masks = lengths, reset_mask, d == 1
        matrices = weight["weight_hh"], weight["weight_hr"]
        states = h_first[d], c_first[d]
        results.append(_direction(z, *states, *matrices, projected, widened(c0[d]), c, a, *masks))
    ys, h_n, c_n, dcells, dgates = zip(*results, strict=True)
    return (
        torch.cat(ys, dim=-1).to(dtype),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(dtype),
        torch.stack(dcells, dim=2),
        torch.stack(dgates, dim=2).to(dtype),
    )

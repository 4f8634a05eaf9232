"""The recurrence of one LSTM layer in plain, differentiable torch: the definition that every
backend is held to.

Equations (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; projection of Sak
et al. 2014), as in `torch.nn.LSTM`. For one direction, with gates_x[t] = W_ih x_t + b_ih + b_hh
given from outside::

    (i, f, g, o) = gates_x[t] + W_hh h_{t-1}
    i, f, o = sigmoid(i), sigmoid(f), sigmoid(o);   g = tanh(g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)                 or, with a projection, W_hr (o * tanh(c_t))

Sizes: T steps, N rows, D directions, H hidden units, P outputs (H, or the projection's size).

Two masks cut the recurrence, in both directions and in the same way for every backend:

* `lengths` (N,): steps t >= lengths[n] do not exist for row n. Their output, cell and gates are 0,
  the forward direction's final state is that of step lengths[n] - 1, and the reverse direction
  starts there with h0, c0.
* `reset_mask` (T, N): no state crosses the boundary between t - 1 and t where reset_mask[t] is
  True. The forward direction enters step t with zeros (at t = 0 that drops h0, c0); the reverse
  direction enters step t - 1 with zeros. A boundary into the padding (t = lengths[n]) is none, so
  the reverse direction keeps its h0, c0 there.

What does not exist touches nothing, whatever numbers stand there: x and the gradients that arrive
at such steps, the states of a row without steps, states behind a cut. Since 0 * NaN is NaN, zeros
take their place before anything is multiplied, in what is differentiated here too.

Low precision: bfloat16 and float16 tensors are computed in float32; h is rounded to the tensors'
dtype once a step (it is the output, and what the next step multiplies), c stays float32 from the
first step to the last.
"""

import torch
from torch import Tensor

from ..precision import accumulation_dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """Every matrix product of the recurrence; tests put one that rounds its factors in its
    place."""
    return a @ b


def entering_cuts(
    T: int, reset_mask: Tensor | None, lengths: Tensor | None, reverse: bool
) -> Tensor | None:
    """Where a direction enters a step with zeros instead of the state it carries: (T, N) bool, or
    None for nowhere."""
    if reset_mask is None:
        return None
    if not reverse:
        return reset_mask
    cut = torch.cat([reset_mask[1:], torch.zeros_like(reset_mask[:1])])
    if lengths is not None:
        cut = cut & (torch.arange(1, T + 1, device=cut.device)[:, None] < lengths)
    return cut


def entering_zeros(
    T: int, reset_mask: Tensor | None, lengths: Tensor | None, reverse: bool
) -> Tensor | None:
    """`entering_cuts`, and the steps that do not exist."""
    cut = entering_cuts(T, reset_mask, lengths, reverse)
    if lengths is None:
        return cut
    missing = ~_exists(T, lengths)
    return missing if cut is None else cut | missing


def entering_states(
    sequence: Tensor,
    initial: Tensor,
    reset_mask: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
) -> Tensor:
    """The state with which one direction enters each step: (T, N, X) from its states (T, N, X) and
    its first (N, X).

    Values at steps that do not exist (t >= lengths[n]) are of no meaning, but those of others.
    """
    T = sequence.shape[0]
    if lengths is not None:
        # It enters no step of a row without steps, so let it not be a factor of a product either.
        initial = initial.masked_fill((lengths <= 0).unsqueeze(-1), 0)
    if reverse:
        entering = torch.cat([sequence[1:], initial.unsqueeze(0)])
        if lengths is not None:
            starts = torch.arange(1, T + 1, device=lengths.device)[:, None] == lengths
            entering = torch.where(starts.unsqueeze(-1), initial, entering)
    else:
        entering = torch.cat([initial.unsqueeze(0), sequence[:-1]])
    cut = entering_cuts(T, reset_mask, lengths, reverse)
    return entering if cut is None else entering.masked_fill(cut.unsqueeze(-1), 0)


def _exists(T: int, lengths: Tensor) -> Tensor:
    return torch.arange(T, device=lengths.device)[:, None] < lengths


def valid_steps(T: int, lengths: Tensor | None) -> Tensor | None:
    """Which steps exist: (T, N, 1) bool, or None for all."""
    return None if lengths is None else _exists(T, lengths).unsqueeze(-1)


def existing(sequence: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """`sequence` (T, N, ...) with zeros at the steps that do not exist; itself without lengths."""
    if sequence is None or lengths is None:
        return sequence
    missing = ~_exists(sequence.shape[0], lengths)
    return sequence.masked_fill(missing.view(*missing.shape, *[1] * (sequence.dim() - 2)), 0)


def unrolled(step, carry, sequences, constants, reverse: bool):
    """The loop over the steps of one direction.

    Args:
        step: (carry, what the sequences have at t, constants) -> (carry, what is kept of t); it
        sees no other tensor. carry: tensors. sequences, constants: tensors, None for what is not
        there; a sequence has the steps first.

    Returns:
        The last carry, and the sequences of what was kept.
    """
    T = sequences[0].shape[0]
    kept = [None] * T
    for t in range(T - 1, -1, -1) if reverse else range(T):
        at = [None if s is None else s[t] for s in sequences]
        carry, kept[t] = step(carry, at, constants)
    return carry, [torch.stack(of_steps) for of_steps in zip(*kept, strict=True)]


def entered(state: Tensor, cut: Tensor | None) -> Tensor:
    """A state (N, X) as it enters a step: zeros where `cut` (N,)."""
    return state if cut is None else state.masked_fill(cut.unsqueeze(-1), 0)


def left(old: tuple, new: tuple, kept: tuple, valid: Tensor | None):
    """The states with which a step ends, and what is kept of it: where it does not exist, not
    `valid` (N, 1), the old states and zeros."""
    if valid is None:
        return new, kept
    states = tuple(torch.where(valid, n, o) for n, o in zip(new, old, strict=True))
    return states, tuple(k.masked_fill(~valid, 0) for k in kept)


def _forward_direction(
    gates_x, h, c, weight_hh, weight_hr, lengths, reset_mask, reverse, dtype, loop
):
    def step(carry, at, weights):
        (h, c), (gates_x, valid, cut), (weight_hh, weight_hr) = carry, at, weights
        h_in, c_in = entered(h, cut), entered(c, cut)
        i, f, g, o = (gates_x + product(h_in, weight_hh)).chunk(4, dim=-1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        c_out = f * c_in + i * g
        h_out = o * c_out.tanh()
        if weight_hr is not None:
            h_out = product(h_out, weight_hr)
        h_out = h_out.to(dtype).to(h.dtype)
        kept = h_out, c_out, torch.cat([i, f, g, o], dim=-1)
        return left((h, c), (h_out, c_out), kept, valid)

    T = gates_x.shape[0]
    sequences = (
        gates_x,
        valid_steps(T, lengths),
        entering_zeros(T, reset_mask, lengths, reverse),
    )
    weights = weight_hh.t(), None if weight_hr is None else weight_hr.t()
    (h, c), (ys, cells, gates) = loop(step, (h, c), sequences, weights, reverse)
    return ys, h, c, cells, gates


def lstm_forward(
    gates_x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None = None,
    lengths: Tensor | None = None,
    reset_mask: Tensor | None = None,
    loop=unrolled,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One layer, all directions and steps.

    Args:
        gates_x: (T, N, D, 4H), W_ih x + b_ih + b_hh in gate order i, f, g, o; in h0's dtype or its
        accumulation dtype.
        h0: (D, N, P). c0: (D, N, H), in h0's dtype, or in its accumulation dtype: then c_n is too,
        and a sequence may be cut in stretches without rounding c between them. weight_hh: (D, 4H,
        P). weight_hr: (D, P, H) or None.
        lengths: (N,) int64 or None; clamped to 0..T. reset_mask: (T, N) bool or None.
        loop: runs the steps, as `unrolled`.

    Returns:
        output (T, N, D*P), h_n (D, N, P) in h0's dtype; c_n (D, N, H) in c0's; cells (T, N, D, H),
        every c_t, in the accumulation dtype; gates (T, N, D, 4H) after activation, in h0's dtype.
    """
    T, N, D, _ = gates_x.shape
    H, P = c0.shape[-1], h0.shape[-1]
    dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
    if T == 0:
        empty = gates_x.new_empty
        return (
            empty((0, N, D * P), dtype=dtype),
            h0.clone(),
            c0.clone(),
            empty((0, N, D, H), dtype=wide),
            empty((0, N, D, 4 * H), dtype=dtype),
        )
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    gates_x = existing(gates_x, lengths)
    per_direction = [
        _forward_direction(
            gates_x[:, :, d].to(wide),
            h0[d].to(wide),
            c0[d].to(wide),
            weight_hh[d].to(wide),
            None if weight_hr is None else weight_hr[d].to(wide),
            lengths,
            reset_mask,
            d == 1,
            dtype,
            loop,
        )
        for d in range(D)
    ]
    ys, h_n, c_n, cells, gates = zip(*per_direction, strict=True)
    return (
        torch.cat(ys, dim=-1).to(dtype),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(c0.dtype),
        torch.stack(cells, dim=2),
        torch.stack(gates, dim=2).to(dtype),
    )


def _backward_direction(
    dy,
    dh,
    dc,
    dcells,
    dgates_out,
    c0,
    weight_hh,
    weight_hr,
    cells,
    gates,
    lengths,
    reset_mask,
    reverse,
):
    T = gates.shape[0]
    valid = valid_steps(T, lengths)
    cut = entering_cuts(T, reset_mask, lengths, reverse)
    cells_in = entering_states(cells, c0, reset_mask, lengths, reverse)
    dgates, dprojected = [None] * T, [None] * T
    for t in range(T) if reverse else range(T - 1, -1, -1):
        i, f, g, o = gates[t].chunk(4, dim=-1)
        tanh_c = cells[t].tanh()
        dh_t, dc_t = (dh, dc) if valid is None else (d.masked_fill(~valid[t], 0) for d in (dh, dc))
        dh_t = dh_t if dy is None else dh_t + dy[t]
        dprojected[t] = dh_t
        if weight_hr is not None:
            dh_t = product(dh_t, weight_hr)
        dc_t = dc_t + dh_t * o * (1 - tanh_c * tanh_c)
        if dcells is not None:
            dc_t = dc_t + dcells[t]
        di, df, dg, do = dc_t * g, dc_t * cells_in[t], dc_t * i, dh_t * tanh_c
        if dgates_out is not None:
            ei, ef, eg, eo = dgates_out[t].chunk(4, dim=-1)
            di, df, dg, do = di + ei, df + ef, dg + eg, do + eo
        dgates_t = torch.cat(
            [di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], dim=-1
        )
        dh_in, dc_in = product(dgates_t, weight_hh), dc_t * f
        if cut is not None:
            dh_in = dh_in.masked_fill(cut[t].unsqueeze(-1), 0)
            dc_in = dc_in.masked_fill(cut[t].unsqueeze(-1), 0)
        if valid is None:
            dh, dc, dgates[t] = dh_in, dc_in, dgates_t
        else:
            dh, dc = torch.where(valid[t], dh_in, dh), torch.where(valid[t], dc_in, dc)
            dgates[t] = dgates_t.masked_fill(~valid[t], 0)
            dprojected[t] = dprojected[t].masked_fill(~valid[t], 0)
    return torch.stack(dgates), dh, dc, torch.stack(dprojected)


def lstm_backward(
    doutput: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    dgates_out: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    cells: Tensor,
    gates: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    wide_gates: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reverse loop of `lstm_forward`, from the tape (cells, gates) it leaves.

    Args:
        doutput, dh_n, dc_n, dcells, dgates_out: gradients of the five results of `lstm_forward`,
        each None where zero. h0 is read for its shape and dtype alone. With c0 in the accumulation
        dtype, dh_n and dc_n are too.
        wide_gates: whether gates_x came, and dgates_x is wanted, in the accumulation dtype.

    Returns:
        dgates_x (T, N, D, 4H), dh0 (D, N, P) and dc0 (D, N, H), both in c0's dtype, and with a
        projection dhidden (T, N, D, P), the whole gradient that arrived at each h_t (what W_hr's
        gradient needs; accumulation dtype), else an empty tensor.
    """
    T, N, D, H4 = gates.shape
    P, dtype, wide = h0.shape[-1], h0.dtype, accumulation_dtype(h0.dtype)
    gates_dtype = wide if wide_gates else dtype

    def zeros_or(grad, like):
        return like.new_zeros(like.shape, dtype=wide) if grad is None else grad.to(wide)

    dh_n, dc_n = zeros_or(dh_n, h0), zeros_or(dc_n, c0)
    if T == 0:
        empty = gates.new_empty((0, N, D, H4), dtype=gates_dtype)
        return (
            empty,
            dh_n.to(c0.dtype, copy=True),
            dc_n.to(c0.dtype, copy=True),
            gates.new_empty((0, N, D, P) if weight_hr is not None else (0,), dtype=wide),
        )
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    doutput, dcells, dgates_out = (existing(d, lengths) for d in (doutput, dcells, dgates_out))
    per_direction = [
        _backward_direction(
            None if doutput is None else doutput[..., d * P : (d + 1) * P].to(wide),
            dh_n[d],
            dc_n[d],
            None if dcells is None else dcells[:, :, d].to(wide),
            None if dgates_out is None else dgates_out[:, :, d].to(wide),
            c0[d].to(wide),
            weight_hh[d].to(wide),
            None if weight_hr is None else weight_hr[d].to(wide),
            cells[:, :, d],
            gates[:, :, d].to(wide),
            lengths,
            reset_mask,
            d == 1,
        )
        for d in range(D)
    ]
    dgates, dh0, dc0, dhidden = zip(*per_direction, strict=True)
    return (
        torch.stack(dgates, dim=2).to(gates_dtype),
        torch.stack(dh0).to(c0.dtype),
        torch.stack(dc0).to(c0.dtype),
        torch.stack(dhidden, dim=2) if weight_hr is not None else gates.new_empty((0,), dtype=wide),
    )

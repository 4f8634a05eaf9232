"""The recurrence of one LSTM layer in plain, differentiable torch: the definition that every
backend is tested against.

Equations (Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; projection of Sak
et al. 2014), as in `torch.nn.LSTM`. For one direction, with gates_x[t] = W_ih x_t + b_ih + b_hh as
an input::

    (i, f, g, o) = gates_x[t] + W_hh h_{t-1}
    i, f, o = sigmoid(i), sigmoid(f), sigmoid(o);   g = tanh(g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)                 or, with a projection, W_hr (o * tanh(c_t))

Sizes: T steps, N rows, D directions, H hidden units, P outputs (H, or the projection's size).

Two masks act on both directions, with the same meaning for every backend:

* `lengths` (N,): steps t >= lengths[n] do not exist for row n. Their output, cell and gates are 0,
  the forward direction's final state is that of step lengths[n] - 1, and the reverse direction
  starts there with h0, c0.
* `reset_mask` (T, N): no state crosses the boundary between t - 1 and t where reset_mask[t] is
  True. The forward direction enters step t with zeros (at t = 0 that drops h0, c0); the reverse
  direction enters step t - 1 with zeros. The boundary to the padding (t = lengths[n]) is not reset,
  so the reverse direction starts there with h0, c0.

Values that do not exist have no effect, even if they are NaN or infinite: x and gradients at steps
that do not exist, the states of a row without steps, states that a reset drops. Since 0 * NaN is
NaN, they are replaced by zeros before anything is multiplied, and so in every derivative.

Low precision: bfloat16 and float16 are computed in float32. h is rounded to the tensors' dtype once
a step (it is the output, and a factor of the next step's product); c stays float32 over all steps.
"""

import torch
from torch import Tensor

from ..precision import accumulation_dtype


def product(a: Tensor, b: Tensor) -> Tensor:
    """Every matrix product of the recurrence; tests replace it by one that rounds its factors."""
    return a @ b


def entering_cuts(T: int, reset_mask: Tensor | None, lengths: Tensor | None, reverse: bool) -> Tensor | None:
    """At which steps a reset makes a direction enter with zeros: (T, N) bool, or None for none."""
    if reset_mask is None:
        return None
    if not reverse:
        return reset_mask
    cut = torch.cat([reset_mask[1:], torch.zeros_like(reset_mask[:1])])
    if lengths is not None:
        cut = cut & (torch.arange(1, T + 1, device=cut.device)[:, None] < lengths)
    return cut


def entering_zeros(T: int, reset_mask: Tensor | None, lengths: Tensor | None, reverse: bool) -> Tensor | None:
    """`entering_cuts` or the step does not exist: (T, N) bool, or None for none."""
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

    Values at steps that do not exist (t >= lengths[n]) are some of the sequence's others.
    """
    T = sequence.shape[0]
    if T == 0:
        return sequence
    if lengths is not None:
        # A row without steps: its initial state may be NaN and must not become a product's factor.
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
        step: (carry, the sequences' elements at t, constants) -> (carry, results of step t); it
        must use no other tensor, since other loops (interop/aten.py) trace it. carry: tensors.
        sequences: tensors (T, ...) or None. constants: tensors or None.

    Returns:
        The last carry, and the results of all steps stacked.
    """
    T = sequences[0].shape[0]
    kept = [None] * T
    for t in range(T - 1, -1, -1) if reverse else range(T):
        at = [None if s is None else s[t] for s in sequences]
        carry, kept[t] = step(carry, at, constants)
    return carry, [torch.stack(of_steps) for of_steps in zip(*kept, strict=True)]


def entered(state: Tensor, cut: Tensor | None) -> Tensor:
    """The state (N, X) that enters a step: zeros where `cut` (N,)."""
    return state if cut is None else state.masked_fill(cut.unsqueeze(-1), 0)


def left(old: tuple, new: tuple, kept: tuple, valid: Tensor | None):
    """The states after a step, and its results: where the step does not exist (`valid` (N, 1) is
    False) the old states, and zeros."""
    if valid is None:
        return new, kept
    states = tuple(torch.where(valid, n, o) for n, o in zip(new, old, strict=True))
    return states, tuple(k.masked_fill(~valid, 0) for k in kept)


def activated(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gates i, f, g, o (..., H) of z (..., 4H)."""
    i, f, g, o = z.chunk(4, dim=-1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def _cell(h, c, gates_x, weight_hh, weight_hr):
    """One step of the LSTM: h, c, and the gates."""
    i, f, g, o = activated(gates_x + product(h, weight_hh))
    c = f * c + i * g
    h = o * c.tanh()
    if weight_hr is not None:
        h = product(h, weight_hr)
    return h, c, (i, f, g, o)


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
        h0: (D, N, P). c0: (D, N, H), in h0's dtype or its accumulation dtype. In the latter c_n is
        too, so that c is not rounded between the chunks of a sequence. weight_hh: (D, 4H, P).
        weight_hr: (D, P, H) or None.
        lengths: (N,) int64 or None; clamped to 0..T. reset_mask: (T, N) bool or None.
        loop: runs the steps, as `unrolled`.

    Returns:
        output (T, N, D*P), h_n (D, N, P) in h0's dtype; c_n (D, N, H) in c0's; cells (T, N, D, H),
        every c_t, in the accumulation dtype; gates (T, N, D, 4H) after activation, in h0's dtype.
    """
    return forward(_cell, gates_x, h0, c0, (weight_hh, weight_hr), (), lengths, reset_mask, loop)


def forward(
    cell,
    gates_x: Tensor,
    h0: Tensor,
    c0: Tensor,
    matrices: tuple[Tensor | None, ...],
    parameters: tuple[Tensor | None, ...],
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    loop,
    is_reverse=lambda d: d == 1,
    zones=lambda d: (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`lstm_forward` with the equations of a step in `cell`: for the plain LSTM and the variants.

    Args:
        cell: (h, c, gates_x[t], *zones at step t, *transposed matrices, *parameters), all in the
        accumulation dtype -> h, c, and the gates i, f, g, o. h, c: the states that enter the step.
        matrices, parameters: each (D, ...) or None.
        is_reverse: d -> whether direction d runs backwards. zones: d -> further arguments of
        `cell`: tensors (T, ...), one element for each step, or numbers or None, for all steps.
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
    per_direction = []
    for d in range(D):
        of_steps = zones(d)
        numbers = [None if isinstance(z, Tensor) else z for z in of_steps]

        def step(carry, at, constants, numbers=numbers):
            (h, c), (gates_x, valid, cut, *masks) = carry, at
            at_step = (n if m is None else m for m, n in zip(masks, numbers, strict=True))
            h_in, c_in = entered(h, cut), entered(c, cut)
            h_out, c_out, gates = cell(h_in, c_in, gates_x, *at_step, *constants)
            h_out = h_out.to(dtype).to(h.dtype)
            kept = h_out, c_out, torch.cat(gates, dim=-1)
            return left((h, c), (h_out, c_out), kept, valid)

        sequences = (
            gates_x[:, :, d].to(wide),
            valid_steps(T, lengths),
            entering_zeros(T, reset_mask, lengths, is_reverse(d)),
            *(z if isinstance(z, Tensor) else None for z in of_steps),
        )
        factors = (part(w, d, wide) for w in matrices)
        constants = (
            *(None if w is None else w.t() for w in factors),
            *(part(p, d, wide) for p in parameters),
        )
        carry = h0[d].to(wide), c0[d].to(wide)
        (h, c), kept = loop(step, carry, sequences, constants, is_reverse(d))
        per_direction.append((*kept, h, c))
    ys, cells, gates, h_n, c_n = zip(*per_direction, strict=True)
    return (
        torch.cat(ys, dim=-1).to(dtype),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(c0.dtype),
        torch.stack(cells, dim=2),
        torch.stack(gates, dim=2).to(dtype),
    )


def part(tensor: Tensor | None, d: int, dtype: torch.dtype) -> Tensor | None:
    """Direction d of a tensor (D, ...), in `dtype`."""
    return None if tensor is None else tensor[d].to(dtype)

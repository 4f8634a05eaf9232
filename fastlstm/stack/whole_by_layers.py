"""The backward of a whole stack layer by layer, by the ops of ops/layer.py: for second derivatives,
and under vmap."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import layer as layer_ops
from ..ops.recurrence import Results
from .between import times


class Saved(NamedTuple):
    """The tape of a forward (whole.py) as the backward's op takes it, of the layers from `lowest`
    on. each: the number of weights of one layer and direction."""

    x: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    matrices: list[Tensor]
    output: Tensor
    tape: list[Tensor]
    lowest: int
    each: int


class _Layout:
    """Converts sequences and states between the caller's layout and that of the layers' ops."""

    def __init__(self, options, output: Tensor):
        self.layers, self.batch_first = options.layers, options.batch_first
        self.D, self.batched = 2 if options.bidirectional else 1, output.dim() == 3

    def time_major(self, sequence):
        if sequence is None or (self.batched and not self.batch_first):
            return sequence
        return sequence.transpose(0, 1) if self.batched else sequence.unsqueeze(1)

    def as_given(self, sequence):
        if self.batched:
            return sequence.transpose(0, 1) if self.batch_first else sequence
        return sequence.squeeze(1)

    def states_of(self, k: int, states):
        if states is None:
            return None
        states = states if self.batched else states.unsqueeze(1)
        return states[k * self.D : (k + 1) * self.D]

    def states_as_given(self, of_layers):
        states = torch.cat(of_layers)
        return states if self.batched else states.squeeze(1)


def by_layers(prefix: str, options, needs, grads, dtape, saved: Saved) -> list:
    """The gradients of x, h0, c0 and the weights, None where not wanted, by ops that autograd and
    vmap support.

    Args:
        prefix: that of the layers' ops. options: `whole.Options`. grads: doutput, dh_n, dc_n,
        dcells, None where zero. dtape: gradients of the tape, which only a second derivative has;
        None where zero.
    """
    x, h0, c0, matrices, output, tape, lowest, each = saved
    layout = _Layout(options, output)
    doutput, dh_n, dc_n, dcell_sequence = grads
    if options.own_output:
        *dtape, dagain = dtape
        if dagain is not None:
            doutput = dagain if doutput is None else doutput + dagain
    D, L = layout.D, layout.layers
    projected, kept = each % 2 == 1, (L - lowest) * D
    y, dy = layout.time_major(output), layout.time_major(doutput)
    T, N, width = y.shape
    H, P = tape[-1].shape[3] // 4, width // D
    lengths = options.lengths if options.lengths is None else options.lengths.view(N)
    reset_mask = options.reset_mask
    if reset_mask is not None:
        reset_mask = layout.time_major(reset_mask).view(T, N)
    present = [True, True, each >= 4, each >= 4, projected]
    places = [i for i in range(5) if present[i]]  # indices in LSTMWeights
    absent = [False] * 5 * (2 - D)
    found, dh0, dc0 = [None] * len(needs), [], []
    for k in range(L - 1, lowest - 1, -1):
        *tape, cells, gates = tape
        *dtape, dcells, dgates = dtape
        if dcell_sequence is not None and k == L - 1:
            more = layout.time_major(dcell_sequence).to(cells.dtype).reshape(cells.shape)
            dcells = more if dcells is None else dcells + more
        input, below, dbelow = layout.time_major(x), None, None
        noise = options.noise if k else None
        if k:
            *tape, below = tape
            *dtape, dbelow = dtape
            input = times(below, noise, k - 1) if noise else below
        h, c = layout.states_of(k, h0), layout.states_of(k, c0)
        h = y.new_zeros(D, N, P) if h is None else h
        c = y.new_zeros(D, N, H) if c is None else c
        of_layer, wanted = [], []
        for d in range(D):
            first = (k - lowest) * D + d
            ih, hh, *hr = matrices[first::kept]
            of_layer += [ih, hh, hr[0] if projected else None]
            at = 3 + (k * D + d) * each
            asked = dict(zip(places, needs[at : at + each], strict=True))
            wanted += [asked.get(i, False) for i in range(5)]
        layer_tape = layer_ops.LayerTape(
            input, h, c, *of_layer, *[None] * 3 * (2 - D), y, cells, gates, lengths, reset_mask,
            options.wide_products,
        )  # fmt: skip
        needed = layer_ops.LayerForward(
            needs[0] if k == 0 else k > lowest, needs[1], needs[2], *wanted, *absent, *[False] * 5
        )
        of_states = (layout.states_of(k, g) for g in (dh_n, dc_n))
        of_results = Results(dy, *of_states, dcells, dgates)
        dx, dh, dc, *dweights = layer_ops.gradients(prefix, layer_tape, of_results, needed)
        for d in range(D):
            at = 3 + (k * D + d) * each
            found[at : at + each] = [dweights[5 * d + i] for i in places]
        dh0.insert(0, dh)
        dc0.insert(0, dc)
        y, dy = below, dx
        if dy is not None and noise:
            dy = times(dy, noise, k - 1)
        if dy is not None and dbelow is not None:
            dy = dy + dbelow
    if needs[0]:
        found[0] = layout.as_given(dy)
    if needs[1]:
        found[1] = layout.states_as_given(dh0)
    if needs[2]:
        found[2] = layout.states_as_given(dc0)
    return found

"""The way back through a stack: what the op `stack_backward` computes. Sizes, chunks and
lanes as in forward.py.
"""

from typing import NamedTuple

import torch

from ...ops.weight_gradients import weight_gradients
from ...precision import accumulation_dtype
from .forward import Dropout, Masks, Tape, Weights, of_layer, sweep


class Wanted(NamedTuple):
    """What a backward is to give. lowest: the first layer that has anything to give; of those below
    nothing is computed. dx: the input's gradient. layers: those whose weights' gradients."""

    lowest: int
    dx: bool
    layers: list[int]

    def dx_of(self, k: int) -> bool:
        return self.dx if k == 0 else k > self.lowest


class _BackwardLayer:
    """A layer on its way back; its chunks are in time's order, so `chunk(0)` is the last one."""

    def __init__(self, recurrence, masks, drop, grads, inputs, tape, weights, results):
        """grads: doutput, dh_n, dc_n, dcells. inputs: x, h0, c0. tape: output, cells, gates.
        weights: ih, hh, hr. results: where dx goes or None, dh0, dc0, and a list for the weights'
        gradients or None."""
        self.recurrence, self.masks = recurrence, masks
        self.apply_dropout, self.mask = drop
        self.doutput, *self.given, self.dcells = grads
        self.x, self.h0, self.c0 = inputs
        self.output, self.cells, self.gates = tape
        self.weight_ih, self.weight_hh, self.weight_hr = weights
        self.dx, *self.state_results, self.weight_results = results
        self.whole = len(masks.spans) == 1
        if not self.whole:
            self.dgates_x = torch.empty_like(self.gates)
            shape = (*self.output.shape[:2], 1, self.output.shape[2])
            self.dhidden = self.cells.new_empty(shape if self.weight_hr is not None else (0,))

    def chunk(self, k: int) -> None:
        spans = self.masks.spans
        k = len(spans) - 1 - k
        if k == len(spans) - 1:
            self._start()
        start, end = spans[k]
        steps = slice(None) if self.whole else slice(start, end)
        before = self.entering_c if start == 0 else self.cells[start - 1].transpose(0, 1)
        dgates_x, self.dh, self.dc, dhidden = self.recurrence(
            self.doutput if self.doutput is None else self.doutput[steps],
            self.dh, self.dc, self.dcells if self.dcells is None else self.dcells[steps],
            None, self.h0, before, self.weight_hh.unsqueeze(0), self.weight_hr, self.cells[steps],
            self.gates[steps], *self.masks.of(k), False,
        )  # fmt: skip
        if self.whole:
            self.dgates_x, self.dhidden = dgates_x, dhidden
        else:
            self.dgates_x[steps].copy_(dgates_x)
            if dhidden.numel():
                self.dhidden[steps].copy_(dhidden)
        if self.dx is not None:
            dx = self.dx[steps]
            torch.mm(dgates_x.flatten(0, 2), self.weight_ih, out=dx.flatten(0, 1))
            if self.mask is not None:
                dx.copy_(self.apply_dropout(dx, self.mask[steps]))
        if k == 0:
            self._finish()

    def _start(self) -> None:
        self.weight_hr = None if self.weight_hr is None else self.weight_hr.unsqueeze(0)
        self.dh, self.dc = self.given
        self.entering_c = self.c0
        if not self.whole:
            wide = accumulation_dtype(self.h0.dtype)
            self.entering_c = self.c0.to(wide)
            self.dh, self.dc = (d if d is None else d.to(wide) for d in self.given)

    def _finish(self) -> None:
        for result, grad in zip(self.state_results, (self.dh, self.dc), strict=True):
            result.copy_(grad[0])
        if self.weight_results is None:
            return
        x = self.apply_dropout(self.x, self.mask)
        grads = weight_gradients(
            self.dgates_x, self.dhidden, x, self.output, self.h0, self.cells, self.gates,
            *self.masks.whole, self.weight_hr is not None,
        )  # fmt: skip
        for result, grad in zip(self.weight_results, grads, strict=True):
            if grad is not None:
                result.copy_(grad[0])


def backward(
    recurrence, doutput, dh_n, dc_n, dcells, x, h0, c0, weights: Weights, tape: Tape, lengths,
    reset_mask, dropout: Dropout, wanted: Wanted, chunk: int,
):  # fmt: skip
    """dx, dh0, dc0, and of each layer, as far as wanted, dweight_ih, dweight_hh, dbias, dweight_hr;
    without elements where not wanted.

    Args:
        recurrence: the backward op of a family. doutput, dh_n, dc_n, dcells: gradients of the
        forward's first four results, each None where zero. chunk: as for `forward`.
    """
    L = len(weights.ih)
    results = empty_gradients(x, h0, c0, weights, wanted)
    dx, dh0, dc0, *of_weights = results
    if wanted.lowest:
        dh0.zero_()
        dc0.zero_()
    masks = Masks(x.shape[0], chunk, lengths, reset_mask)
    layers = []
    for k in range(L - 1, wanted.lowest - 1, -1):
        below = tape.outputs_of(k - 1) if k else x
        layer_dx = None
        if wanted.dx_of(k):
            layer_dx = torch.empty_like(below, memory_format=torch.contiguous_format) if k else dx
        layers.append(
            _BackwardLayer(
                recurrence,
                masks,
                (dropout.apply, dropout.mask(k - 1) if k else None),
                (
                    layers[-1].dx if layers else doutput,
                    *(None if d is None else d[k : k + 1] for d in (dh_n, dc_n)),
                    None if layers else dcells,
                ),
                (below, h0[k : k + 1], c0[k : k + 1]),
                (tape.outputs_of(k), tape.cells_of(k), tape.gates[k]),
                of_layer((weights.ih, weights.hh, weights.hr), k),
                (
                    layer_dx,
                    dh0[k],
                    dc0[k],
                    of_layer(of_weights, k) if k in wanted.layers else None,
                ),
            )
        )
    sweep(x.device, layers, len(masks.spans))
    return results


def empty_gradients(x, h0, c0, weights: Weights, wanted: Wanted) -> tuple:
    """Tensors of the backward's shapes, uninitialised; also its shapes-only kernel."""

    def of_weights(like):
        return [w.new_empty(w.shape if k in wanted.layers else (0,)) for k, w in enumerate(like)]

    H = c0.shape[2]
    return (
        x.new_empty(x.shape if wanted.dx else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        of_weights(weights.ih),
        of_weights(weights.hh),
        [x.new_empty((4 * H if k in wanted.layers else 0,)) for k in range(len(weights.ih))],
        of_weights(weights.hr),
    )


def plain_backward(
    layer_backward, doutput, dh_n, dc_n, dcells, of_tape, x, h0, c0, weights: Weights, tape: Tape,
    lengths, reset_mask, dropout: Dropout, wanted: Wanted,
):  # fmt: skip
    """As `backward`, layer by layer, by what autograd and vmap take.

    Args:
        layer_backward: a layer's backward, with the arguments of `layer_ops._backward` after its
        first.
        of_tape: gradients of the tape's lists hidden, lower_cells and gates, entries None where
        zero.
    """
    L = len(weights.ih)
    dhidden, dlower_cells, dgates = of_tape
    results = empty_gradients(x, h0, c0, weights, wanted)
    dx, _, _, *of_weights = results
    dstates = [[torch.zeros_like(s[0])] * L for s in (h0, c0)]
    for k in range(L - 1, wanted.lowest - 1, -1):
        mask = dropout.mask(k - 1) if k else None
        below = dropout.apply(tape.outputs_of(k - 1), mask) if k else x
        weight_ih, weight_hh, weight_hr = of_layer((weights.ih, weights.hh, weights.hr), k)
        layer_dx, dh0, dc0, *grads = layer_backward(
            doutput,
            *(None if d is None else d[k : k + 1] for d in (dh_n, dc_n)),
            dcells if k == L - 1 else dlower_cells[k],
            dgates[k],
            below, h0[k : k + 1], c0[k : k + 1], weight_ih, weight_hh, weight_hr, None, None, None,
            tape.outputs_of(k), tape.cells_of(k), tape.gates[k], lengths, reset_mask, False,
            wanted.dx_of(k), k in wanted.layers,
        )  # fmt: skip
        dstates[0][k], dstates[1][k] = dh0[0], dc0[0]
        if k in wanted.layers:
            for of_kind, grad in zip(of_weights, grads, strict=True):
                if of_kind:
                    of_kind[k] = grad[0]
        if k == 0:
            dx = layer_dx
        elif wanted.dx_of(k):
            doutput = dropout.apply(layer_dx, mask)
            if dhidden[k - 1] is not None:
                doutput = doutput + dhidden[k - 1]
    return dx, *map(torch.stack, dstates), *of_weights

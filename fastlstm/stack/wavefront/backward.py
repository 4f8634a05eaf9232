"""The backward of a stack, `fastlstm::stack_backward`. Sizes, chunks and lanes as in forward.py."""

import torch

from ...ops import recurrence
from ...ops.layer import LayerBackward, LayerGrads
from ...ops.weight_gradients import Wanted, weight_gradients
from ...precision import accumulation_dtype
from ...weights import LSTMWeights
from .calls import StackBackward, StackGrads, apply_dropout, dropout_mask
from .forward import Masks, sweep


class _BackwardLayer:
    """The backward of a layer: `chunk(k)` goes back through the k-th chunk from the end."""

    def __init__(
        self, run, call: StackBackward, masks: Masks, k: int, weights: LSTMWeights, above,
        results: StackGrads,
    ) -> None:  # fmt: skip
        """run: the recurrence's backward. above: the layer above, None for the last. results: the
        gradients to write."""
        self.run, self.call, self.masks, self.k, self.results = run, call, masks, k, results
        self.weights = weights
        self.whole = len(masks.spans) == 1
        self.doutput = call.doutput if above is None else above.dx
        self.dcells = call.dcells if above is None else None
        self.h0, self.c0 = call.h0[k : k + 1], call.c0[k : k + 1]
        self.dh, self.dc = (None if d is None else d[k : k + 1] for d in (call.dh_n, call.dc_n))
        self.output, self.cells, self.gates = call.output_of(k), call.cells_of(k), call.gates[k]
        self.dx = None
        if call.wants_dx_of(k):
            like = torch.contiguous_format
            self.dx = torch.empty_like(call.input_of(k), memory_format=like) if k else results.dx
        if not self.whole:
            self.dgates_x = torch.empty_like(self.gates)
            shape = (*self.output.shape[:2], 1, self.output.shape[2])
            projected = weights.weight_hr is not None
            self.dhidden = self.cells.new_empty(shape if projected else (0,))

    def chunk(self, k: int) -> None:
        spans = self.masks.spans
        k = len(spans) - 1 - k
        if k == len(spans) - 1:
            self._start()
        start, end = spans[k]
        steps = slice(None) if self.whole else slice(start, end)
        before = self.entering_c if start == 0 else self.cells[start - 1].transpose(0, 1)
        lengths, reset_mask = self.masks.of(k)
        call = recurrence.Backward(
            None if self.doutput is None else self.doutput[steps], self.dh, self.dc,
            None if self.dcells is None else self.dcells[steps], None, self.h0, before,
            self.weight_hh, self.weight_hr, self.cells[steps], self.gates[steps], lengths,
            reset_mask, wide_gates=False,
        )  # fmt: skip
        found = recurrence.Grads(*self.run(*call))
        self.dh, self.dc = found.dh0, found.dc0
        if self.whole:
            self.dgates_x, self.dhidden = found.dgates_x, found.dhidden
        else:
            self.dgates_x[steps].copy_(found.dgates_x)
            if found.dhidden.numel():
                self.dhidden[steps].copy_(found.dhidden)
        if self.dx is not None:
            dx, mask = self.dx[steps], dropout_mask(self.call, self.k)
            torch.mm(found.dgates_x.flatten(0, 2), self.weights.weight_ih, out=dx.flatten(0, 1))
            if mask is not None:
                dx.copy_(apply_dropout(dx, mask[steps], self.call.dropout))
        if k == 0:
            self._finish()

    def _start(self) -> None:
        w = self.weights
        self.weight_hh = w.weight_hh.unsqueeze(0)
        self.weight_hr = None if w.weight_hr is None else w.weight_hr.unsqueeze(0)
        self.entering_c = self.c0
        if not self.whole:
            wide = accumulation_dtype(self.h0.dtype)
            self.entering_c = self.c0.to(wide)
            self.dh, self.dc = (d if d is None else d.to(wide) for d in (self.dh, self.dc))

    def _finish(self) -> None:
        call, results, k = self.call, self.results, self.k
        results.dh0[k].copy_(self.dh[0])
        results.dc0[k].copy_(self.dc[0])
        if not call.need_dweights[k]:
            return
        x = apply_dropout(call.input_of(k), dropout_mask(call, k), call.dropout)
        grads = weight_gradients(
            self.dgates_x, self.dhidden, x, self.output, self.h0, self.cells, self.gates,
            call.lengths, call.reset_mask, Wanted(True, True, True, self.weight_hr is not None),
        )  # fmt: skip
        results.dweights_ih[k].copy_(grads.ih[0])
        results.dweights_hh[k].copy_(grads.hh[0])
        results.dbiases[k].copy_(grads.bias[0])
        if grads.hr is not None:
            results.dweights_hr[k].copy_(grads.hr[0])


def backward(run, call: StackBackward, chunk: int) -> StackGrads:
    """All layers' backward. run: the recurrence's backward op. chunk: as for `forward`."""
    results = empty_gradients(call)
    if call.lowest:
        results.dh0.zero_()
        results.dc0.zero_()
    masks = Masks(call.x.shape[0], chunk, call.lengths, call.reset_mask)
    layers, weights = [], call.layers()
    for k in range(len(weights) - 1, call.lowest - 1, -1):
        above = layers[-1] if layers else None
        layers.append(_BackwardLayer(run, call, masks, k, weights[k], above, results))
    sweep(call.x.device, layers, len(masks.spans))
    return results


def empty_gradients(call: StackBackward) -> StackGrads:
    """Uninitialised tensors of the backward's shapes; also its fake kernel."""
    x, h0, c0 = call.x, call.h0, call.c0

    def of_weights(like):
        return [
            w.new_empty(w.shape if need else (0,))
            for w, need in zip(like, call.need_dweights[: len(like)], strict=True)
        ]

    H4 = 4 * c0.shape[2]
    return StackGrads(
        x.new_empty(x.shape if call.need_dx else (0,)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        of_weights(call.weights_ih),
        of_weights(call.weights_hh),
        [x.new_empty((H4 if need else 0,)) for need in call.need_dweights],
        of_weights(call.weights_hr),
    )


def plain_backward(layer_backward, call: StackBackward, of_tape=None) -> StackGrads:
    """As `backward`, layer by layer, by calls that autograd and vmap support.

    Args:
        layer_backward: (`LayerBackward`, the gradient of its gates or None) -> `LayerGrads`.
        of_tape: gradients of the tape's lists hidden, lower_cells and gates, with None for zero;
        None if all are zero.
    """
    weights = call.layers()
    L, doutput = len(weights), call.doutput
    dhidden, dlower_cells, dgates = of_tape or ([None] * L,) * 3
    results = empty_gradients(call)
    dx, dh0, dc0 = results.dx, *([torch.zeros_like(s[0])] * L for s in (call.h0, call.c0))
    for k in range(L - 1, call.lowest - 1, -1):
        mask, w, row = dropout_mask(call, k), weights[k], slice(k, k + 1)
        found = LayerGrads(
            *layer_backward(
                LayerBackward(
                    doutput,
                    *(None if d is None else d[row] for d in (call.dh_n, call.dc_n)),
                    call.dcells if k == L - 1 else dlower_cells[k],
                    apply_dropout(call.input_of(k), mask, call.dropout), call.h0[row],
                    call.c0[row], w.weight_ih, w.weight_hh, w.weight_hr, None, None, None,
                    call.output_of(k), call.cells_of(k), call.gates[k], call.lengths,
                    call.reset_mask, wide_products=False, need_dx=call.wants_dx_of(k),
                    need_dweights=call.need_dweights[k],
                ),
                dgates[k],
            )
        )  # fmt: skip
        dh0[k], dc0[k] = found.dh0[0], found.dc0[0]
        if call.need_dweights[k]:
            results.dweights_ih[k] = found.dweight_ih[0]
            results.dweights_hh[k] = found.dweight_hh[0]
            results.dbiases[k] = found.dbias[0]
            if w.weight_hr is not None:
                results.dweights_hr[k] = found.dweight_hr[0]
        if k == 0:
            dx = found.dx
        elif call.wants_dx_of(k):
            doutput = apply_dropout(found.dx, mask, call.dropout)
            if dhidden[k - 1] is not None:
                doutput = doutput + dhidden[k - 1]
    return results._replace(dx=dx, dh0=torch.stack(dh0), dc0=torch.stack(dc0))

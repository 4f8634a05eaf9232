"""The custom ops of a stack of layers of one direction, `fastlstm::stack_forward` and
`stack_backward`; calls.py describes their arguments. They call the recurrence ops of the prefix
that is an argument.

They are used where layers are faster when run concurrently (plan.py); otherwise, and for two
directions, each layer is an op (ops/layer.py), or on a GPU the whole stack (stack/whole.py). The
results equal those of the layers' ops, but for the order in which products of fewer rows may sum.
In 16-bit dtypes the whole stack's differ: it keeps the sum of the biases, and a gate's input, in
the tensors' own dtype, these ops in the accumulation dtype.
"""

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ...fields import only
from ...ops import layer as layer_ops
from ...ops import transforms
from ...ops.define import as_function, define_op
from ...ops.layer import LayerBackward, LayerGrads
from ...ops.library import below_autograd, op
from ...ops.lists import where_needed
from ...precision import accumulation_dtype
from ...reference.backward import lstm_backward
from . import backward as stack_backward
from . import forward as stack
from . import plan as wavefront
from .calls import StackBackward, StackForward, StackGrads, StackResults, StackTape


def _chunk(call: StackForward | StackBackward, layers: int) -> int:
    x, (_, _, H) = call.x, call.c0.shape
    sizes = (x.shape[0], x.shape[1], layers, H)
    return wavefront.chunk_steps(call.family, x.device, x.dtype, sizes, bool(call.weights_hr))


def _forward(call: StackForward) -> StackResults:
    chunk = _chunk(call, len(call.weights_ih))
    return stack.forward(op(f"{call.family}_forward"), call, chunk)


def _backward(call: StackBackward) -> StackGrads:
    chunk = _chunk(call, len(call.weights_ih) - call.lowest)
    return stack_backward.backward(op(f"{call.family}_backward"), call, chunk)


def _forward_fake(call: StackForward) -> StackResults:
    (T, N, _), h0, c0 = call.x.shape, call.h0, call.c0
    (L, _, H), P, wide = c0.shape, h0.shape[2], accumulation_dtype(call.x.dtype)
    below, cells = L - 1 if call.save_tape else 0, (T, N, 1, H)
    save_cells = call.save_tape or call.save_cells
    return StackResults(
        h0.new_empty((T, N, P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty(cells if save_cells else (0,), dtype=wide),
        [h0.new_empty((T, N, P)) for _ in range(below)],
        [h0.new_empty(cells, dtype=wide) for _ in range(below)],
        [h0.new_empty((T, N, 1, 4 * H)) for _ in range(L if call.save_tape else 0)],
    )


def _batched(grads) -> bool:
    """Whether any is batched by vmap: torch.func's, or the older one behind is_grads_batched."""
    functorch = torch._C._functorch
    return torch._C._are_functorch_transforms_active() or any(
        functorch.is_legacy_batchedtensor(g) for g in grads if g is not None
    )


def _by_ops(prefix: str):
    """A layer's backward op, for `plain_backward`: vmap supports it, but not an op with lists."""
    run = op(f"{prefix}_layer_backward")
    return lambda call, _: run(*call)


def _by_products(recurrence_backward):
    """A layer's backward by torch's products around the recurrence's, for `plain_backward`."""

    def run(call: LayerBackward, dgates_out: Tensor | None) -> LayerGrads:
        return layer_ops.plain_backward(recurrence_backward, call, dgates_out)

    return run


def _gradients(tape: StackTape, grads: StackResults, needs: StackForward) -> StackForward:
    L = len(needs.weights_ih)
    kinds = needs.weights_ih, needs.weights_hh, needs.biases_ih, needs.biases_hh, needs.weights_hr
    need_dweights = [any(of_kind[k] for of_kind in kinds if of_kind) for k in range(L)]
    lowest = 0 if needs.x or needs.h0 or needs.c0 else need_dweights.index(True)
    prefix, *rest = tape
    of_results = grads.output, grads.h_n, grads.c_n, grads.cells
    call = StackBackward(prefix, *of_results, *rest, lowest, needs.x, need_dweights)
    of_tape = [given or [None] * L for given in (grads.hidden, grads.lower_cells, grads.gates)]
    if any(grad is not None for given in of_tape for grad in given):
        # The tape has gradients only in a second derivative, which has no compiled kernels.
        rule = _by_products(op("reference_backward"))
        results = stack_backward.plain_backward(rule, call, of_tape)
    elif _batched(of_results):
        results = stack_backward.plain_backward(_by_ops(prefix), call)
    else:
        with contextlib.nullcontext() if torch.is_grad_enabled() else below_autograd():
            results = StackGrads(*_backward_op.overload(*call))

    has_bias_ih, has_bias_hh = bool(needs.biases_ih), bool(needs.biases_hh)
    return only(
        StackForward,
        x=results.dx if needs.x else None,
        h0=results.dh0 if needs.h0 else None,
        c0=results.dc0 if needs.c0 else None,
        weights_ih=where_needed(results.dweights_ih, needs.weights_ih),
        weights_hh=where_needed(results.dweights_hh, needs.weights_hh),
        biases_ih=where_needed(results.dbiases if has_bias_ih else [], needs.biases_ih),
        # Both biases have the same gradient, but an op's results must not share memory.
        biases_hh=where_needed([d.clone() for d in results.dbiases] if has_bias_hh else [], needs.biases_hh),
        weights_hr=where_needed(results.dweights_hr, needs.weights_hr),
        dropout_masks=[None for _ in tape.dropout_masks],
    )


_forward_op = define_op(
    "stack_forward",
    StackForward,
    StackResults,
    run=_forward,
    fake=_forward_fake,
    tape=StackTape,
    gradients=_gradients,
)
_backward_op = define_op(
    "stack_backward",
    StackBackward,
    StackGrads,
    run=_backward,
    fake=stack_backward.empty_gradients,
    plain=lambda call: stack_backward.plain_backward(_by_products(lstm_backward), call),
)
_function = as_function(_forward_op)


def takes(prefix: str, device: torch.device, weights: Sequence[Sequence[Tensor | None]]) -> bool:
    """Whether these ops support a stack of one direction. Not a single layer, not layers of which
    only some have a bias or a projection, and not the CPU's compiled kernels, which are ops of
    whole layers.

    Args:
        weights: for each layer (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr).
    """
    if len(weights) == 1 or (prefix == "lstm" and device.type == "cpu"):
        return False
    if not wavefront.possible(prefix, device):
        return False
    if transforms.active():
        return False
    return all(
        (one is None) == (first is None) for layer in weights[1:] for one, first in zip(layer, weights[0], strict=True)
    )


def forward(arguments: tuple, save_tape: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """output, h_n, c_n and cells of `stack_forward`, with the least overhead that the call allows.
    arguments: the op's. save_tape: the value of `save_tape` among them."""
    if torch.compiler.is_compiling():
        results = _forward_op.overload(*arguments)
    elif save_tape:
        results = _function(*arguments)
    else:
        with below_autograd():
            results = _forward_op.overload(*arguments)
    output, h_n, c_n, cells, *_ = results
    return output, h_n, c_n, cells

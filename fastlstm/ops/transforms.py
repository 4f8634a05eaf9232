"""A layer under torch.func's transforms (grad, vjp, jvp, vmap and all made of these) and under
forward-mode AD.

torch.func takes an autograd.Function that says what vmap and jvp do to it; an op with a registered
autograd formula it does not take. So there is a pair of Functions for each family of ops, around
its layer's forward and backward (layer.py), and all transforms compose from their rules:

* Derivatives are the ops' own: the compiled kernels run, and a derivative of the backward is the
  reference's.
* vmap over inputs, states and masks folds the batch into the rows N: one call of the kernels, also
  in the backward, where the sums over rows that weights' gradients are stay apart for each sample.
* vmap over weights (an ensemble) is a call for each member: a call has one set of weights.
* Forward-mode tangents: tangents.py. What follows in a backward under forward mode is plain torch.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..reference import lstm as reference
from . import tangents
from .library import keep_backward_inputs, library, outside_autocast
from .weight_gradients import backward_of_samples

_below_autograd = torch._C._AutoDispatchBelowAutograd
_FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
# Where the rows N stand in the arguments of the ops, those after the weights counted from the end,
# and where the weights stand.
_ROWS = {
    "forward": {0: 1, 1: 1, 2: 1, -5: 0, -4: 1},
    "backward": {0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 13: 1, 14: 1, 15: 1, 16: 0, 17: 1},
}
_WEIGHT_PLACES = {"forward": range(3, 13), "backward": range(7, 13)}


def forward_mode() -> bool:
    """Whether forward-mode AD may be under way, torch.func's or torch.autograd's own."""
    return forward_ad._current_level >= 0


def active() -> bool:
    """Whether a call is to go by the Functions of this file."""
    # Asked at every call, so without `forward_mode()`.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """Whether one of torch.func's transforms under way is `functionalize`, which takes none of the
    Functions of this file, but plain torch."""
    # Dynamo does not trace the question, nor `functionalize`.
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(i.key() == _FUNCTIONALIZE for i in stack)


def _select(args, in_dims, k: int) -> list:
    """The arguments of member k."""
    return [a.select(d, k) if d is not None else a for a, d in zip(args, in_dims, strict=True)]


def _for_each(call, info, in_dims, args):
    """`call` for each member by itself."""
    results = [call(*_select(args, in_dims, k)) for k in range(info.batch_size)]
    stacked = tuple(torch.stack(r) for r in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _fold(which: str, info, in_dims, args) -> list:
    """The arguments with the batch and the rows as one dimension, batch first."""
    args = list(args)
    for place, row in _ROWS[which].items():
        value, dim = args[place], in_dims[place]
        if value is None:
            continue
        if dim is None:
            value = value.unsqueeze(row)
            value = value.expand(*value.shape[:row], info.batch_size, *value.shape[row + 1 :])
        else:
            value = value.movedim(dim, row)
        args[place] = value.flatten(row, row + 1)
    return args


def _unfold(results, rows, batch_size: int):
    """Results with the batch again by itself, and where it is; `rows` has N's place in each, None
    for a result that has none and is of no batch."""
    out = tuple(
        r if row is None else r.unflatten(row, (batch_size, r.shape[row] // batch_size))
        for r, row in zip(results, rows, strict=True)
    )
    return out, tuple(rows)


def _weights_batched(which: str, in_dims) -> bool:
    return any(in_dims[k] is not None for k in _WEIGHT_PLACES[which])


def batch_forward(call, info, in_dims, *args):
    """What vmap does to the forward of a layer; `call` is that, one level further out."""
    if _weights_batched("forward", in_dims):
        return _for_each(call, info, in_dims, args)
    results = call(*_fold("forward", info, in_dims, args))
    rows = [1 if r.dim() > 1 else None for r in results]
    return _unfold(results, rows, info.batch_size)


def batch_backward(call, info, in_dims, *args):
    """What vmap does to the backward of a layer, as `batch_forward`; the last argument is
    `samples`, see `backward_of_samples`."""
    if _weights_batched("backward", in_dims):
        return _for_each(call, info, in_dims, args)
    *rest, need_dweights, samples = _fold("backward", info, in_dims, args)
    together = info.batch_size * max(samples, 1) if need_dweights else 0
    results = call(*rest, need_dweights, together)
    rows = [1 if r.dim() > 1 else None for r in results[:3]]
    rows += [0 if r.dim() > 1 else None for r in results[3:]]
    results, rows = _unfold(results, rows, info.batch_size)
    if not samples:
        results = (*results[:3], *(r.squeeze(1) if r.dim() > 1 else r for r in results[3:]))
    return results, rows


@outside_autocast
def _pull_back(ctx, grads, rule):
    """The derivative of a backward by torch.func.vjp through `rule`, the same in plain torch; as
    `ops.differentiate_backward`, which is for autograd without transforms."""
    inputs, places = list(ctx.saved_tensors), len(ctx.needs_input_grad)
    wanted = [k for k, x in enumerate(inputs) if x is not None and ctx.needs_input_grad[k]]

    def function(*leaves):
        given = list(inputs)
        for k, leaf in zip(wanted, leaves, strict=True):
            given[k] = leaf
        return rule(*given, *ctx.scalars)

    results, pull = torch.func.vjp(function, *(inputs[k] for k in wanted))
    grads = (torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
    found = dict(zip(wanted, pull(tuple(grads)), strict=True))
    return tuple(found.get(k) for k in range(places))


# family -> a layer's forward, and its backward, under whatever transforms there are, with the
# arguments of its ops.
layers: dict = {}
backwards: dict = {}


def define(family: str, setup_forward, forward_autograd, plain_backward) -> None:
    """Makes `layers[family]` and `backwards[family]`, where the family's layer ops are defined.

    Args:
        setup_forward, forward_autograd: setup_context and backward of the layer's forward.
        plain_backward: the layer's backward in plain torch.
    """
    op, backward_op, recurrence_backward = (
        getattr(torch.ops.fastlstm, f"{family}_{name}").default
        for name in ("layer_forward", "layer_backward", "backward")
    )

    def run(*args):
        *given, samples = args
        if samples:
            return backward_of_samples(recurrence_backward, *args)
        return backward_op(*given)

    def plain(*args):
        *given, samples = args
        if samples:
            return backward_of_samples(reference.lstm_backward, *args)
        return plain_backward(*given)

    class LayerBackward(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            with _below_autograd():
                return run(*args)

        setup_context = staticmethod(keep_backward_inputs(18))

        @staticmethod
        def backward(ctx, *grads):
            return _pull_back(ctx, grads, plain)

        @staticmethod
        def vmap(info, in_dims, *args):
            return batch_backward(LayerBackward.apply, info, in_dims, *args)

    class LayerForward(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            with _below_autograd():
                return op(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup_forward(ctx, inputs, output)
            ctx.save_for_forward(*inputs[:15], output[0], output[3], output[4])

        backward = staticmethod(forward_autograd)

        @staticmethod
        def vmap(info, in_dims, *args):
            return batch_forward(LayerForward.apply, info, in_dims, *args)

        @staticmethod
        def jvp(ctx, *changes):
            # Torch turns forward mode off here; forward mode further out needs it, and then what
            # was saved is to be without the tangents that are this call's own.
            with forward_ad._set_fwd_grad_enabled(True):
                return _tangents(
                    [t if t is None else _primal(t) for t in ctx.saved_tensors], changes
                )

    def layer(*args):
        *given, save_tape, save_cells = args
        # In a transform a tensor's requires_grad says nothing of the levels further out.
        save_tape = save_tape or torch.is_grad_enabled() or forward_mode()
        return LayerForward.apply(*given, save_tape, save_cells)

    def backward(*args):
        return (plain if forward_mode() else LayerBackward.apply)(*args, 0)

    def batch_forward_op(info, in_dims, *args):
        return batch_forward(op, info, in_dims, *args)

    def batch_backward_op(info, in_dims, *args):
        return batch_backward(run, info, (*in_dims, None), *args, 0)

    layers[family], backwards[family] = layer, backward
    for which, rule in ((op, batch_forward_op), (backward_op, batch_backward_op)):
        torch.library.register_vmap(which, rule, lib=library)


def _primal(value: Tensor) -> Tensor:
    return forward_ad.unpack_dual(value).primal


@outside_autocast
def _tangents(saved, changes):
    """`tangents.layer_tangents` of a layer's arguments and tape, and of its arguments' tangents."""
    x, h0, c0, *weights, lengths, reset_mask, output, cells, gates = saved
    weights, weight_changes = (
        [dict(zip(_WEIGHTS, values[k : k + 5], strict=True)) for k in range(0, 5 * h0.shape[0], 5)]
        for values in (weights, changes[3:13])
    )
    states = dict(zip(("x", "h0", "c0"), changes[:3], strict=True))
    tape = output, cells, gates
    return tangents.layer_tangents(
        x, h0, c0, weights, states, weight_changes, tape, lengths, reset_mask
    )


def allow_in_graph(family: str) -> None:
    """Have torch.compile take `layers[family]` as one node and trace into it with the transforms
    done, where it finds ops only. Comes before torch.compile first sees that function."""
    torch.compiler.allow_in_graph(layers[family])


# torch.compile then calls it, for real, while it traces: torch.compiler.assume_constant_result
# would say so too, but import all of the compiler here.
allow_in_graph._dynamo_marked_constant = True

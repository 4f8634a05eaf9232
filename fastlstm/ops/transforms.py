"""A layer under torch.func's transforms (grad, vjp, jvp, vmap and all made of these) and under
forward-mode AD.

torch.func takes an autograd.Function that says what vmap and jvp do to it; an op with a registered
autograd formula it does not take. So there is a pair of Functions for each family of ops, around
its layer's forward and backward (layer.py), and all transforms compose from their rules:

* Derivatives are the ops' own: the compiled kernels run, and a derivative of the backward is the
  reference's.
* vmap over inputs, states and masks folds the batch into the rows N: one call of the kernels, also
  in the backward, where the weights' gradients, sums over rows, stay apart for each sample.
* vmap over weights (an ensemble) is a call for each member: a call has one set of weights.
* Forward-mode tangents: tangents.py. What follows in a backward under forward mode is plain torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import tangents
from .define import Op
from .library import below_autograd, outside_autocast

_FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize
# Where the rows N stand in the arguments of a layer's ops that have rows.
_ROWS = {
    **dict.fromkeys(("doutput", "dh_n", "dc_n", "dcells", "x", "h0", "c0"), 1),
    **dict.fromkeys(("output", "cells", "gates", "reset_mask"), 1),
    "lengths": 0,
}


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


def _for_each(run, info, in_dims, call):
    """`run` for each member by itself."""
    results = []
    for k in range(info.batch_size):
        member = (
            a if dim is None else a.select(dim, k) for a, dim in zip(call, in_dims, strict=True)
        )
        results.append(run(type(call)(*member)))
    stacked = tuple(torch.stack(r) for r in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _folded(info, in_dims, call):
    """The arguments with the batch and the rows as one dimension, batch first."""
    folded = {}
    for name, row in _ROWS.items():
        value, dim = getattr(call, name, None), getattr(in_dims, name, None)
        if value is None:
            continue
        if dim is None:
            value = value.unsqueeze(row)
            value = value.expand(*value.shape[:row], info.batch_size, *value.shape[row + 1 :])
        else:
            value = value.movedim(dim, row)
        folded[name] = value.flatten(row, row + 1)
    return call._replace(**folded)


def _unfold(results, rows, batch_size: int):
    """Results with the batch again by itself, and where it is; `rows` has N's place in each, None
    for a result without elements, which is of no batch."""
    rows = tuple(row if r.dim() > 1 else None for r, row in zip(results, rows, strict=True))
    out = tuple(
        r if row is None else r.unflatten(row, (batch_size, r.shape[row] // batch_size))
        for r, row in zip(results, rows, strict=True)
    )
    return out, rows


def _weights_batched(in_dims) -> bool:
    return any(
        dim is not None
        for name, dim in zip(in_dims._fields, in_dims, strict=True)
        if name.startswith(("weight", "bias"))
    )


def batch_forward(run: Callable, info, in_dims, call):
    """What vmap does to the forward of a layer; `run` is that of a call, one level further out."""
    if _weights_batched(in_dims):
        return _for_each(run, info, in_dims, call)
    results = run(_folded(info, in_dims, call))
    return _unfold(results, (1,) * len(results), info.batch_size)


def batch_backward(run: Callable, info, in_dims, call, samples: int | None):
    """What vmap does to the backward of a layer, as `batch_forward`; `run` takes the samples
    (`weight_gradients`) too."""
    if _weights_batched(in_dims):
        return _for_each(lambda member: run(member, samples), info, in_dims, call)
    together = info.batch_size * (samples or 1) if call.need_dweights else None
    results = run(_folded(info, in_dims, call), together)
    of_inputs, of_weights = (1, 1, 1), (0, 0, 0, 0)
    results, dims = _unfold(results, (*of_inputs, *of_weights), info.batch_size)
    if samples is None:
        # Of one sample each, which has no dimension of its own.
        count = len(of_inputs)
        of_weights = (r.squeeze(1) if r.dim() > 1 else r for r in results[count:])
        results = *results[:count], *of_weights
    return results, dims


@outside_autocast
def _pull_back(call, needs, grads, rule):
    """The gradients of a backward's arguments by torch.func.vjp through `rule`, the same in plain
    torch; `define_op`'s own way is for autograd without transforms."""
    wanted = {
        name: value
        for name, value, need in zip(call._fields, call, needs, strict=True)
        if value is not None and need
    }

    def function(*leaves):
        return tuple(rule(call._replace(**dict(zip(wanted, leaves, strict=True)))))

    results, pull = torch.func.vjp(function, *wanted.values())
    grads = (torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
    found = dict(zip(wanted, pull(tuple(grads)), strict=True))
    return tuple(found.get(name) for name in call._fields)


# family -> a layer's forward, which takes its op's arguments, and its backward, which takes a
# `LayerBackward`, under whatever transforms there are.
layers: dict = {}
backwards: dict = {}


def define(family: str, forward_op: Op, backward_op: Op, run_backward, plain_backward) -> None:
    """Makes `layers[family]` and `backwards[family]`, where the family's layer ops are defined.

    Args:
        run_backward, plain_backward: the layer's backward of a call and samples (see
        `weight_gradients`), by kernels and in plain torch.
    """
    op, Forward, Backward = forward_op.overload, forward_op.arguments, backward_op.arguments

    class LayerBackward(torch.autograd.Function):
        @staticmethod
        def forward(samples, *args):
            with below_autograd():
                return tuple(run_backward(Backward(*args), samples))

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.samples, *call = inputs
            backward_op.keep(ctx, call, output)

        @staticmethod
        def backward(ctx, *grads):
            def plain(call):
                return plain_backward(call, ctx.samples)

            _, *needs = ctx.needs_input_grad
            return None, *_pull_back(backward_op.kept(ctx), needs, grads, plain)

        @staticmethod
        def vmap(info, in_dims, samples, *args):
            def run(call, samples):
                return LayerBackward.apply(samples, *call)

            _, *in_dims = in_dims
            return batch_backward(run, info, Backward(*in_dims), Backward(*args), samples)

    class LayerForward(torch.autograd.Function):
        @staticmethod
        def forward(*args):
            with below_autograd():
                return op(*args)

        @staticmethod
        def setup_context(ctx, inputs, output):
            forward_op.keep(ctx, inputs, output)
            given = (v if v is None or isinstance(v, Tensor) else None for v in inputs)
            ctx.save_for_forward(*given, *output)

        @staticmethod
        def backward(ctx, *grads):
            return forward_op.backward(ctx, *grads)

        @staticmethod
        def vmap(info, in_dims, *args):
            def run(call):
                return LayerForward.apply(*call)

            return batch_forward(run, info, Forward(*in_dims), Forward(*args))

        @staticmethod
        def jvp(ctx, *changes):
            # Torch turns forward AD off here. Re-enable it for outer levels, and strip this level's
            # tangents of what was saved.
            with forward_ad._set_fwd_grad_enabled(True):
                saved = [t if t is None else _primal(t) for t in ctx.saved_tensors]
                count = len(Forward._fields)
                results = forward_op.results(*saved[count:])
                return _tangents(Forward(*saved[:count]), Forward(*changes), results)

    def layer(*args):
        call = Forward(*args)
        # In a transform a tensor's requires_grad says nothing of the levels further out.
        save_tape = call.save_tape or torch.is_grad_enabled() or forward_mode()
        return LayerForward.apply(*call._replace(save_tape=save_tape))

    def backward(call):
        return plain_backward(call) if forward_mode() else LayerBackward.apply(None, *call)

    layers[family], backwards[family] = layer, backward


_tangents = outside_autocast(tangents.layer_tangents)


def _primal(value: Tensor) -> Tensor:
    return forward_ad.unpack_dual(value).primal


def allow_in_graph(family: str) -> None:
    """Have torch.compile take `layers[family]` as one node and trace into it with the transforms
    done, where it finds ops only. Comes before torch.compile first sees that function."""
    torch.compiler.allow_in_graph(layers[family])


# torch.compile then calls it, for real, while it traces: torch.compiler.assume_constant_result
# would say so too, but import all of the compiler here.
allow_in_graph._dynamo_marked_constant = True

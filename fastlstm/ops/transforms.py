"""A layer under torch.func's transforms (grad, vjp, jvp, vmap and all made of these) and under
forward-mode AD.

torch.func supports an autograd.Function with rules for vmap and jvp, but not an op whose autograd
formula is registered. So each prefix has a pair of Functions around its layer's forward and
backward ops (layer.py), and all transforms compose from their rules:

* First derivatives are the ops' own, by the compiled kernels; the derivative of a backward is that
  of the reference.
* vmap over inputs, states and masks folds the batch into the rows N: one call of the kernels. So
  does the backward, where the gradients of weights, sums over rows, are kept apart for each sample.
* vmap over weights (an ensemble) makes a call for each member, since a call has one set of weights.
* Forward-mode tangents are in tangents.py. A backward under forward mode is plain torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import tangents
from .define import Op
from .library import below_autograd, outside_autocast

_FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize
# The dimension of the rows N in those arguments of a layer's ops that have rows.
_ROWS = {
    **dict.fromkeys(("doutput", "dh_n", "dc_n", "dcells", "x", "h0", "c0"), 1),
    **dict.fromkeys(("output", "cells", "gates", "reset_mask"), 1),
    "lengths": 0,
}


def forward_mode() -> bool:
    """Whether forward-mode AD may be active, torch.func's or torch.autograd's."""
    return forward_ad._current_level >= 0


def active() -> bool:
    """Whether a call has to use the Functions of this file."""
    # `forward_mode()` is inlined: every call asks this.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def functionalized() -> bool:
    """Whether `functionalize` is among torch.func's active transforms: it supports plain torch, but
    no autograd.Function."""
    # Dynamo can trace neither this question nor `functionalize`.
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(i.key() == _FUNCTIONALIZE for i in stack)


def _for_each(run, info, in_dims, call):
    """`run` for one member of the batch at a time."""
    results = []
    for k in range(info.batch_size):
        member = (a if dim is None else a.select(dim, k) for a, dim in zip(call, in_dims, strict=True))
        results.append(run(type(call)(*member)))
    stacked = tuple(torch.stack(r) for r in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def _folded(info, in_dims, call):
    """The arguments with the batch folded into the rows: (batch * N), the batch varying slowest."""
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
    """Undoes `_folded` in the results; returns them and the batch's dimension in each. rows: the
    dimension of N in each. Results without elements have no batch (None)."""
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
    """The vmap rule of a layer's forward. run: the forward of a call, one transform further out."""
    if _weights_batched(in_dims):
        return _for_each(run, info, in_dims, call)
    results = run(_folded(info, in_dims, call))
    return _unfold(results, (1,) * len(results), info.batch_size)


def batch_backward(run: Callable, info, in_dims, call, samples: int | None):
    """The vmap rule of a layer's backward, as `batch_forward`. run: takes the number of samples
    (`weight_gradients`) too."""
    if _weights_batched(in_dims):
        return _for_each(lambda member: run(member, samples), info, in_dims, call)
    together = info.batch_size * (samples or 1) if call.need_dweights else None
    results = run(_folded(info, in_dims, call), together)
    of_inputs, of_weights = (1, 1, 1), (0, 0, 0, 0)
    results, dims = _unfold(results, (*of_inputs, *of_weights), info.batch_size)
    if samples is None:
        # Each member of the batch is one sample: remove the dimension of samples.
        count = len(of_inputs)
        of_weights = (r.squeeze(1) if r.dim() > 1 else r for r in results[count:])
        results = *results[:count], *of_weights
    return results, dims


@outside_autocast
def _pull_back(call, needs, grads, rule):
    """The gradients of a backward's arguments, by torch.func.vjp through `rule`, the same function
    in plain torch. (`define._through_plain` is for autograd without transforms.)"""
    wanted = {
        name: value for name, value, need in zip(call._fields, call, needs, strict=True) if value is not None and need
    }

    def function(*leaves):
        return tuple(rule(call._replace(**dict(zip(wanted, leaves, strict=True)))))

    results, pull = torch.func.vjp(function, *wanted.values())
    grads = (torch.zeros_like(r) if g is None else g for g, r in zip(grads, results, strict=True))
    found = dict(zip(wanted, pull(tuple(grads)), strict=True))
    return tuple(found.get(name) for name in call._fields)


# By prefix, under any transforms: a layer's forward, of its op's arguments, and its backward, of a
# `LayerBackward`.
layers: dict = {}
backwards: dict = {}


def define(prefix: str, forward_op: Op, backward_op: Op, run_backward, plain_backward) -> None:
    """Defines `layers[prefix]` and `backwards[prefix]` from the layer ops.

    Args:
        run_backward, plain_backward: (a call, samples as for `weight_gradients`) -> the layer's
        backward, by kernels and in plain torch.
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
                saved = [t if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]
                count = len(Forward._fields)
                results = forward_op.results(*saved[count:])
                return _tangents(Forward(*saved[:count]), Forward(*changes), results)

    def layer(*args):
        call = Forward(*args)
        # Inside a transform, requires_grad does not tell what the outer transforms need.
        save_tape = call.save_tape or torch.is_grad_enabled() or forward_mode()
        return LayerForward.apply(*call._replace(save_tape=save_tape))

    def backward(call):
        return plain_backward(call) if forward_mode() else LayerBackward.apply(None, *call)

    layers[prefix], backwards[prefix] = layer, backward


_tangents = outside_autocast(tangents.layer_tangents)


def allow_in_graph(prefix: str) -> None:
    """Have torch.compile treat `layers[prefix]` as one node, which it traces after the transforms
    have been applied, down to ops. Must come before torch.compile first sees that function."""
    torch.compiler.allow_in_graph(layers[prefix])


# So that torch.compile runs it while tracing: as torch.compiler.assume_constant_result, which would
# import the whole compiler here.
allow_in_graph._dynamo_marked_constant = True

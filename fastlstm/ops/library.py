"""The namespace `fastlstm::` of torch ops, and what their definitions share."""

import functools

import torch
from torch import Tensor

library = torch.library.Library("fastlstm", "DEF")


def outside_autocast(function):
    """`function` run without autocast: what is computed in Python, by torch's own products, would
    else take autocast's dtype where a backward is called inside of it."""

    @functools.wraps(function)
    def run(*args):
        with torch._C._DisableAutocast():
            return function(*args)

    return run


def on_one_device(*tensors: Tensor | None) -> bool:
    return len({t.device for t in tensors if t is not None}) <= 1


def check_one_device(*tensors: Tensor | None) -> None:
    """For the shapes-only kernels, which torch runs for real tensors beside a meta one, too."""
    devices = sorted({str(t.device) for t in tensors if t is not None})
    if len(devices) > 1:
        raise RuntimeError(f"fastlstm: arguments on {' and '.join(devices)}, expected one device")


def check_tape(ctx, op: str) -> None:
    if not ctx.has_tape:
        raise RuntimeError(
            f"fastlstm::{op} was called with save_tape=False, so it cannot be differentiated; "
            "call it with save_tape=True"
        )


@outside_autocast
def differentiate_backward(ctx, grads, rule, tensors: int, scalars: int):
    """The derivative of a backward op, by autograd through `rule`, the same in plain torch;
    differentiable again.

    The op's arguments are `tensors` tensors (ctx.saved_tensors) and then `scalars` others
    (ctx.scalars).
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh views, so that autograd.grad below stops here and not at whatever made the tensors.
        inputs = [
            x.view_as(x) if x is not None and x.requires_grad else x for x in ctx.saved_tensors
        ]
        results = rule(*inputs, *ctx.scalars)
        wanted = [k for k in range(tensors) if ctx.needs_input_grad[k] and inputs[k] is not None]
        pairs = [
            (r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad
        ]
        found = [None] * len(wanted)
        if pairs and wanted:
            found = torch.autograd.grad(
                [r for r, _ in pairs],
                [inputs[k] for k in wanted],
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
            )
    by_place = dict(zip(wanted, found, strict=True))
    return tuple(by_place.get(k) for k in range(tensors + scalars))


def keep_backward_inputs(tensors: int):
    """A setup_context that saves a backward op's arguments for `differentiate_backward`."""

    def setup(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.scalars = inputs[tensors:]
        ctx.set_materialize_grads(False)

    return setup

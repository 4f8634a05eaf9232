"""When one op may stand for a whole call: a whole stack (whole.py) and, on the CPU, single steps
(step.py, step_training.py). The ops look at shapes and dtypes themselves and give nothing where
these do not fit; so nothing is caught here."""

import operator

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..backends import native, table
from . import whole
from .wavefront import plan

BACKENDS = ("auto", "cpu") if native.load() is None else ()
PLAIN_CLASSES = frozenset({Tensor, Parameter})
# Bound once: looking each up takes as long as asking it.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_are_transforms_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack
_requires_grad = operator.attrgetter("requires_grad")


def stands_alone(x, backend: str) -> bool:
    """Whether an op may stand for the general way: on the CPU, and nothing traced, transformed or
    cast."""
    return plainly_called(x) and backend in BACKENDS and x.is_cpu


def plainly_called(x) -> bool:
    """Whether x is a plain tensor, and nothing is traced, transformed or cast."""
    # What `transforms.active` asks is asked here: another call of a function takes as long.
    return type(x) is Tensor and not (
        _is_compiling()
        or _is_autocast_enabled()
        or _are_transforms_active()
        or forward_ad._current_level >= 0
        or _tracing_state() is not None
    )


# (device, dtype, backend) -> the table that was asked, and the pair of the row that serves.
_found: dict[tuple, tuple] = {}


def pair_for(x, backend: str) -> whole.Pair | None:
    """The pair of ops that may stand for a whole call on x; None where none may. It takes all
    arguments that fit each other: dropout is drawn before it is called."""
    if not plainly_called(x):
        return None
    if x.is_cpu:
        if backend in BACKENDS:
            return whole.PAIRS["lstm"]
    elif not x.is_cuda:
        return None
    if x.numel() == 0:
        return None  # those of a GPU want a step, a row and an input
    key = x.device, x.dtype, backend
    found = _found.get(key)
    if found is None or found[0] is not table.TABLE:
        call = table.Call.of(x.device, x.dtype)
        rows = (r for r in table.TABLE if backend in ("auto", r.name) and r.reject(call) is None)
        row = next(rows, None)
        found = table.TABLE, None if row is None else whole.PAIRS.get(row.prefix)
        _found[key] = found
    return found[1]


def beside_each_other(pair: whole.Pair, x: Tensor, T: int, N: int, weights: list, layers: int) -> bool:
    """Whether the layers, of one direction, gain by running beside each other, which the pair does
    not do. `weights`: flat, the first layer's first."""
    if layers == 1 or T < 2 * plan.LEAST_CHUNK or not plan.possible(pair.prefix, x.device):
        return False
    sizes, projected = (T, N, layers, weights[1].shape[0] // 4), len(weights) // layers % 2 == 1
    return plan.chunk_steps(pair.prefix, x.device, x.dtype, sizes, projected) < T


def needed(x: Tensor, h: Tensor | None, c: Tensor | None, weights: list) -> list[bool] | None:
    """Of each tensor, in this order, whether its gradient is wanted; an empty list where none is.
    None where an op may not stand for a call on them: a tensor is of a class of its own, a weight
    is None, or a gradient is wanted while torch looks at each op."""
    if not PLAIN_CLASSES.issuperset(map(type, weights)):
        return None
    stateless = h is None and c is None
    if not (stateless or (type(h) in PLAIN_CLASSES and type(c) in PLAIN_CLASSES)):
        return None
    if not _is_grad_enabled():
        return []
    states = (False, False) if stateless else (h.requires_grad, c.requires_grad)
    needs = [x.requires_grad, *states, *map(_requires_grad, weights)]
    if True not in needs:
        return []
    return None if _dispatch_modes() else needs

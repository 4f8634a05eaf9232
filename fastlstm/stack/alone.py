"""When one op may stand for a whole call: the CPU's whole stack (whole.py) and single steps
(step.py, step_training.py). The ops look at shapes and dtypes themselves and give nothing where
these do not fit; so nothing is caught here."""

import torch
from torch import Tensor, nn

from ..backends import native
from ..ops import transforms

_BACKENDS = ("auto", "cpu") if native.load() is None else ()
_CLASSES = {Tensor, nn.Parameter}
# Bound once: looking each up takes as long as asking it.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_autocast_enabled = torch._C._is_any_autocast_enabled
_tracing_state = torch._C._get_tracing_state
_dispatch_modes = torch._C._len_torch_dispatch_stack


def stands_alone(x, backend: str) -> bool:
    """Whether an op may stand for the general way: on the CPU, and nothing traced, transformed or
    cast."""
    return not (
        _is_compiling()
        or type(x) is not Tensor
        or backend not in _BACKENDS
        or not x.is_cpu
        or _is_autocast_enabled()
        or transforms.active()
        or _tracing_state() is not None
    )


def needed(x: Tensor, h: Tensor | None, c: Tensor | None, weights: list) -> list[bool] | None:
    """Of each tensor, in this order, whether its gradient is wanted; an empty list where none is.
    None where an op may not stand for a call on them: a tensor is of a class of its own or not on
    the CPU, a weight is None, or a gradient is wanted while torch looks at each op."""
    if not (_CLASSES.issuperset(map(type, weights)) and weights[0].is_cpu):
        return None
    states = () if h is c is None else (h, c)
    if any(type(s) not in _CLASSES or not s.is_cpu for s in states):
        return None
    if not _is_grad_enabled():
        return []
    needs = [t is not None and t.requires_grad for t in (x, h, c, *weights)]
    if True not in needs:
        return []
    return None if _dispatch_modes() else needs

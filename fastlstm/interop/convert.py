"""convert: replaces every nn.LSTM of a model by a FastLSTM."""

import logging
import warnings
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from .. import backends
from ..nn import weight_storage
from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..nn.variant_settings import take_variants
from ..torch_classes import LSTM, LSTMCell
from . import quantization

log = logging.getLogger("fastlstm")

_FAST = {LSTM: FastLSTM, LSTMCell: FastLSTMCell}
_FAST_CLASSES = tuple(_FAST.values())


class Converted(NamedTuple):
    """An LSTM that `convert` found.

    name: the module's path in the model, "" for the model itself. kind: its class before the call.
    reason: why it was not converted; None where it was.
    """

    name: str
    kind: str
    reason: str | None


def convert(
    model: nn.Module,
    *,
    backend: str = "auto",
    checkpoint_every: int | bool | None = None,
    weight_dtype: torch.dtype | None = None,
    weight_only: bool = False,
    report: list[Converted] | None = None,
    **variants: Any,
) -> nn.Module:
    """Turns every nn.LSTM in `model` into a FastLSTM, and every nn.LSTMCell into a FastLSTMCell, in
    place.

    Returns `model`, as `Module.to` does. Each LSTM stays the same object with the same Parameter
    objects (which an optimizer may hold), hooks, buffers, training flag, parametrizations and
    names; only its class changes. So shared modules stay shared, and the model itself may be an
    nn.LSTM. For an independent copy: `convert(copy.deepcopy(model))`.

    torch's own dynamically quantised LSTMs and cells (`torch.ao.quantization.quantize_dynamic`,
    int8) become int8 FastLSTMs with the same integers and scales, and stay the same objects too.

    Not converted: instances of other subclasses of nn.LSTM, whose forward may do anything; modules
    whose forward was replaced on the instance; scripted modules; and FastLSTMs. All but the last
    are listed in a UserWarning.

    Args:
        backend, checkpoint_every: for the converted modules; see `FastLSTM`.
        weight_dtype, weight_only: for the converted modules and, unless None, also for those that
            are a FastLSTM or FastLSTMCell already; see `FastLSTM`.
        variants: layer_norm, recurrent_dropout, weight_dropout, zoneout, variational_dropout,
            batch_first_states or return_layer_outputs for every converted nn.LSTM, as for
            FastLSTM's constructor. layer_norm adds parameters, which an existing optimizer does not
            have.
        report: a list to which a `Converted` is appended for every LSTM found; there is no warning
            then.

    Raises:
        TypeError: model is not a module, or there is no such argument. ValueError: there is no such
        backend, or FastLSTM's constructor refuses a value.

    Example::

        >>> model = fastlstm.convert(model)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    backends.check_name(backend)
    # Raises for wrong values before anything is changed.
    FastLSTM(1, 1, device="meta", checkpoint_every=checkpoint_every, **variants)
    if weight_only and weight_dtype is not torch.int8:
        raise ValueError(f"weight_only: it needs weight_dtype=torch.int8, got {weight_dtype}")
    _check_storage(model, weight_dtype)
    found = []
    for name, module in list(model.named_modules()):
        kind = _kind(module)
        if kind is None:
            continue
        reason = _reason_to_leave(module)
        if reason is None:
            if quantization.quantised_kind(module) is not None:
                quantization.replace(module, quantization.from_quantised(module))
            _change_class(module, backend, checkpoint_every, variants)
        if weight_dtype is not None and isinstance(module, _FAST_CLASSES):
            module.weight_dtype = weight_dtype
            module.weight_only = weight_only
        found.append(Converted(name, kind, reason))
        log.debug("convert: %s (%s): %s", name or "the model", kind, reason or "converted")
    if report is not None:
        report.extend(found)
    else:
        left = [c for c in found if c.reason is not None and not c.reason.startswith("already")]
        if left:
            lines = [f"  {c.name or '(the model itself)'}, a {c.kind}: {c.reason}" for c in left]
            warnings.warn("fastlstm.convert left as they are:\n" + "\n".join(lines), stacklevel=2)
    return model


def _check_storage(model: nn.Module, weight_dtype: torch.dtype | None) -> None:
    for name, module in model.named_modules():
        if _kind(module) is None or quantization.quantised_kind(module) is not None:
            continue
        if isinstance(module, _FAST_CLASSES) or _reason_to_leave(module) is None:
            weight_storage.check(module, weight_dtype, f"{name}." if name else "")


def _kind(module: nn.Module) -> str | None:
    """The class name of an LSTM or a cell, None for any other module."""
    if isinstance(module, torch.jit.ScriptModule):
        name = module.original_name
        return name if name in ("LSTM", "LSTMCell") else None
    if quantization.quantised_kind(module) is not None:
        return f"quantised {type(module).__name__}"
    if isinstance(module, (LSTM, LSTMCell)):
        return parametrize.type_before_parametrizations(module).__name__
    return None


def _reason_to_leave(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled to TorchScript; convert the model before torch.jit.script"
    if quantization.quantised_kind(module) is not None:
        return quantization.reason_to_leave(module)
    if isinstance(module, _FAST_CLASSES):
        return f"already a {type(module).__name__}"
    if parametrize.type_before_parametrizations(module) not in _FAST:
        base = "nn.LSTM" if isinstance(module, LSTM) else "nn.LSTMCell"
        return f"a subclass of {base} with behaviour of its own; derive it from the fast class"
    if "forward" in vars(module):
        return "its forward was replaced on the instance; convert the model before that"
    return None


def _change_class(module: nn.Module, backend: str, checkpoint_every, variants: dict) -> None:
    cls = type(module)
    if cls in _FAST:
        module.__class__ = _FAST[cls]
    elif cls not in _FAST.values():
        # A parametrized module has a class of its own, which its copies share: derive another one
        # with the same properties from the fast class.
        fast = _FAST[parametrize.type_before_parametrizations(module)]
        body = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
        module.__class__ = type(f"Parametrized{fast.__name__}", (fast,), body)
    vars(module).pop("_flat_weights", None)  # a property in FastLSTM
    if backend != "auto":
        module.backend = backend
    if checkpoint_every is not None and isinstance(module, FastLSTM):
        module.checkpoint_every = checkpoint_every
    if variants and isinstance(module, FastLSTM):
        take_variants(module, **variants)

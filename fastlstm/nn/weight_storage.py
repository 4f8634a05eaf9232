"""Weight matrices stored in bfloat16, with all other tensors in float32, for inference:
`weight_dtype` of FastLSTM and FastLSTMCell. int8 is in int8_storage.py.

With few rows a step is bound by reading its weights, and bfloat16 halves their bytes. The CPU's ops
read bfloat16; for other ops, or if a gradient is wanted, the weights are converted to float32 for
the call, which is exact.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from ..int8 import check_finite
from ..torch_classes import RNNBase, above
from ..weights import BESIDE, STORED
from . import int8_storage

_Module = TypeVar("_Module", bound=nn.Module)


def matrix_names(module: nn.Module) -> list[str]:
    """The names of an LSTM's, or a cell's, weight matrices."""
    if isinstance(module, RNNBase):
        return [name for name in module._flat_weights_names if name.startswith("weight_")]
    return ["weight_ih", "weight_hh"]


def store(module: nn.Module, value: torch.dtype | None) -> None:
    """Rounds the module's matrices to bfloat16 in place, quantises them to int8 (int8_storage.py),
    or with None converts stored ones back to float32.

    Raises:
        ValueError: `value` is another dtype, the module's weights are not float32 parameters, or,
        for int8, they are not finite.
    """
    check(module, value)
    if int8_storage.is_int8(module):
        if value is int8_storage.INT8:
            return
        int8_storage.widen(module)
        module.__dict__.update(weight_dtype=None, weight_only=False)
    elif value is int8_storage.INT8:
        int8_storage.store(module)
        return
    stored = getattr(module, "weight_dtype", None) is not None
    if value is None and not stored:
        return
    for name in matrix_names(module):
        weight = module._parameters.get(name)
        if weight is not None:
            weight.data = weight.data.to(BESIDE if value is None else STORED)
            weight.grad = None


def check(module: nn.Module, value: torch.dtype | None, where: str = "") -> None:
    """Raises ValueError if the module's matrices cannot be stored as `value`. where: a prefix of
    their names in the text."""
    if value is None:
        return
    if value not in (STORED, int8_storage.INT8):
        raise ValueError(f"weight_dtype: got {value!r}, expected {STORED}, {int8_storage.INT8} or None")
    if int8_storage.is_int8(module):
        return
    for name, weight in module._parameters.items():
        if weight is not None:
            check_dtype(where + name, weight)
    for name in matrix_names(module):
        if module._parameters.get(name) is None:
            raise ValueError(
                f"weight_dtype: {where}{name} is not a parameter of the module itself; remove its "
                "parametrization or pruning first"
            )
        if value is int8_storage.INT8:
            check_finite(module._parameters[name], where + name)


def check_dtype(name: str, weight: Tensor) -> None:
    if weight.dtype not in (BESIDE, STORED):
        raise ValueError(
            f"weight_dtype: {name} is {weight.dtype}; weights are stored in {STORED} or torch.int8 "
            f"beside {BESIDE} alone. Call .float() on the module first"
        )


def still_stored(module: nn.Module) -> bool:
    """Whether the matrices still have `weight_dtype` after parameters were cast."""
    matrices = set(matrix_names(module))
    return all(
        weight is None or weight.dtype == (STORED if name in matrices else BESIDE)
        for name, weight in module._parameters.items()
    )


def stores_weights(cls: type[_Module]) -> type[_Module]:
    """Decorates the modules that have a weight_dtype: what casts, moves, saves and loads them."""

    def _apply(self, fn, recurse=True):
        """Casts of floating-point tensors (`.float()`, `.half()`) reset weight_dtype to None."""
        int8 = int8_storage.is_int8(self)
        if int8 and int8_storage.casts(fn) is not None:
            self.weight_dtype = None
        above(cls, self, "_apply")._apply(fn, recurse)
        if not int8 and self.weight_dtype is not None and not still_stored(self):
            self.__dict__["weight_dtype"] = None
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        saved = above(cls, self, "_save_to_state_dict")._save_to_state_dict
        saved(destination, prefix, keep_vars)
        if int8_storage.is_int8(self):
            int8_storage.add_state(self, destination, prefix)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        if int8_storage.is_int8(self):
            assign = local_metadata.get("assign_to_params_buffers", False)
            state_dict = int8_storage.take_state(self, state_dict, prefix, assign, missing, errors)
        else:
            state_dict = int8_storage.widened_state(self, state_dict, prefix, errors)
        load = above(cls, self, "_load_from_state_dict")._load_from_state_dict
        load(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    for method in (_apply, _save_to_state_dict, _load_from_state_dict):
        setattr(cls, method.__name__, method)
    return cls


def fits(module: nn.Module, x: Tensor, weight: Tensor | None) -> bool:
    """Whether the dtypes of x and a weight fit. An op would accept bfloat16 weights with float32 x
    also if that is a mistake, not `weight_dtype`."""
    if weight is None:
        return False
    if module.weight_dtype is None:
        return weight.dtype is x.dtype
    return x.dtype is BESIDE

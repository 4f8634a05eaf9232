"""Weight matrices stored in int8 (fastlstm/int8.py): `weight_dtype=torch.int8` of FastLSTM and
FastLSTMCell.

Such a module has buffers instead of nn.LSTM's parameters: weight_ih_l0_packed and
weight_ih_l0_scale (and the same for every matrix), and with biases bias_sum_l0; a cell's names have
no l0. There is no other copy of the weights. Its state dict has nn.LSTM's names: weight_ih_l0 as
int8 (4H, I) and weight_ih_l0_scale (4H,), the sum of both biases as bias_ih_l0, zeros as
bias_hh_l0. State dicts of float and of int8 modules load into either, and are converted.
"""

import contextlib

import torch
from torch import Tensor, nn

from ..int8 import (
    LEVELS,
    Int8Weights,
    dequantise_rows,
    pack,
    quantise_rows,
    summed_bias,
    unpack,
)
from ..torch_classes import RNNBase
from ..weights import BESIDE

INT8 = torch.int8
_PACKED, _SCALE = "_packed", "_scale"


def is_int8(module: nn.Module) -> bool:
    return getattr(module, "weight_dtype", None) is INT8


def checked_weight_only(module: nn.Module, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"weight_only: got {type(value).__name__}, expected a bool")
    if value and not is_int8(module):
        raise ValueError(
            "weight_only: it says that with weight_dtype=torch.int8 the weights alone are int8; "
            f"this {type(module).__name__} has weight_dtype={module.weight_dtype}"
        )
    return value


def _suffixes(module: nn.Module) -> list[str]:
    """The suffixes of the weights' names, layer by layer, forward before reverse."""
    if not isinstance(module, RNNBase):
        return [""]
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{k}{direction}" for k in range(module.num_layers) for direction in directions]


def _matrices(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The matrices by name, with their shapes."""
    H = module.hidden_size
    P = getattr(module, "proj_size", 0)
    found, inputs = {}, module.input_size
    suffixes = _suffixes(module)
    D = 2 if getattr(module, "bidirectional", False) else 1
    for place, suffix in enumerate(suffixes):
        if place == D:
            inputs = D * (P or H)
        found[f"weight_ih{suffix}"] = (4 * H, inputs)
        found[f"weight_hh{suffix}"] = (4 * H, P or H)
        if P:
            found[f"weight_hr{suffix}"] = (P, H)
    return found


def _gates(name: str) -> int:
    return 1 if name.startswith("weight_hr") else 4


def _set_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    # Not persistent: the state dict has them under other names.
    module.register_buffer(name, value, persistent=False)


def buffer_names(module: nn.Module) -> list[str]:
    """The buffers in the order in which `fastlstm::int8_stack` takes them."""
    names = []
    for suffix in _suffixes(module):
        kinds = ["weight_ih", "weight_hh"]
        of_matrices = [f"{kind}{suffix}{part}" for kind in kinds for part in (_PACKED, _SCALE)]
        names += [*of_matrices, *([f"bias_sum{suffix}"] if module.bias else [])]
        if getattr(module, "proj_size", 0):
            names += [f"weight_hr{suffix}{part}" for part in (_PACKED, _SCALE)]
    return names


def known_names(module: nn.Module) -> tuple[str, ...]:
    """`buffer_names`, cached."""
    key = "_int8_names"
    names = module.__dict__.get(key)
    if names is None:
        names = module.__dict__[key] = tuple(buffer_names(module))
    return names


def store(module: nn.Module) -> None:
    """Replaces the float32 parameters by quantised buffers.

    Raises:
        ValueError: a matrix has NaN or infinity; the module is not changed then.
    """
    parameters = module._parameters
    made = {}
    for name in _matrices(module):
        q, scale = quantise_rows(parameters[name], name)
        made[name + _PACKED], made[name + _SCALE] = pack(q, _gates(name)), scale
    for suffix in _suffixes(module) if module.bias else ():
        both = parameters[f"bias_ih{suffix}"], parameters[f"bias_hh{suffix}"]
        made[f"bias_sum{suffix}"] = summed_bias(*both)
    for name in _weight_names(module):
        parameters.pop(name, None)
    for name in buffer_names(module):
        _set_buffer(module, name, made[name])


def widen(module: nn.Module) -> None:
    """Replaces the buffers by float32 parameters."""
    values = widened(module)
    for name in buffer_names(module):
        delattr(module, name)
    rest = dict(module._parameters)
    module._parameters.clear()
    for name in _weight_names(module):
        module.register_parameter(name, nn.Parameter(values[name]) if name in values else None)
    for name, value in rest.items():  # the weights come first, as in nn.LSTM
        module._parameters.setdefault(name, value)


@contextlib.contextmanager
def as_floats(module: nn.Module):
    """The weights are float32 parameters during the block, and int8 again after it."""
    stored, weight_only = is_int8(module), getattr(module, "weight_only", False)
    if stored:
        module.weight_dtype = None
    yield
    if stored:
        module.weight_dtype = INT8
        module.weight_only = weight_only


def copy(source: nn.Module, target: nn.Module) -> None:
    """Copies the buffers of an int8 module to another of the same sizes."""
    for name in buffer_names(source):
        _set_buffer(target, name, getattr(source, name).clone())


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, RNNBase):
        return module._flat_weights_names
    return ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def widened(module: nn.Module) -> dict[str, Tensor]:
    """The weights of an int8 module in float32, by nn.LSTM's names."""
    found = {}
    for name, q in _integers(module).items():
        found[name] = dequantise_rows(q, getattr(module, name + _SCALE))
    return found | _biases(module)


def _integers(module: nn.Module) -> dict[str, Tensor]:
    """The matrices as int8, unpacked."""
    found = {}
    for name, (rows, K) in _matrices(module).items():
        found[name] = unpack(getattr(module, name + _PACKED), rows // _gates(name), K)
    return found


def _biases(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    for suffix in _suffixes(module) if module.bias else ():
        total = getattr(module, f"bias_sum{suffix}")
        found[f"bias_ih{suffix}"] = total.clone()
        found[f"bias_hh{suffix}"] = torch.zeros_like(total)
    return found


def layers_of(module: nn.Module) -> list[list[Int8Weights]]:
    """The weights [layer][direction] for `stack.run.run_layers`."""
    shapes, entries = _matrices(module), []
    for suffix in _suffixes(module):
        kinds = {}
        for kind in ("weight_ih", "weight_hh", "weight_hr"):
            there = f"{kind}{suffix}" in shapes
            kinds[kind] = [getattr(module, f"{kind}{suffix}{part}") if there else None for part in (_PACKED, _SCALE)]
        bias = getattr(module, f"bias_sum{suffix}") if module.bias else None
        inputs = shapes[f"weight_ih{suffix}"][1]
        entries.append(Int8Weights(*kinds["weight_ih"], *kinds["weight_hh"], bias, *kinds["weight_hr"], inputs))
    D = 2 if getattr(module, "bidirectional", False) else 1
    return [entries[k : k + D] for k in range(0, len(entries), D)]


def layers_for(module: nn.Module, x: Tensor) -> list[list[Int8Weights]] | None:
    """`layers_of`; None if `x` does not fit, for which nn.LSTM's own call raises the error."""
    if x.shape[-1] != module.input_size or x.dtype != BESIDE:
        return None
    layers = layers_of(module)
    return layers if layers[0][0].scale_ih.device == x.device else None


def casts(fn) -> torch.dtype | None:
    """The dtype to which `fn`, an argument of `Module._apply`, casts floating-point tensors (as for
    `.float()`); None if it does not cast them (as for `.to("cpu")`)."""
    for dtype in (torch.bfloat16, torch.float16):
        made = fn(torch.empty(0, dtype=dtype)).dtype
        if made != dtype:
            return made
    return None


def add_state(module: nn.Module, destination: dict, prefix: str) -> None:
    """Adds the weights of an int8 module to a state dict."""
    for name, q in _integers(module).items():
        destination[prefix + name] = q
        destination[prefix + name + _SCALE] = getattr(module, name + _SCALE).detach()
    for name, bias in _biases(module).items():
        destination[prefix + name] = bias


def take_state(module: nn.Module, state: dict, prefix: str, assign: bool, missing, errors) -> dict:
    """Loads an int8 module's weights from a state dict of floats or of int8.

    Args:
        missing, errors: lists for missing keys and error texts, as of
        `Module._load_from_state_dict`.

    Returns:
        The state dict without the entries that were loaded.
    """
    state, made = dict(state), {}
    for name, shape in _matrices(module).items():
        key = prefix + name
        value, scale = state.pop(key, None), state.get(key + _SCALE)
        if value is None:
            missing.append(key)
            continue
        if not _shape_fits(key, value, shape, errors):
            continue
        if value.dtype == INT8:
            state.pop(key + _SCALE, None)
            if not _scale_fits(key, value, scale, errors):
                continue
            q = value
        elif value.is_floating_point():
            try:
                q, scale = quantise_rows(value, key)
            except ValueError as error:
                errors.append(str(error))
                continue
        else:
            errors.append(f"{key}: got {value.dtype}, expected torch.int8 or a floating-point type")
            continue
        made[name + _PACKED], made[name + _SCALE] = pack(q, _gates(name)), scale
    for suffix in _suffixes(module) if module.bias else ():
        keys = [f"{prefix}bias_ih{suffix}", f"{prefix}bias_hh{suffix}"]
        both = [state.pop(key, None) for key in keys]
        absent = [key for key, bias in zip(keys, both, strict=True) if bias is None]
        missing.extend(absent)
        expected = (4 * module.hidden_size,)
        for key, bias in zip(keys, both, strict=True):
            if bias is not None and not _shape_fits(key, bias, expected, errors):
                absent.append(key)
        if not absent:
            made[f"bias_sum{suffix}"] = summed_bias(*both)
    for name, value in made.items():
        if assign:
            _set_buffer(module, name, value)
        else:
            getattr(module, name).copy_(value)
    return state


def _shape_fits(key: str, value: Tensor, shape: tuple, errors: list) -> bool:
    if tuple(value.shape) != shape:
        errors.append(
            f"size mismatch for {key}: copying a param with shape {tuple(value.shape)} from "
            f"checkpoint, the shape in current model is {shape}."
        )
    return tuple(value.shape) == shape


def _scale_fits(key: str, q: Tensor, scale: Tensor | None, errors: list) -> bool:
    if scale is None or scale.shape != q.shape[:1] or not scale.is_floating_point():
        got = "none" if scale is None else f"{scale.dtype} of shape {tuple(scale.shape)}"
        errors.append(f"{key}: an int8 matrix needs {key}{_SCALE}, floating-point of shape ({q.shape[0]},); got {got}")
        return False
    if q.numel() and not (q.is_meta or bool(q.amin() >= -LEVELS)):
        errors.append(f"{key}: has -128, expected values from -127 to 127")
        return False
    return True


def widened_state(module: nn.Module, state: dict, prefix: str, errors: list) -> dict:
    """The state dict with int8 matrices replaced by floats, for a float module; itself if it has no
    int8 matrices."""
    names = [name for name in _weight_names(module) if name.startswith("weight_")]
    keys = [prefix + name for name in names]
    keys = [key for key in keys if getattr(state.get(key), "dtype", None) == INT8]
    if not keys:
        return state
    state = dict(state)
    for key in keys:
        q, scale = state[key], state.pop(key + _SCALE, None)
        if _scale_fits(key, q, scale, errors):
            like = module._parameters.get(key.removeprefix(prefix))
            state[key] = dequantise_rows(q, scale).to(BESIDE if like is None else like.dtype)
        else:
            del state[key]
    return state

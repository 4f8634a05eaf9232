"""Conversion between fastlstm's and torch.nn's classes, and support for the parts of torch that
recognise torch.nn's classes by their types: torch.jit, torch.fx and quantization.
"""

import sys
import warnings

import torch
from torch import nn
from torch.fx.proxy import Proxy, TraceError

from ..torch_classes import LSTM, LSTMCell, RNNBase
from . import int8_storage, weight_storage
from .variant_settings import norm_names, refuse_variants, reset_norms, variants_of

_PACKAGE = __package__.partition(".")[0]
_HOOKS = "_forward_pre_hooks", "_forward_hooks"


def _settings(module: nn.Module) -> dict:
    names = ["input_size", "hidden_size", "bias"]
    if isinstance(module, RNNBase):
        names += ["num_layers", "batch_first", "dropout", "bidirectional", "proj_size"]
    return {name: getattr(module, name) for name in names}


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, RNNBase):
        return module._flat_weights_names
    return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]


def rebuild(cls: type[nn.Module], source: nn.Module, *, share: bool = False, **options) -> nn.Module:
    """An instance of `cls` with the settings, weights and training flag of `source`.

    The weights are those that `source` computes with: parametrizations and pruning masks are
    applied, not copied. Hooks are not copied. share: use the same tensors instead of copies.
    """
    storage, int8 = {}, int8_storage.is_int8(source)
    with warnings.catch_warnings():
        # `source`'s constructor has warned already. On meta, since another device's constructor
        # would draw from the caller's random numbers.
        warnings.simplefilter("ignore")
        if cls not in (LSTM, LSTMCell):
            names = "checkpoint_every", "weight_dtype"
            kept = {name: getattr(source, name, None) for name in names}
            kept = {name: value for name, value in kept.items() if value is not None}
            options = variants_of(source) | kept | options
            if options.get("weight_dtype") is int8_storage.INT8:
                options.setdefault("weight_only", getattr(source, "weight_only", False))
                storage = {name: options.pop(name) for name in ("weight_dtype", "weight_only")}
        twin = cls(**_settings(source), device="meta", **options)
    names = _weight_names(source)
    stored = {getattr(m, "weight_dtype", None) for m in (source, twin)} != {None}
    matrices = weight_storage.matrix_names(twin) if stored else ()
    if getattr(twin, "layer_norm", False):
        if getattr(source, "layer_norm", False):
            names = names + norm_names(source)
        else:
            like = source._flat_weights[0]
            for name in norm_names(twin):
                empty = torch.empty_like(getattr(twin, name), device=like.device, dtype=like.dtype)
                setattr(twin, name, nn.Parameter(empty))
            reset_norms(twin)
    values = {k: nn.Parameter(v) for k, v in int8_storage.widened(source).items()} if int8 else {}
    for name in names:
        weight = values[name] if name in values else getattr(source, name)
        if stored:
            weight_storage.check_dtype(name, weight)
        if name in matrices:
            weight = weight.to(getattr(twin, name).dtype)
        if not share:
            weight = weight.detach().clone().requires_grad_(weight.requires_grad)
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight.detach(), weight.requires_grad)
        setattr(twin, name, weight)
    for name, value in storage.items():
        setattr(twin, name, value)
    if storage and int8:
        int8_storage.copy(source, twin)  # without quantising again
    return twin.train(source.training)


def complete_state(state: dict) -> dict:
    """A pickled LSTM's state with the names of its weights, which pickles from before torch 1.4 do
    not have."""
    state = dict(state)
    state.pop("_flat_weights", None)  # a property in FastLSTM
    state.setdefault("proj_size", 0)
    layers = state.pop("all_weights", None) or state.get("_all_weights")
    if layers and isinstance(layers[0][0], str) and "_flat_weights_names" in state:
        return state
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if state["bias"] else [])]
    kinds += ["weight_hr"] if state["proj_size"] else []
    directions = ("", "_reverse") if state["bidirectional"] else ("",)
    state["_all_weights"] = [
        [f"{kind}_l{k}{direction}" for kind in kinds] for k in range(state["num_layers"]) for direction in directions
    ]
    state["_flat_weights_names"] = [name for layer in state["_all_weights"] for name in layer]
    return state


def for_torchscript(cls: type[nn.Module], module: nn.Module) -> nn.Module:
    """The replacement of `module` for torch.jit.script: a `cls` of torch.nn with its parameters.

    TorchScript finds nn.LSTM's overloads of forward by the name of its class, so no subclass can be
    scripted.

    Raises:
        ValueError: this module, or another of the scripted model, has options that nn.LSTM does not
        have. No module of the model has been replaced then.
    """
    fast = type(module).__name__
    for name, other in _scripted_model(module).named_modules():
        if int8_storage.is_int8(other):
            raise ValueError(
                f"torch.jit.script: {name or 'this module'} has weight_dtype=torch.int8, which "
                "nn.LSTM cannot hold. torch.jit.trace and torch.export record it as it is; to "
                "script it in float32, set weight_dtype = None first"
            )
        if hasattr(type(other), "__prepare_scriptable__") and isinstance(other, (LSTM, LSTMCell)):
            _refuse_own_forward(name, other)
            refuse_variants(other, "torch.jit.script")
    warnings.warn(
        f"torch.jit.script puts an nn.{cls.__name__} of the same parameters in the place of each "
        f"{fast} of the model it is given. To keep that model as it is, script a copy of it, with "
        f"to_torch() in place of each {fast}.",
        stacklevel=3,
    )
    twin = rebuild(cls, module, share=True)
    for kind in _HOOKS:
        for key, hook in getattr(module, kind).items():
            # Not hooks that compute weights: the twin's parameters are the computed weights.
            if not type(hook).__module__.startswith("torch.nn.utils."):
                getattr(twin, kind)[key] = hook
    return twin


def _scripted_model(module: nn.Module) -> nn.Module:
    """The model that torch.jit.script is preparing, which contains `module`. torch.jit.script
    replaces one module at a time, and only its stack frames tell the model."""
    frame, model = sys._getframe(1), module
    while frame is not None:
        if frame.f_code.co_name == "call_prepare_scriptable_func_impl":
            model = frame.f_locals.get("obj", model)
        frame = frame.f_back
    return model if isinstance(model, nn.Module) else module


def _refuse_own_forward(name: str, module: nn.Module) -> None:
    bases = [c for c in type(module).__mro__ if c.__module__.partition(".")[0] == _PACKAGE]
    if type(module).forward is not bases[0].forward or "forward" in vars(module):
        raise ValueError(
            f"torch.jit.script: {name or 'this module'} is a {type(module).__name__} with a "
            "forward of its own, which TorchScript cannot compile in a subclass of nn.LSTM. Script "
            "a model that holds to_torch() of it and does in its own forward what that one does"
        )


def refuse_script_method(module: nn.Module):
    """Raises an error if TorchScript's compiler, recognised by its stack frame, asks for
    `__overloads__`: torch.jit.ScriptModule compiles its modules without `__prepare_scriptable__`.
    """
    if sys._getframe(2).f_code.co_name == "infer_methods_to_compile":
        name = type(module).__name__
        raise RuntimeError(
            f"TorchScript cannot compile a {name}. Give the ScriptModule that holds it an nn.LSTM, "
            f"by to_torch() of the {name}, or have torch.jit.script compile a plain module that "
            "holds it"
        )
    raise AttributeError(f"{type(module).__name__!r} object has no attribute '__overloads__'")


def quantization_config(module: nn.Module, config):
    """The qconfig that torch.ao.quantization, which is setting `config` on `module`, would set on
    an nn.LSTM, since it compares exact types. Warns if the module is going to stay in float.

    Only its stack frames tell the arguments of quantize_dynamic: types and mapping.
    """
    frame, wanted, mapping = sys._getframe(2), {}, {}
    while frame is not None:
        code, known = frame.f_code.co_name, frame.f_locals
        if code == "_propagate_qconfig_helper":
            wanted = known.get("qconfig_dict") or {}
        elif code == "quantize_dynamic":
            mapping = known.get("mapping") or {}
            break
        frame = frame.f_back
    if config is None:
        base = LSTM if isinstance(module, RNNBase) else LSTMCell
        config = wanted.get(base)
        if mapping and config is None:
            return None  # not asked for
    # float16 weights mean conversion to nn.LSTM, which has no variants.
    takes = quantised_to(config) == torch.qint8 or not variants_of(module)
    if type(module) in mapping and takes:
        return config
    _tell_quantization(module)
    return None


def quantised_to(config) -> torch.dtype:
    """The dtype of weights by a qconfig: torch.qint8, torch's default, or torch.float16."""
    observer = getattr(config, "weight", None)
    return torch.qint8 if observer is None else observer().dtype


def _tell_quantization(module: nn.Module) -> None:
    warnings.warn(
        f"torch.ao.quantization goes by exact types and leaves this {type(module).__name__} in "
        "float. If it is to be quantized, set its weight_dtype = torch.int8, or for all of a model "
        "fastlstm.convert(model, weight_dtype=torch.int8).",
        stacklevel=4,
    )


def proxies(*args) -> list[Proxy]:
    """The proxies of torch.fx's tracer among these arguments of a forward, states included."""
    flat = [a for arg in args for a in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    return [a for a in flat if isinstance(a, Proxy)]


def trace_as_leaf(module: nn.Module, args: tuple, options: dict) -> Proxy:
    """One call_module node for `module` in the graph that torch.fx is tracing.

    The tracer's leaves are torch.nn's classes; it would trace into this one.
    """
    tracer = proxies(*args)[0].tracer
    if tracer.root is module:
        raise TraceError(f"{type(module).__name__} is a leaf of torch.fx graphs: trace a module that contains it")
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, options)

"""Attributes and parameters of a FastLSTM for what nn.LSTM does not have: `layer_norm`,
`recurrent_dropout`, `weight_dropout`, `zoneout`, and other arguments and results of a call."""

import torch
from torch import Tensor, nn

from ..checks import check_tensor, probability, zoneout_pair
from ..precision import to_autocast
from ..weights import LayerNormWeights, Variant

# The constructor's arguments that nn.LSTM does not have, with their defaults.
PLAIN = {
    "layer_norm": False,
    "recurrent_dropout": 0.0,
    "weight_dropout": 0.0,
    "zoneout": (0.0, 0.0),
    "variational_dropout": False,
    "batch_first_states": False,
    "return_layer_outputs": False,
}
_NO_ZONEOUT = PLAIN["zoneout"]


def variants_of(module: nn.Module) -> dict:
    """The arguments of FastLSTM's constructor in which `module` differs from an nn.LSTM."""
    found = {name: getattr(module, name, plain) for name, plain in PLAIN.items()}
    return {name: value for name, value in found.items() if value != PLAIN[name]}


def refuse_variants(module: nn.Module, what: str, but: str | None = None) -> None:
    """Raises ValueError if `module` has options that nn.LSTM does not have. but: one to ignore."""
    variants = {name: value for name, value in variants_of(module).items() if name != but}
    if variants:
        names = ", ".join(f"{name}={value!r}" for name, value in variants.items())
        raise ValueError(
            f"{what}: nn.LSTM cannot express {names}. What but layer_norm is no longer wanted "
            "can be set to 0 or False on the module first"
        )


def norm_names(module: nn.LSTM) -> list[str]:
    """The names of layer_norm's parameters, layer by layer, forward before reverse."""
    kinds = ["weight_ih", "weight_hh", "weight_c", *(["bias_c"] if module.bias else [])]
    suffixes = [
        f"l{k}{reverse}"
        for k in range(module.num_layers)
        for reverse in (("", "_reverse") if module.bidirectional else ("",))
    ]
    return [f"ln_{kind}_{suffix}" for suffix in suffixes for kind in kinds]


def norms_of(module: nn.LSTM, x: Tensor, wanted: torch.dtype | None) -> list[list[LayerNormWeights]]:
    """Gains and biases of layer normalisation, [layer][direction]. Raises ValueError if they do not
    fit `x`."""
    H, D = module.hidden_size, 2 if module.bidirectional else 1
    shapes = {"ln_weight_ih": 4 * H, "ln_weight_hh": 4 * H, "ln_weight_c": H}
    if module.bias:
        shapes["ln_bias_c"] = H
    norms = []
    for k in range(module.num_layers * D):
        suffix = f"_l{k // D}{'_reverse' if k % D else ''}"
        found = []
        for name, width in shapes.items():
            value = getattr(module, name + suffix)
            value = value if wanted is None else to_autocast(value, wanted)
            check_tensor(name + suffix, value, (width,), x)
            found.append(value)
        norms.append(LayerNormWeights(*found))
    return [norms[k : k + D] for k in range(0, len(norms), D)]


def checked(name: str, value):
    """The checked value of one of these settings; see `take_variants` for errors."""
    if isinstance(PLAIN[name], bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name}: got {type(value).__name__}, expected a bool")
        return value
    return zoneout_pair(value) if name == "zoneout" else probability(name, value)


def take_variants(module: nn.LSTM, **variants) -> None:
    """Sets these on a FastLSTM, the others to their defaults, and creates layer_norm's parameters.

    Raises:
        TypeError: a flag is not a bool. ValueError: a number is not a probability.
    """
    for name, plain in PLAIN.items():
        setattr(module, name, variants.get(name, plain))
    if module.layer_norm:
        like, H = getattr(module, module._flat_weights_names[0]), module.hidden_size
        for name in norm_names(module):
            value = like.new_empty(H if "_c_" in name else 4 * H)
            module.register_parameter(name, nn.Parameter(value))
        reset_norms(module)


def reset_norms(module: nn.LSTM) -> None:
    """Gains of 1 and biases of 0."""
    for name in norm_names(module):
        nn.init.constant_(getattr(module, name), 0.0 if name.startswith("ln_bias") else 1.0)


def recurs_plainly(module: nn.LSTM) -> bool:
    """Whether the layers of a call of `module` are plain LSTMs; dropout between them is allowed."""
    if module.layer_norm or module.zoneout != _NO_ZONEOUT:
        return False
    return not (module.training and (module.recurrent_dropout or module.weight_dropout))


def is_plain(module: nn.LSTM) -> bool:
    """Whether a call of `module` is a plain LSTM without any dropout."""
    return recurs_plainly(module) and not (module.dropout and module.training)


def variant_of(module: nn.LSTM, x: Tensor, wanted: torch.dtype | None) -> Variant | None:
    """What a call of `module` has beyond the plain LSTM, None if nothing."""
    if recurs_plainly(module):
        return None
    training = module.training
    norms = norms_of(module, x, wanted) if module.layer_norm else None
    return Variant(norms, module.recurrent_dropout, module.weight_dropout, module.zoneout, training)

"""Between the classes of fastlstm and those of torch.nn: the same settings and weights under the
other class.
"""

import warnings

from torch import nn


def _settings(module: nn.Module) -> dict:
    names = ["input_size", "hidden_size", "bias"]
    if isinstance(module, nn.LSTM):
        names += ["num_layers", "batch_first", "dropout", "bidirectional", "proj_size"]
    return {name: getattr(module, name) for name in names}


def _weight_names(module: nn.Module) -> list[str]:
    if isinstance(module, nn.LSTM):
        return module._flat_weights_names
    return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]


def rebuild(
    cls: type[nn.Module], source: nn.Module, *, share: bool = False, **options
) -> nn.Module:
    """An instance of `cls` with the settings, weights and training flag of `source`.

    The weights are those that `source` computes with now: a parametrization or a pruning mask is
    in them, not on them. Hooks stay behind. With `share` the very tensors are used, else copies.
    """
    with warnings.catch_warnings():
        # What there was to warn of was said when `source` was made. On meta, for a constructor
        # elsewhere would draw from the caller's stream of random numbers.
        warnings.simplefilter("ignore")
        twin = cls(**_settings(source), device="meta", **options)
    for name in _weight_names(source):
        weight = getattr(source, name)
        if not share:
            weight = weight.detach().clone().requires_grad_(weight.requires_grad)
        if not isinstance(weight, nn.Parameter):
            weight = nn.Parameter(weight.detach(), weight.requires_grad)
        setattr(twin, name, weight)
    return twin.train(source.training)


def tell_quantization(module: nn.Module) -> None:
    """Say that torch.ao.quantization, which goes by exact types, is about to leave `module` in
    float.
    """
    warnings.warn(
        f"torch.ao.quantization goes by exact types and leaves this {type(module).__name__} in "
        "float. If it is to be quantized, put module.to_torch() in its place first.",
        stacklevel=3,
    )

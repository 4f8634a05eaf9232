"""Initialisation of an LSTM's weights beyond `reset_parameters`, in place.

For any nn.LSTM or nn.LSTMCell, including FastLSTM and FastLSTMCell.
"""

import torch
from torch import Tensor, nn

from .torch_classes import LSTM, LSTMCell

GATES = "ifgo"


def _parameters(module: nn.Module, kind: str) -> list[tuple[str, Tensor]]:
    """(name, parameter) of all whose names begin with `kind`, such as "bias_ih"."""
    if not isinstance(module, (LSTM, LSTMCell)):
        raise TypeError(f"module: got {type(module).__name__}, expected an LSTM or LSTMCell")
    names = getattr(module, "_flat_weights_names", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
    names = [name for name in names if name.startswith(kind)]
    for name in names:
        if name not in module._parameters:
            raise ValueError(
                f"{name} is no parameter of this {type(module).__name__} but computed from others "
                "(a parametrization, pruning): initialise before that"
            )
    return [(name, module._parameters[name]) for name in names]


@torch.no_grad()
def forget_bias_(module: nn.Module, value: float = 1.0) -> nn.Module:
    """Sets the forget gate's bias to `value` in every layer and direction: in bias_ih to `value`,
    in bias_hh to 0, since they are added. The other gates' biases do not change.

    A positive value lets c and its gradient pass early in training (Gers et al. 2000;
    Jozefowicz, Zaremba & Sutskever 2015, "An empirical exploration of recurrent network
    architectures", who recommend 1).

    Args:
        module: an LSTM or LSTMCell with biases; returned.

    Raises:
        TypeError: it is another module. ValueError: it has no biases, or they are not parameters.
    """
    both = _parameters(module, "bias_ih"), _parameters(module, "bias_hh")
    if not both[0] or any(bias is None for _, bias in both[0]):
        raise ValueError(f"module: this {type(module).__name__} has no biases (bias=False)")
    for biases, number in zip(both, (value, 0.0), strict=True):
        for _, bias in biases:
            H = len(bias) // len(GATES)
            bias[H : 2 * H] = number
    return module


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> nn.Module:
    """Makes the recurrent matrix of each gate orthogonal, times `gain`: each (H, P) part of every
    weight_hh, and weight_hr if there are projections. The input weights do not change.

    Products of orthogonal matrices neither grow nor vanish over the steps (Saxe, McClelland &
    Ganguli 2014, "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks"). It is usually combined with `forget_bias_`, and `xavier_uniform_` for weight_ih.

    Args:
        module: an LSTM or LSTMCell; returned.
        generator: as for `torch.nn.init.orthogonal_`.

    Raises:
        TypeError: it is another module. ValueError: the weights are not parameters.
    """
    for _, weight in _parameters(module, "weight_hh"):
        for block in weight.chunk(len(GATES)):
            _orthogonal_(block, gain, generator)
    if getattr(module, "proj_size", 0):
        for _, weight in _parameters(module, "weight_hr"):
            _orthogonal_(weight, gain, generator)
    return module


def _orthogonal_(block: Tensor, gain: float, generator) -> None:
    # Torch's QR factorisation does not support 16-bit types.
    wide = torch.empty_like(block, dtype=torch.promote_types(block.dtype, torch.float32))
    block.copy_(nn.init.orthogonal_(wide, gain, generator))

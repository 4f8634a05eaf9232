"""Weights of Keras LSTM layers."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn.lstm import FastLSTM


def from_keras(*weights: Any, bidirectional: bool = False, batch_first: bool = True, **options: Any) -> FastLSTM:
    """A FastLSTM with copies of the weights of Keras LSTM layers, one layer or a stack of them.

    `fastlstm.from_keras(*layer.get_weights())`; of a stack,
    `fastlstm.from_keras(*first.get_weights(), *second.get_weights())`. The layers' activations must
    be Keras 3's defaults, tanh and sigmoid (recurrent), which cannot be seen from the weights. For
    return_sequences, go_backwards, masks and merge modes see docs/interchange.md.

    Args:
        weights: layer by layer, with bidirectional forward before backward, in Keras's order:
            kernel (I, 4H), recurrent_kernel (H, 4H), and bias (4H,) in all layers or none. Gate
            order i, f, c, o. Arrays, tensors, or Keras variables.
        bidirectional: they are weights of `keras.layers.Bidirectional` with merge_mode="concat".
        batch_first: as in Keras; False for (T, N, I).
        options: further arguments of FastLSTM, such as dropout, device, dtype (by default that of
            the kernel) or backend.

    Returns:
        A FastLSTM in training mode, as any new module. Its bias_hh is zero, since Keras has a
        single bias.

    Raises:
        ValueError: the shapes do not fit each other; the text names the array.
    """
    layers = _layers([_tensor(w) for w in weights], 2 if bidirectional else 1)
    kernel, recurrent = layers[0][0][:2]
    dtype = options.pop("dtype", None) or kernel.dtype
    module = FastLSTM(
        kernel.shape[0],
        recurrent.shape[0],
        len(layers),
        bias=len(layers[0][0]) == 3,
        batch_first=batch_first,
        bidirectional=bidirectional,
        dtype=dtype,
        **options,
    )
    with torch.no_grad():
        for k, layer in enumerate(layers):
            for (kernel, recurrent, *bias), suffix in zip(layer, ("", "_reverse"), strict=False):
                getattr(module, f"weight_ih_l{k}{suffix}").copy_(kernel.t())
                getattr(module, f"weight_hh_l{k}{suffix}").copy_(recurrent.t())
                for value in bias:
                    getattr(module, f"bias_ih_l{k}{suffix}").copy_(value)
                    getattr(module, f"bias_hh_l{k}{suffix}").zero_()
    return module


def _tensor(weight) -> Tensor:
    if hasattr(weight, "value") and not isinstance(weight, Tensor):  # a Keras variable
        weight = weight.value
    if isinstance(weight, Tensor):
        return torch.atleast_1d(weight.detach())
    return torch.from_numpy(np.array(weight, ndmin=1))


def _layers(weights: list[Tensor], D: int) -> list[list[list[Tensor]]]:
    """[layer][direction] -> [kernel (I, 4H), recurrent_kernel (H, 4H), bias (4H,) if any]."""
    each = 3 if any(w.dim() == 1 for w in weights) else 2
    if not weights or len(weights) % (D * each):
        direction = "kernel, recurrent_kernel" + ", bias" * (each == 3)
        raise ValueError(
            f"weights: got {len(weights)} arrays, expected {direction} of each layer"
            + " and direction, forward before backward" * (D == 2)
        )
    groups = [weights[k : k + each] for k in range(0, len(weights), each)]
    H = groups[0][1].shape[0]
    inputs = groups[0][0].shape[0]
    for k, group in enumerate(groups):
        if k == D:
            inputs = D * H
        expected = {"kernel": (inputs, 4 * H), "recurrent_kernel": (H, 4 * H), "bias": (4 * H,)}
        for (name, shape), weight in zip(expected.items(), group, strict=False):
            if tuple(weight.shape) != shape:
                raise ValueError(
                    f"weights[{k * each + list(expected).index(name)}]: got shape "
                    f"{tuple(weight.shape)}, expected {shape}, the {name} of layer {k // D}"
                    + f", {('forward', 'backward')[k % D]}"
                    * (D == 2)
                )
    return [groups[k : k + D] for k in range(0, len(groups), D)]

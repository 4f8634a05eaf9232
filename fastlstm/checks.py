"""Checks of arguments before any kernel runs: each error names the argument, what came and what was
expected."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .weights import BESIDE, STORED

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def may_look(device: torch.device) -> bool:
    """Whether to read values of tensors on `device`: if that needs no waiting, or is asked for."""
    if torch.compiler.is_compiling() or device.type == "meta":
        return False
    return device.type == "cpu" or os.environ.get("FASTLSTM_CHECK") == "1"


def check_lengths(lengths: Tensor | None, T: int, N: int, device: torch.device) -> Tensor | None:
    """`lengths` as (N,) int64 on `device`.

    Values outside 0..T raise on the CPU; on other devices only with FASTLSTM_CHECK=1 in the
    environment, since reading them waits for the device. Otherwise, in a compiled graph and under
    vmap, the kernels clamp them.
    """
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor):
        raise ValueError(
            f"lengths: got {type(lengths).__name__}, expected an integer tensor of shape ({N},); "
            "wrap it in torch.tensor(...)"
        )
    if lengths.dtype not in _INTEGERS:
        raise ValueError(f"lengths: got dtype {lengths.dtype}, expected an integer dtype; use lengths.long()")
    if _shape(lengths) != (N,):
        raise ValueError(f"lengths: got shape {_shape(lengths)}, expected ({N},), one length for each row of the batch")
    if may_look(lengths.device) and N and not torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        low, high = (int(v) for v in lengths.aminmax())
        if low < 0 or high > T:
            raise ValueError(f"lengths: got values from {low} to {high}, expected 0 to T = {T}")
    return lengths.to(device=device, dtype=torch.int64)


def check_reset_mask(
    reset_mask: Tensor | None, T: int, N: int, device: torch.device, layout: str = "(T, N)"
) -> Tensor | None:
    """`reset_mask` as (T, N) bool on `device`. layout: that of the argument, "(T, N)", "(N, T)" or,
    unbatched, "(T,)".
    """
    if reset_mask is None:
        return None
    expected = {"(T, N)": (T, N), "(N, T)": (N, T), "(T,)": (T,)}[layout]
    if not isinstance(reset_mask, Tensor):
        raise ValueError(
            f"reset_mask: got {type(reset_mask).__name__}, expected a bool tensor of shape {layout} = {expected}"
        )
    if reset_mask.dtype != torch.bool:
        raise ValueError(f"reset_mask: got dtype {reset_mask.dtype}, expected torch.bool; use reset_mask.bool()")
    if _shape(reset_mask) != expected:
        raise ValueError(
            f"reset_mask: got shape {_shape(reset_mask)}, expected {layout} = {expected}, laid out like the input"
        )
    if layout == "(N, T)":
        reset_mask = reset_mask.t()
    elif layout == "(T,)":
        reset_mask = reset_mask.unsqueeze(1)
    return reset_mask.to(device)


def check_tensor(name: str, value: Tensor | None, shape: tuple[int, ...], like: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a tensor of shape {shape}")
    if _shape(value) != shape:
        raise ValueError(f"{name}: got shape {_shape(value)}, expected {shape}")
    if value.dtype != like.dtype:
        raise ValueError(f"{name}: got dtype {value.dtype}, expected the input's, {like.dtype}")
    if value.device != like.device:
        raise ValueError(f"{name}: on {value.device}, expected the input's device, {like.device}")


def check_stack(input: Tensor, weights: Sequence, hx, D: int, batch_first: bool) -> None:
    """Checks that input, weights (L*D entries) and hx fit each other; `functional.lstm` has the
    shapes."""
    if not isinstance(input, Tensor) or input.dim() != 3:
        got = f"shape {_shape(input)}" if isinstance(input, Tensor) else type(input).__name__
        raise ValueError(
            f"input: got {got}, expected a tensor of 3 dimensions, (T, N, I) or (N, T, I) with batch_first"
        )
    if not input.dtype.is_floating_point:
        raise ValueError(f"input: got dtype {input.dtype}, expected a floating-point dtype")
    if not weights or len(weights) % D:
        raise ValueError(
            f"weights: got {len(weights)} entries, expected one per layer and direction, a "
            f"multiple of {D} and at least {D}"
        )
    first = weights[0]
    if (
        not isinstance(first.weight_hh, Tensor)
        or first.weight_hh.dim() != 2
        or first.weight_hh.shape[0] % 4
        or first.weight_hh.numel() == 0
    ):
        got = _shape(first.weight_hh) if isinstance(first.weight_hh, Tensor) else type(first.weight_hh).__name__
        raise ValueError(f"weights[0].weight_hh: got {got}, expected shape (4H, P), neither of them 0")
    H, P = first.weight_hh.shape[0] // 4, first.weight_hh.shape[1]
    stored = (input.dtype, first.weight_hh.dtype) == (BESIDE, STORED)
    matrices = input.new_empty(0, dtype=STORED) if stored else input
    for k, w in enumerate(weights):
        inputs = input.shape[2] if k < D else D * P
        check_tensor(f"weights[{k}].weight_ih", w.weight_ih, (4 * H, inputs), matrices)
        check_tensor(f"weights[{k}].weight_hh", w.weight_hh, (4 * H, P), matrices)
        for name in ("bias_ih", "bias_hh"):
            if getattr(w, name) is not None:
                check_tensor(f"weights[{k}].{name}", getattr(w, name), (4 * H,), input)
        for name in ("bias_ih", "bias_hh", "weight_hr"):
            if (getattr(w, name) is None) != (getattr(first, name) is None):
                raise ValueError(f"weights[{k}].{name}: expected in every entry of weights or in none")
        if w.weight_hr is not None:
            check_tensor(f"weights[{k}].weight_hr", w.weight_hr, (P, H), matrices)
    if first.weight_hr is None and P != H:
        raise ValueError(
            f"weights[0].weight_hh: got shape {_shape(first.weight_hh)}, expected ({4 * H}, {H}) without weight_hr"
        )
    if hx is not None:
        N = input.shape[0 if batch_first else 1]
        check_states(hx, (len(weights), N, P), (len(weights), N, H), input)


def check_norms(norms: Sequence, entries: int, H: int, like: Tensor) -> None:
    """Checks that there is a fitting `LayerNormWeights` for each entry of the weights."""
    if len(norms) != entries:
        raise ValueError(
            f"layer_norm: got {len(norms)} entries, expected one for each of the {entries} entries of weights"
        )
    for k, norm in enumerate(norms):
        for name, value in norm._asdict().items():
            if name == "bias_c" and value is None and norms[0].bias_c is None:
                continue
            width = H if name.endswith("_c") else 4 * H
            check_tensor(f"layer_norm[{k}].{name}", value, (width,), like)


def check_pair(name: str, states) -> None:
    """Checks that states are two tensors, of any shapes: torch ignores further ones, and some of
    its code reads two without a check."""
    if not isinstance(states, (tuple, list)):
        raise ValueError(f"{name}: got {type(states).__name__}, expected a pair of tensors (h0, c0)")
    if len(states) != 2 or not all(isinstance(s, Tensor) for s in states):
        got = ", ".join("None" if s is None else type(s).__name__ for s in states[:4])
        got += ", ..." if len(states) > 4 else ""
        zeros = f"; for zeros give {name}=None itself" if any(s is None for s in states) else ""
        raise ValueError(f"{name}: got ({got}), expected a pair of tensors (h0, c0){zeros}")


def swapped_states(states) -> tuple[Tensor, Tensor]:
    """States (L*D, N, ...) as (N, L*D, ...), or back."""
    return tuple(s.transpose(0, 1) for s in states)


def layers_first(hx, *shapes: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """hx (N, L*D, P) and (N, L*D, H) with the layers first. shapes: those of the results.

    Raises:
        ValueError: it is not a pair of tensors, or not of these shapes.
    """
    check_pair("hx", hx)
    names = ("hx[0] (h0)", "(N, L*D, P)"), ("hx[1] (c0)", "(N, L*D, H)")
    for state, (rows, N, width), (name, said) in zip(hx, shapes, names, strict=True):
        if state.shape != (N, rows, width):
            raise ValueError(
                f"{name}: got shape {tuple(state.shape)}, expected {(N, rows, width)}, {said} for "
                "batch_first_states=True"
            )
    return swapped_states(hx)


def check_states(hx, h_shape: tuple[int, ...], c_shape: tuple[int, ...], like: Tensor) -> None:
    """Checks that hx is a pair (h0, c0) of these shapes, with the dtype and device of `like`."""
    check_pair("hx", hx)
    check_tensor("hx[0] (h0)", hx[0], h_shape, like)
    check_tensor("hx[1] (c0)", hx[1], c_shape, like)


def zoneout_pair(zoneout) -> tuple[float, float]:
    """The probabilities of h and of c, from one number for both or a pair.

    Raises:
        ValueError: it is neither, or a number is not in [0, 1].
    """
    pair = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, zoneout)
    if len(pair) != 2:
        raise ValueError(f"zoneout: got {zoneout!r}, expected a number or a pair (of h, of c)")
    return tuple(probability("zoneout", p) for p in pair)


def probability(name: str, p) -> float:
    """`p` as a float.

    Raises:
        ValueError: it is not a number in [0, 1].
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"{name}: got {p!r}, expected a number in [0, 1], a probability")
    return float(p)

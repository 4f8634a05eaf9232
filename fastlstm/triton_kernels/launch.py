"""The host's side: results, scratch memory, grids, and the loop of launches.

Nothing here reads a tensor's values, so nothing waits for the device, and what a CUDA graph
captures is launches alone: all memory is taken before the first of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..reference import accumulation_dtype
from . import backward_kernels, forward_kernels
from .configs import Config, arithmetic, choose, forced_way


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _copy(x: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A new contiguous tensor of `like`'s shape with x, or zeros for None."""
    if x is None:
        return torch.zeros(like.shape, dtype=dtype, device=like.device)
    return torch.empty(like.shape, dtype=dtype, device=like.device).copy_(x)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def _launches(kernel, grid: tuple[int, int, int], args: tuple, config: Config) -> Callable:
    """A function of s that launches `kernel` with `args`, where `...` stands for s.

    The first call compiles, or finds what was compiled, from the arguments' types and alignment.
    Nothing but s changes afterwards, and s is not specialised on, so the later calls go to the
    compiled kernel straight away and save most of a launch's time in Python.
    """
    place, given = args.index(...), list(args)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = None

    def launch(s: int) -> None:
        nonlocal compiled
        given[place] = s
        if compiled is not None:
            compiled(*given)
            return
        kernel_of_first = kernel[grid](*given, **options)
        if kernel_of_first is not None:  # None from the interpreter
            compiled = kernel_of_first[grid]

    return launch


def _configuration(which: str, dtype, tf32: bool, N: int, H: int, config: Config | None) -> tuple:
    """The configuration and the kernels' PRECISION."""
    kind = arithmetic(dtype, tf32 and torch.version.hip is None)
    config = config or choose(which, kind, N, H, forced_way())
    return config, "ieee" if kind == "16bit" else kind


def forward(
    gates_x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    save_tape: bool,
    save_cells: bool,
    tf32: bool,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `fastlstm.triton_kernels.forward`."""
    T, N, D, _ = gates_x.shape
    H, P = c0.shape[-1], h0.shape[-1]
    dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
    with torch.cuda.device_of(h0):
        output = h0.new_empty((T, N, D * P))
        cells = h0.new_empty((T, N, D, H), dtype=wide) if save_tape or save_cells else None
        gates = h0.new_empty((T, N, D, 4 * H)) if save_tape else None
        # Entered by even and by odd steps; after T of them, the state is in the one that T would
        # enter, which becomes h_n.
        h_n, other = h0.new_empty((D, N, P)), h0.new_empty((D, N, P))
        even, odd = (h_n, other) if T % 2 == 0 else (other, h_n)
        even.copy_(h0)
        c_state = _copy(c0, c0, wide)
        if T and N:
            _run_forward(
                *_contiguous(gates_x, weight_hh, weight_hr, lengths, reset_mask),
                even, odd, c_state, output, cells, gates,
                *_configuration("forward", dtype, tf32, N, H, config),
            )  # fmt: skip
        return (
            output,
            h_n,
            c_state.to(dtype),
            h0.new_empty((0,), dtype=wide) if cells is None else cells,
            h0.new_empty((0,)) if gates is None else gates,
        )


def _run_forward(
    gates_x, weight_hh, weight_hr, lengths, reset_mask, even, odd, c_state, output, cells, gates,
    config, precision,
):  # fmt: skip
    T, N, D, _ = gates_x.shape
    H, P = c_state.shape[-1], even.shape[-1]
    hidden = None if weight_hr is None else even.new_empty((D, N, H))
    blocks = (config.block_n, config.block_h, config.block_k, precision)
    rows = _tiles(N, config.block_n)
    if config.way == "sequence":
        forward_kernels.lstm_forward_kernel_sequence[(rows, 1, D)](
            gates_x, weight_hh, weight_hr, lengths, reset_mask, even, odd, c_state, hidden, output,
            cells, gates, T, N, D, H, P, *blocks,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return
    step = _launches(
        forward_kernels.lstm_forward_kernel_step,
        (rows, _tiles(H, config.block_h), D),
        (gates_x, weight_hh, lengths, reset_mask, even, odd, c_state, hidden, output, cells, gates,
         ..., T, N, D, H, P, *blocks),
        config,
    )  # fmt: skip
    if hidden is None:
        for s in range(T):
            step(s)
        return
    project = _launches(
        forward_kernels.lstm_forward_kernel_step_projection,
        (rows, _tiles(P, config.block_h), D),
        (weight_hr, lengths, even, odd, hidden, output, ..., T, N, D, H, P, *blocks),
        config,
    )  # fmt: skip
    for s in range(T):
        step(s)
        project(s)


def backward(
    doutput: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    dcells: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    cells: Tensor,
    gates: Tensor,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    wide_gates: bool,
    tf32: bool,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastlstm.triton_kernels.backward`."""
    T, N, D, H4 = gates.shape
    P = h0.shape[-1]
    dtype, wide = h0.dtype, accumulation_dtype(h0.dtype)
    with torch.cuda.device_of(h0):
        dgates = h0.new_empty((T, N, D, H4), dtype=wide if wide_gates else dtype)
        dhidden = None if weight_hr is None else h0.new_empty((T, N, D, P), dtype=wide)
        dc_state = _copy(dc_n, c0, wide)
        if T and N:
            dh0 = h0.new_empty((D, N, P))
            _run_backward(
                *_contiguous(doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates),
                *_contiguous(lengths, reset_mask),
                dc_state, dgates, dhidden, dh0,
                *_configuration("backward", dtype, tf32, N, H4 // 4, config),
            )  # fmt: skip
        else:
            dh0 = _copy(dh_n, h0, dtype)
        return (
            dgates,
            dh0,
            dc_state.to(dtype),
            h0.new_empty((0,), dtype=wide) if dhidden is None else dhidden,
        )


def _run_backward(
    doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
    dc_state, dgates, dhidden, dh0, config, precision,
):  # fmt: skip
    T, N, D, H4 = gates.shape
    H, P = H4 // 4, dh0.shape[-1]
    sizes = (T, N, D, H, P, config.block_n, config.block_h, config.block_k, precision)
    rows, options = (
        _tiles(N, config.block_n),
        {"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    if config.way == "sequence":
        backward_kernels.lstm_backward_kernel_sequence[(rows, 1, D)](
            doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
            dc_state, dgates, dhidden, dh0, *sizes, **options,
        )  # fmt: skip
        return
    over_units = (rows, _tiles(H, config.block_h), D)
    over_outputs = (rows, _tiles(P, config.block_h), D)
    step = _launches(
        backward_kernels.lstm_backward_kernel_step,
        over_units,
        (doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
         dc_state, dgates, dhidden, ..., *sizes),
        config,
    )  # fmt: skip
    if dhidden is None:
        for s in range(T):
            step(s)
    else:
        arrive = _launches(
            backward_kernels.lstm_backward_kernel_step_arrival,
            over_outputs,
            (doutput, dh_n, weight_hh, lengths, reset_mask, dgates, dhidden, ..., *sizes),
            config,
        )
        for s in range(T):
            arrive(s)
            step(s)
    backward_kernels.lstm_backward_kernel_start[over_outputs](
        dh_n, weight_hh, lengths, reset_mask, dgates, dh0, *sizes, **options
    )

"""Host code: allocates results and scratch memory, chooses grids, and loops over launches.

It reads no tensor's values, so it never waits for the device, and allocates all memory before the
first launch, so a CUDA graph captures launches only.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from ...ops.recurrence import Backward, Forward, backward_results, forward_results
from ...precision import accumulation_dtype
from . import backward_kernels, forward_kernels, resident_kernels
from .configs import ANY, Config, arithmetic, choose, forced_way

FUSED = {"enable_fp_fusion": True}  # explicit, since Triton may change its default


def _plain(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors contiguous and aligned to 16 bytes, as new tensors are: for others Triton would
    compile further kernels, with narrow loads."""
    return [x if x is None or (x.is_contiguous() and x.data_ptr() % 16 == 0) else _copy(x, x, x.dtype) for x in tensors]


def _copy(x: Tensor | None, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A new contiguous tensor of `like`'s shape: x, or zeros for None."""
    if x is None:
        return torch.zeros(like.shape, dtype=dtype, device=like.device)
    return torch.empty(like.shape, dtype=dtype, device=like.device).copy_(x)


def _row(size: int, dtype: torch.dtype) -> int:
    """`size` elements rounded up to 16 bytes, a thread's widest load."""
    least = 16 // dtype.itemsize
    return -(-size // least) * least


def _rounded(x: Tensor, precision: str) -> Tensor:
    """x as the factor of a product: `rounding.factor` on the host."""
    if precision != "tf32":
        return x
    bits = (x.contiguous().view(torch.int32) + 0x1000) & -0x2000
    return torch.where(x.isnan(), x, bits.view(torch.float32))


def _factor(weight: Tensor | None, precision: str) -> Tensor | None:
    """Weights as factors of a product, their rows padded with zeros to a multiple of 16 bytes."""
    if weight is None:
        return None
    weight = _rounded(weight, precision)
    missing = _row(weight.shape[-1], weight.dtype) - weight.shape[-1]
    return torch.nn.functional.pad(weight, (0, missing)) if missing else weight


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """KiB of shared memory that one program may use."""
    if device.type != "cuda":
        return ANY
    properties = torch.cuda.get_device_properties(device)
    # On AMD torch does not report the 64 KiB of local memory.
    return (getattr(properties, "shared_memory_per_block_optin", 0) or 64 << 10) >> 10


def _choice(which: str, h0: Tensor, c0: Tensor, projected: bool, tf32: bool, way: str | None) -> tuple[Config, str]:
    """The table's configuration for a pass, and the kernels' PRECISION (products.dot)."""
    kind = arithmetic(h0.dtype, tf32 and torch.version.hip is None)
    width, shared = max(h0.shape[-1], c0.shape[-1]), _shared_memory(h0.device)
    config = choose(which, kind, h0.shape[1], width, projected=projected, shared=shared, way=way)
    return config, "ieee" if kind == "16bit" else kind


class _Plan:
    """How a pass is launched: its configuration, the grids, and every kernel's last arguments."""

    def __init__(self, which, h0, c0, T, projected, tf32, config: Config | None):
        D, N, P = h0.shape
        H, dtype = c0.shape[-1], h0.dtype
        chosen, self.precision = _choice(which, h0, c0, projected, tf32, forced_way())
        config = config or chosen
        self.way, self.steps = config.way, T
        rows = _tiles(N, config.block_n)
        self.over_rows = (rows, 1, D)
        self.over_units = (rows, _tiles(H, config.block_h), D)
        self.over_outputs = (rows, _tiles(P, config.block_h), D)
        self.sizes = (T, N, D, H, P)
        if config.way == "resident":
            if config.block_h < max(H, P):
                raise ValueError(
                    f"fastlstm: the way 'resident' holds up to {config.block_h} units and outputs, "
                    f"got H = {H}, P = {P}; take another way, or a wider configuration"
                )
            self.sizes += (config.block_n, config.block_h, self.precision)
        else:
            self.sizes += (_row(H, dtype), _row(P, dtype))
            self.sizes += (config.block_n, config.block_h, config.block_k, self.precision)
        self.options = {"num_warps": config.num_warps, "num_stages": config.num_stages, **FUSED}

    def run(self, kernel, grid, *args) -> None:
        kernel[grid](*args, *self.sizes, **self.options)

    def step(self, kernel, grid, *args) -> Callable[..., None]:
        """A function of s that launches the kernel with `args`, s, and the sizes."""
        return launcher(kernel, grid, args, self.sizes, self.options)


def launcher(kernel, grid, before: tuple, after: tuple, options: dict) -> Callable[..., None]:
    """A function that launches the kernel with `before`, its own arguments, and `after`.

    The first call compiles the kernel for the arguments' types and alignment, or finds it compiled.
    Afterwards only the function's own arguments change, which kernels are not specialised on, so
    later calls launch the compiled kernel directly, which saves most of a launch's time in Python.
    """
    compiled = None

    def launch(*between: int) -> None:
        nonlocal compiled
        if compiled is not None:
            compiled(*before, *between, *after)
            return
        found = kernel[grid](*before, *between, *after, **options)
        if found is not None:  # the interpreter has none
            compiled = found[grid]

    return launch


def forward(*args, config: Config | None = None) -> tuple[Tensor, ...]:
    """See `fastlstm.backends.triton.forward`. config: replaces the table's."""
    *given, tf32 = args
    call = Forward(*given)
    h0, c0, T = call.h0, call.c0, call.gates_x.shape[0]
    with torch.cuda.device_of(h0):
        made = forward_results(call)
        if T and h0.shape[1]:
            *arrays, save_tape, save_cells = call
            plan = _Plan("forward", h0, c0, T, call.weight_hr is not None, tf32, config)
            cells = made.cells if save_tape or save_cells else None
            gates = made.gates if save_tape else None
            h_n, c_n = _run_forward(*_plain(*arrays), made.output, cells, gates, plan)
        else:
            h_n, c_n = _copy(h0, h0, h0.dtype), _copy(c0, c0, c0.dtype)
        return tuple(made._replace(h_n=h_n, c_n=c_n))


def _run_forward(gates_x, h0, c0, weight_hh, weight_hr, lengths, reset_mask, output, cells, gates, plan):
    """h_n and c_n."""
    if plan.way == "resident":
        h_n, c_n = torch.empty_like(h0), torch.empty_like(c0)
        plan.run(
            resident_kernels.lstm_forward_kernel_resident, plan.over_rows,
            gates_x, weight_hh, weight_hr, lengths, reset_mask, h0, c0, h_n, c_n, output, cells,
            gates,
        )  # fmt: skip
        return h_n, c_n
    D, N, P = h0.shape
    H = c0.shape[-1]
    weight_hh, weight_hr = (_factor(w, plan.precision) for w in (weight_hh, weight_hr))
    even = h0.new_zeros((D, N, _row(P, h0.dtype)))  # h that enters steps of even s
    odd = torch.zeros_like(even)
    even[..., :P] = _rounded(h0, plan.precision)
    h_n = _copy(h0, h0, h0.dtype)
    c_state = _copy(c0, c0, accumulation_dtype(c0.dtype))
    hidden = None if weight_hr is None else h0.new_zeros((D, N, _row(H, h0.dtype)))
    states = (even, odd, h_n, c_state)
    if plan.way == "sequence":
        plan.run(
            forward_kernels.lstm_forward_kernel_sequence, plan.over_rows,
            gates_x, weight_hh, weight_hr, lengths, reset_mask, *states, hidden, output, cells,
            gates,
        )  # fmt: skip
        return h_n, c_state.to(c0.dtype)
    step = plan.step(
        forward_kernels.lstm_forward_kernel_step, plan.over_units,
        gates_x, weight_hh, lengths, reset_mask, *states, hidden, output, cells, gates,
    )  # fmt: skip
    if hidden is None:
        for s in range(plan.steps):
            step(s)
    else:
        project = plan.step(
            forward_kernels.lstm_forward_kernel_step_projection, plan.over_outputs,
            weight_hr, lengths, even, odd, h_n, hidden, output,
        )  # fmt: skip
        for s in range(plan.steps):
            step(s)
            project(s)
    return h_n, c_state.to(c0.dtype)


def backward(*args, config: Config | None = None) -> tuple[Tensor, ...]:
    """See `fastlstm.backends.triton.backward`. config: replaces the table's."""
    *given, tf32 = args
    call = Backward(*given)
    h0, c0, T, projected = call.h0, call.c0, call.gates.shape[0], call.weight_hr is not None
    with torch.cuda.device_of(h0):
        made = backward_results(call)
        if T and h0.shape[1]:
            dh0 = made.dh0
            dc0 = _run_backward(
                *_plain(call.doutput, call.dh_n, call.dc_n, call.dcells, c0),
                *_plain(call.weight_hh, call.weight_hr, call.cells, call.gates),
                *_plain(call.lengths, call.reset_mask),
                made.dgates_x, made.dhidden if projected else None, dh0,
                _Plan("backward", h0, c0, T, projected, tf32, config),
            )  # fmt: skip
        else:
            dh0, dc0 = _copy(call.dh_n, h0, c0.dtype), _copy(call.dc_n, c0, c0.dtype)
        return tuple(made._replace(dh0=dh0, dc0=dc0))


def _run_backward(
    doutput, dh_n, dc_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
    dgates, dhidden, dh0, plan,
):  # fmt: skip
    """dc0."""
    if plan.way == "resident":
        dc0 = torch.empty_like(c0)
        plan.run(
            resident_kernels.lstm_backward_kernel_resident, plan.over_rows,
            doutput, dh_n, dc_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths,
            reset_mask, dgates, dhidden, dh0, dc0,
        )  # fmt: skip
        return dc0
    D, N, H = c0.shape
    P, dtype = dh0.shape[-1], gates.dtype
    weight_hh, weight_hr = (_factor(w, plan.precision) for w in (weight_hh, weight_hr))
    even = gates.new_zeros((D, N, 4 * _row(H, dtype)))  # dgates that enter steps of even s
    odd = torch.zeros_like(even)
    arrived = None if weight_hr is None else gates.new_zeros((D, N, _row(P, dtype)))
    dc_state = _copy(dc_n, c0, accumulation_dtype(dtype))
    step_args = (
        doutput, dh_n, dcells, c0, weight_hh, weight_hr, cells, gates, lengths, reset_mask,
        dc_state, even, odd, arrived, dgates,
    )  # fmt: skip
    if plan.way == "sequence":
        kernel = backward_kernels.lstm_backward_kernel_sequence
        plan.run(kernel, plan.over_rows, *step_args, dhidden, dh0)
        return dc_state.to(c0.dtype)
    step = plan.step(backward_kernels.lstm_backward_kernel_step, plan.over_units, *step_args)
    if arrived is None:
        for s in range(plan.steps):
            step(s)
    else:
        arrive = plan.step(
            backward_kernels.lstm_backward_kernel_step_arrival, plan.over_outputs,
            doutput, dh_n, weight_hh, lengths, reset_mask, even, odd, arrived, dhidden,
        )  # fmt: skip
        for s in range(plan.steps):
            arrive(s)
            step(s)
    plan.run(
        backward_kernels.lstm_backward_kernel_start, plan.over_outputs,
        dh_n, weight_hh, lengths, reset_mask, even if plan.steps % 2 == 0 else odd, dh0,
    )  # fmt: skip
    return dc_state.to(c0.dtype)

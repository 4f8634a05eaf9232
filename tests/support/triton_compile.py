"""What the host launches, recorded in place of a GPU, and those kernels compiled ahead of time."""

import re
import subprocess
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlstm.backends.triton import (
    backward_kernels,
    forward_kernels,
    launch,
    resident_kernels,
    variant_backward_kernels,
    variant_forward_kernels,
    variant_rows,
)
from fastlstm.precision import accumulation_dtype

MODULES = (forward_kernels, backward_kernels, resident_kernels)
MODULES += (variant_rows, variant_forward_kernels, variant_backward_kernels)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class Launch(NamedTuple):
    """One launch: of the kernel itself, or of what compiling it gave."""

    kernel: object
    grid: tuple
    arguments: tuple
    options: dict
    compiled: bool


class Recorder:
    """Stands where a kernel is, notes its launches in `launches`, and is what they compile to."""

    def __init__(self, kernel, launches, compiled=False):
        self.kernel, self.launches, self.compiled = kernel, launches, compiled

    def __getitem__(self, grid):
        def call(*arguments, **options):
            if self.compiled:  # as triton.compiler.CompiledKernel reads it; a kernel takes fewer
                _ = grid[0], grid[1], grid[2]
            self.launches.append(Launch(self.kernel, grid, arguments, options, self.compiled))
            return Recorder(self.kernel, self.launches, compiled=True)

        return call


def record(monkeypatch, function) -> list[Launch]:
    """The launches that `function()` asks for."""
    launches = []
    with monkeypatch.context() as patch:
        for module in MODULES:
            for name, kernel in vars(module).items():
                if name.startswith("lstm_"):
                    patch.setattr(module, name, Recorder(kernel, launches))
        function()
    return launches


class Layer(NamedTuple):
    """A layer's sizes, for which `forward` and `backward` run on tensors without memory."""

    T: int = 1
    N: int = 16
    H: int = 64
    P: int | None = None
    D: int = 1
    dtype: torch.dtype = torch.float32
    wide: bool = False
    masks: bool = False
    device: str = "meta"

    def arguments(self) -> list:
        """Of the forward, up to the masks."""
        T, N, H, D = self.T, self.N, self.H, self.D
        P = H if self.P is None else self.P
        wide = accumulation_dtype(self.dtype)

        def empty(*shape, dtype=self.dtype):
            return torch.empty(shape, dtype=dtype, device=self.device)

        return [
            empty(T, N, D, 4 * H, dtype=wide if self.wide else self.dtype),
            empty(D, N, P),
            empty(D, N, H),
            empty(D, 4 * H, P),
            None if self.P is None else empty(D, P, H),
            empty(N, dtype=torch.int64) if self.masks else None,
            empty(T, N, dtype=torch.bool) if self.masks else None,
        ]

    def run(self, which: str, tf32: bool = False, config=None, save_tape: bool = True):
        """launch.forward or launch.backward."""
        arguments = self.arguments()
        if which == "forward":
            return launch.forward(*arguments, save_tape, True, tf32, config=config)
        gates_x, h0, c0, *rest = arguments
        cells = c0.new_empty((self.T, self.N, self.D, self.H), dtype=accumulation_dtype(self.dtype))
        gradients = [h0.new_empty((self.T, self.N, self.D * h0.shape[-1])), h0, c0, cells]
        tape = [cells, gates_x.to(self.dtype)]
        return launch.backward(*gradients, None, h0, c0, *rest[:2], *tape, *rest[2:], self.wide, tf32, config=config)


def compile_launch(launched: Launch, target: GPUTarget):
    """The compiled kernel, specialised as the launch would specialise it for tensors of torch's:
    pointers are multiples of 16 bytes."""
    signature, constants, attributes = {}, {}, {}
    for k, (parameter, value) in enumerate(zip(launched.kernel.params, launched.arguments, strict=True)):
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(k,)] = [["tt.divisibility", 16]]
        else:
            assert parameter.do_not_specialize, parameter.name
            signature[parameter.name] = "i32"
    source = ASTSource(launched.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launched.options)


def stack_bytes(compiled, path) -> int:
    """Bytes of stack a thread takes, where registers are spilled; `path` is for the binary."""
    path.write_bytes(compiled.asm["cubin"])
    found = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(re.search(r"STACK:(\d+)", found.stdout)[1])

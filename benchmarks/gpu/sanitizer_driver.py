"""Forward and backward of FastLSTM on tiny shapes, for compute-sanitizer to look at:
``python -m benchmarks.gpu.sanitizer_driver BACKEND [exchanges]``, with the last only what several
blocks exchange.

All inputs are drawn on the CPU and copied, so that every byte that a kernel of fastlstm may read
has been written by a copy or by such a kernel.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.common import stand_ins
from benchmarks.common.precision import fp32_precision

DONE = "all calls made"
# T, N, I, H and options: less than a tile, a whole tile, more than one with a rest, many units.
CASES = [
    (3, 3, 5, 17, {}),
    (2, 16, 16, 64, {}),
    (3, 5, 3, 33, {"bidirectional": True, "masks": True}),
    (2, 19, 4, 70, {"proj_size": 9, "masks": True}),
    (2, 2, 4, 300, {}),
]
# Clusters of two, three and sixteen blocks, and the whole grid; the same with a projection.
EXCHANGES = [
    (3, 3, 5, 48, {}),
    (3, 9, 5, 96, {"bidirectional": True}),
    (3, 2, 5, 512, {}),
    (3, 2, 4, 700, {}),
    (3, 5, 4, 96, {"proj_size": 40}),
    (3, 2, 4, 700, {"proj_size": 200}),
]
DRY_CASES = [(2, 2, 3, 5, {}), (2, 2, 3, 4, {"bidirectional": True, "masks": True, "proj_size": 2})]
PRECISIONS = [
    (torch.float32, "ieee"),
    (torch.float32, "tf32"),
    (torch.bfloat16, "ieee"),
    (torch.float16, "ieee"),
    (torch.float64, "ieee"),
]


def one(backend: str, device: str, dtype: torch.dtype, T, N, I, H, masks=False, **options) -> None:
    from fastlstm import FastLSTM

    torch.manual_seed(0)
    lstm = FastLSTM(I, H, dtype=dtype, backend=backend, **options).to(device)
    x = torch.randn(T, N, I).to(dtype).to(device).requires_grad_()
    given = {}
    if masks:
        given["lengths"] = torch.randint(0, T + 1, (N,)).to(device)
        given["reset_mask"] = (torch.rand(T, N) < 0.3).to(device)
    output, (h_n, c_n), cells = lstm(x, return_cell_sequence=True, **given)
    # Written without a kernel, as the inputs.
    gradients = [torch.randn(y.shape).to(dtype).to(device) for y in (output, h_n, c_n, cells)]
    torch.autograd.backward((output, h_n, c_n, cells), gradients)
    with torch.no_grad():
        lstm(x, **given)


def main(backend: str, exchanges: bool = False) -> None:
    device, cases = "cuda", EXCHANGES if exchanges else CASES
    if stand_ins.is_dry():
        stand_ins.fake_backends()
        device, cases = "cpu", DRY_CASES
    for dtype, mode in PRECISIONS[2:3] if exchanges else PRECISIONS:
        for T, N, I, H, options in cases:
            with fp32_precision(mode):
                one(backend, device, dtype, T, N, I, H, **options)
    if device == "cuda":
        torch.cuda.synchronize()
    print(DONE, flush=True)


if __name__ == "__main__":
    if stand_ins.is_dry():
        stand_ins.prepare_environment()
    main(sys.argv[1], sys.argv[2:] == ["exchanges"])

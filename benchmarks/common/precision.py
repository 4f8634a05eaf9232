"""The precisions of the benchmark, and torch's settings for them.

``fp32`` and ``tf32`` are float32 tensors with the matrix products of cuDNN's RNNs, of fastlstm and
of torch in full precision or in TensorFloat-32. Only torch's newer settings are used
(``fp32_precision``): torch refuses a mixture with the older ones (``allow_tf32``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

# name -> (dtype of the tensors, fp32_precision, unit roundoff of the products' operands)
PRECISIONS = {
    "bf16": (torch.bfloat16, "ieee", 2.0**-8),
    "fp16": (torch.float16, "ieee", 2.0**-11),
    "fp32": (torch.float32, "ieee", 2.0**-24),
    "tf32": (torch.float32, "tf32", 2.0**-11),
}


@contextlib.contextmanager
def fp32_precision(mode: str) -> Iterator[None]:
    """Run the block with ``mode``, ``ieee`` or ``tf32``, for RNNs, convolutions and products."""
    backends = torch.backends
    places = (backends.cudnn.rnn, backends.cudnn.conv, backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = mode
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value

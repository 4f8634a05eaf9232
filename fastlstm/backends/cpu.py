"""What the CPU's kernels ask Python for: torch's float32 settings, which LibTorch's stable ABI does
not show. They ask at every call that multiplies on AMX, so that a compiled model follows the
settings as an eager one does. And the backward of the variants, of which they have the loop over
steps.
"""

import torch

from .. import precision
from ..ops import variant as variant_ops
from ..ops.library import library
from . import native

library.define("cpu_parts() -> int")
library.impl("cpu_parts", precision.cpu_parts, "CompositeExplicitAutograd")

if native.load() is None:
    # The forward registers itself (csrc/torch/variant.cpp).
    library.define(variant_ops.LOOP.format("lstm", ""))
    _loop = variant_ops.loop_of(torch.ops.fastlstm.lstm_variant_loop.default)
    variant_ops.register("lstm", None, _loop, "CPU")

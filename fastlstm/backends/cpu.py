"""What the CPU's kernels ask Python for: torch's float32 settings, which LibTorch's stable ABI does
not show. They ask at every call that multiplies on AMX, so that a compiled model follows the
settings as an eager one does. And the backward of the variants, of which they have the loop over
steps.
"""

from .. import precision
from ..ops import variant as variant_ops
from ..ops.define import declare
from ..ops.library import library, op
from ..reference.backward import Arrived
from . import native

declare("cpu_parts", None, int)
library.impl("cpu_parts", precision.cpu_parts, "CompositeExplicitAutograd")

if native.load() is None:
    # The forward registers itself (csrc/torch/variant.cpp).
    declare("lstm_variant_loop", variant_ops.VariantLoop, Arrived)
    variant_ops.register("lstm", None, op("lstm_variant_loop"), "CPU")

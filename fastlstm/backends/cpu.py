"""Registers the CPU's kernels that need Python: torch's float32 settings, which LibTorch's stable
ABI does not expose, and the backward of the variants, of which only the loop over steps is
compiled.

The kernels read the settings at every call that multiplies on AMX, so that a compiled model follows
them as an eager one does.
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
    # csrc/torch/variant.cpp registers the forward.
    declare("lstm_variant_loop", variant_ops.VariantLoop, Arrived)
    variant_ops.register("lstm", None, op("lstm_variant_loop"), "CPU")

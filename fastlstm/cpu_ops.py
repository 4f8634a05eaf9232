"""What the CPU's kernels ask Python for: torch's float32 settings, which LibTorch's stable ABI does
not show. They ask at every call that multiplies on AMX, so that a compiled model follows the
settings as an eager one does."""

from . import ops, precision

ops.library.define("cpu_parts() -> int")
ops.library.impl("cpu_parts", precision.cpu_parts, "CompositeExplicitAutograd")

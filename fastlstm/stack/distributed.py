"""Layers on DTensors (torch.distributed.tensor): rows of the batch may be on different devices.

A recurrence is sequential in time and mixes all units at every step; only its rows are independent.
So each device runs the layers on its own rows, with all weights, and arguments are redistributed
for that: a batch with another sharding is gathered, sharded weights are gathered, and plain tensors
are taken as replicated. Gradients are redistributed back.
"""

import sys
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.utils._pytree import tree_map_only


def is_distributed(tensor: Tensor) -> bool:
    # If there is a DTensor, its module is imported already; importing it here would take too long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def run_layers(
    run: Callable,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    layers: Sequence,
    *,
    lengths: Tensor | None,
    reset_mask: Tensor | None,
    layer_outputs: list[Tensor] | None,
    **options,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`stack.run.run_layers`, which is `run`, for a DTensor x (T, N, I). The results are DTensors,
    sharded over N as x is.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = x.device_mesh
    by_rows = [p == Shard(1) for p in x.placements]  # of each dimension of the mesh

    def placements(dim: int):
        return [Shard(dim) if rows else Replicate() for rows in by_rows]

    def whole(tensor):
        return tensor.redistribute(mesh, [Replicate()] * mesh.ndim)

    def distributed(tensor):
        if isinstance(tensor, DTensor):
            return tensor
        return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)

    def rows_of(tensor, dim):
        if tensor is None:
            return None
        return distributed(tensor).redistribute(mesh, placements(dim)).to_local()

    # The gradient of a replicated tensor is the sum over the devices' rows.
    sums = [Partial() if rows else Replicate() for rows in by_rows]

    def local_weight(tensor):
        return whole(distributed(tensor)).to_local(grad_placements=sums)

    layers, options = tree_map_only(Tensor, local_weight, (layers, options))
    outputs = None if layer_outputs is None else []
    results = run(
        rows_of(x, 1),
        rows_of(h0, 1),
        rows_of(c0, 1),
        layers,
        lengths=rows_of(lengths, 0),
        reset_mask=rows_of(reset_mask, 1),
        layer_outputs=outputs,
        **options,
    )
    N = x.shape[1]

    def back(tensor):
        if tensor is None:
            return None
        # N is that of all devices, which need not have the same number of rows.
        first, _, last = tensor.shape
        shape, stride = (first, N, last), (N * last, last, 1)
        return DTensor.from_local(tensor, mesh, placements(1), run_check=False, shape=shape, stride=stride)

    if layer_outputs is not None:
        layer_outputs.extend(map(back, outputs))
    return tuple(back(r) for r in results)

"""A whole stack with 8-bit weights as one op, without a gradient.

`int8_stack`: x (T, N, I), (N, T, I) with batch_first, or (T, I); weights of each layer and
direction packed_ih, scale_ih (4H,), packed_hh, scale_hh (4H,), [bias (4H,)], [packed_hr, scale_hr
(P,)]; csrc/cpu/int8_recurrence.h has the packed form.
"""

import torch

from ..ops.library import library

library.define(
    "int8_stack(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, int layers, "
    "bool bidirectional, bool batch_first, Tensor? lengths, Tensor? reset_mask, "
    "bool weight_only, bool return_cells) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells)"
)


def _fake(
    x,
    h0,
    c0,
    weights,
    layers,
    bidirectional,
    batch_first,
    lengths,
    reset_mask,
    weight_only,
    return_cells,
):
    D = 2 if bidirectional else 1
    each = len(weights) // (layers * D)
    H = weights[3].shape[0] // 4
    P = weights[each - 1].shape[0] if each >= 6 else H
    T, N = (
        (x.shape[1], x.shape[0])
        if batch_first and x.dim() == 3
        else (x.shape[0], *x.shape[1:-1], 1)[:2]
    )
    rows = (N,) if x.dim() == 3 else ()

    def sequence(width):
        made = x.new_empty((T, *rows, D * width))
        return made.transpose(0, 1) if rows and batch_first else made

    cells = sequence(H) if return_cells else x.new_empty((0,))
    return (
        sequence(P),
        x.new_empty((layers * D, *rows, P)),
        x.new_empty((layers * D, *rows, H)),
        cells,
    )


torch.library.register_fake("fastlstm::int8_stack", _fake, lib=library)
int8_stack = torch.ops.fastlstm.int8_stack.default

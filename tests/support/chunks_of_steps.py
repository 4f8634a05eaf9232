"""A sequence cut in chunks: what a recurrence gives when c and the gradients of both states pass
from one to the next in the accumulation dtype."""

import torch
from op_cases import Case, backward_arguments, draw, op, tape_of, to

from fastlstm.precision import accumulation_dtype


def check_chunks_of_steps(case: Case, family: str, at: int, device="cpu") -> None:
    """Hold a family's forward and backward of one direction, cut before step `at`, to the uncut
    ones, bit by bit."""
    dtype = torch.float64 if case.dtype == torch.float64 else None
    arguments, gradients = (to(dtype, part, device) for part in draw(case))
    forward, backward = (op(case.entry, family, which) for which in ("forward", "backward"))
    names = ("output", "h_n", "c_n", "cells", "gates")
    whole = dict(zip(names, forward(*arguments, True, True), strict=True))
    given = backward_arguments(case, arguments, gradients, tape_of(whole))
    dgates_x, dh0, dc0, dhidden = backward(*given)

    wide = accumulation_dtype(case.dtype)
    gates_x, h, c, *weights, lengths, reset_mask = arguments
    states, parts = [(h, c.to(wide))], []
    spans = [slice(0, at), slice(at, case.T)]
    masks = [
        (
            None if lengths is None else lengths - s.start,
            None if reset_mask is None else reset_mask[s],
        )
        for s in spans
    ]
    for s, mask in zip(spans, masks, strict=True):
        part = forward(gates_x[s], *states[-1], *weights, *mask, True, True)
        states.append(part[1:3])
        parts.append(part)
    h_n, c_n = states[-1]
    assert c_n.dtype == wide
    found = [torch.cat([p[k] for p in parts]) for k in (0, 3, 4)]
    expected = [whole[name] for name in ("output", "cells", "gates")]
    named = [(h_n, whole["h_n"]), (c_n.to(case.dtype), whole["c_n"])]

    doutput, dh, dc, dcells = gradients
    dh, dc = (None if d is None else d.to(wide) for d in (dh, dc))
    results = []
    for k in (1, 0):
        s = spans[k]
        result, dh, dc, hidden = backward(
            None if doutput is None else doutput[s], dh, dc, None if dcells is None else dcells[s],
            None, *states[k], *weights, parts[k][3], parts[k][4], *masks[k], case.wide,
        )  # fmt: skip
        assert dh.dtype == dc.dtype == wide
        results.insert(0, (result, hidden))
    found += [torch.cat([r for r, _ in results])]
    expected += [dgates_x]
    if dhidden.numel():
        found += [torch.cat([hidden for _, hidden in results])]
        expected += [dhidden]
    named += [(dh.to(case.dtype), dh0), (dc.to(case.dtype), dc0)]
    for k, (a, b) in enumerate([*zip(found, expected, strict=True), *named]):
        assert torch.equal(a, b), f"tensor {k} differs by {(a.double() - b).abs().max()}"

"""The gradients of a layer's weights from those of its gates: large products over all
steps and rows."""

import torch
from torch import Tensor

from ..reference import lstm as reference


def product_of_steps(dy: Tensor, x: Tensor) -> Tensor:
    """sum over t, n of dy[t, n, :] x[t, n, :]^T: (T, N, A), (T, N, B) -> (A, B), in dy's dtype."""
    # reshape: see layer.py
    rows = dy.shape[0] * dy.shape[1]
    return dy.reshape(rows, dy.shape[2]).t() @ x.to(dy.dtype).reshape(rows, x.shape[2])


def weight_hh_grad(dgates_x, output, h0, lengths, reset_mask):
    """dW_hh (D, 4H, P): one large product per direction, of dgates with the h that entered each
    step."""
    T, _, D, _ = dgates_x.shape
    P = h0.shape[-1]
    grads = []
    for d in range(D):
        dgates, h, first = dgates_x[:, :, d], output[..., d * P : (d + 1) * P], h0[d]
        if T == 0:
            grads.append(dgates.new_zeros((dgates.shape[-1], P)))
        elif lengths is None and reset_mask is None:
            # The entering states are the output shifted by a step: views do, save for the first
            # step's h0.
            start, rest = (T - 1, slice(0, T - 1)) if d else (0, slice(1, T))
            before = slice(1, T) if d else slice(0, T - 1)
            grad = dgates[start].t() @ first.to(dgates.dtype)
            grads.append(grad if T == 1 else grad + product_of_steps(dgates[rest], h[before]))
        else:
            entering = reference.entering_states(h, first, reset_mask, lengths, d == 1)
            grads.append(product_of_steps(dgates, entering))
    return torch.stack(grads)


def weight_hr_grad(dhidden, cells, gates):
    """dW_hr (D, P, H): of the gradients that arrived at h_t with the unprojected o * tanh(c_t)."""
    H = cells.shape[-1]
    unprojected = gates[..., 3 * H :].to(cells.dtype) * cells.tanh()
    return torch.stack(
        [product_of_steps(dhidden[:, :, d], unprojected[:, :, d]) for d in range(dhidden.shape[2])]
    )


def weight_gradients(
    dgates_x, dhidden, x, output, h0, cells, gates, lengths, reset_mask, projected: bool
):
    """(dweight_ih, dweight_hh, dbias, dweight_hr) of a layer, each (D, ...) in x's dtype; the last
    None without a projection. dgates_x, dhidden: from the recurrence's backward."""
    T, D = x.shape[0], h0.shape[0]
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    # A copy of x, and only with lengths: dgates_x is 0 where x does not exist, but 0 * NaN is not.
    x = reference.existing(x, lengths)
    dweight_ih = torch.stack([product_of_steps(dgates_x[:, :, d], x) for d in range(D)])
    return (
        dweight_ih.to(x.dtype),
        weight_hh_grad(dgates_x, output, h0, lengths, reset_mask).to(x.dtype),
        dgates_x.sum((0, 1)).to(x.dtype),
        weight_hr_grad(dhidden, cells, gates).to(x.dtype) if projected else None,
    )


def _sums(dy: Tensor, x: Tensor, samples: int) -> Tensor:
    """For each sample the sum over t, n of dy[t, n, :] x[t, n, :]^T: of (T, samples * N, A) and
    (T, samples * N, B) it is (samples, A, B), in dy's dtype."""
    dy, x = (
        v.unflatten(1, (samples, v.shape[1] // samples)).movedim(1, 0).flatten(1, 2)
        for v in (dy, x.to(dy.dtype))
    )
    return dy.mT @ x


def backward_of_samples(
    recurrence_backward, doutput, dh_n, dc_n, dcells, x, h0, c0, weight_ih, weight_hh, weight_hr,
    weight_ih_reverse, weight_hh_reverse, weight_hr_reverse, output, cells, gates, lengths,
    reset_mask, wide_products, need_dx, need_dweights, samples,
):  # fmt: skip
    """The backward of a layer whose rows belong to samples, N // samples rows to each: the weights'
    gradients, in the layer's backward (D, ...), are (samples, D, ...)."""
    D, P, H, dtype = h0.shape[0], h0.shape[2], c0.shape[2], x.dtype
    pairs = (weight_ih, weight_ih_reverse), (weight_hh, weight_hh_reverse)
    pairs += ((weight_hr, weight_hr_reverse),)
    ih, hh, hr = (None if w[0] is None else torch.stack(w[:D]) for w in pairs)
    dgates_x, dh0, dc0, dhidden = recurrence_backward(
        doutput, dh_n, dc_n, dcells, None, h0, c0, hh, hr, cells, gates, lengths, reset_mask,
        wide_products,
    )  # fmt: skip
    dx, dhr = x.new_empty((0,)), x.new_empty((0,))
    if need_dx:
        dx = (dgates_x.flatten(2) @ ih.flatten(0, 1).to(dgates_x.dtype)).to(dtype)
    if lengths is not None:
        lengths = lengths.clamp(0, x.shape[0])
    x = reference.existing(x, lengths)
    entering = output.split(P, dim=-1)
    if x.shape[0]:
        entering = [
            reference.entering_states(y, h0[d], reset_mask, lengths, d == 1)
            for d, y in enumerate(entering)
        ]
    dgates = dgates_x.unbind(2)
    dih = torch.stack([_sums(g, x, samples) for g in dgates], dim=1)
    dhh = torch.stack([_sums(g, h, samples) for g, h in zip(dgates, entering, strict=True)], dim=1)
    dbias = dgates_x.unflatten(1, (samples, x.shape[1] // samples)).sum((0, 2))
    if hr is not None:
        unprojected = gates[..., 3 * H :].to(cells.dtype) * cells.tanh()
        sums = zip(dhidden.unbind(2), unprojected.unbind(2), strict=True)
        dhr = torch.stack([_sums(h, u, samples) for h, u in sums], dim=1).to(dtype)
    return dx, dh0, dc0, dih.to(dtype), dhh.to(dtype), dbias.to(dtype), dhr

"""A sequence in chunks, the state carried on, beside one call for all of it."""

import torch

from fastlstm import FastLSTM


def check_stream(backend, chunks, *, by_step=False, **options):
    """Results and gradients of the chunked stream are those of the whole call, in float64 within
    rounding. by_step: chunks of one step through `step`, too."""
    fast = FastLSTM(3, 4, backend=backend, dtype=torch.float64, **options)
    P, L = fast.proj_size or 4, fast.num_layers
    x = torch.randn(sum(chunks), 2, 3, dtype=torch.float64, requires_grad=True)
    hx = [torch.randn(L, 2, k, dtype=torch.float64, requires_grad=True) for k in (P, 4)]
    whole, final = fast(x, hx)
    parts, state = [], hx
    for part in x.split(chunks):
        if by_step and len(part) == 1:
            y, state = fast.step(part[0], state)
            parts.append(y[None])
        else:
            y, state = fast(part, state)
            parts.append(y)
    found = []
    for results in ([whole, *final], [torch.cat(parts), *state]):
        value = sum((r.sin() * (k + 1)).sum() for k, r in enumerate(results))
        grads = torch.autograd.grad(value, [x, *hx, *fast.parameters()])
        found.append([*results, *grads])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)

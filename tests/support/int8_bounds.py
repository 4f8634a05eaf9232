"""How far an LSTM with int8 weights may be from the same with its float weights: a bound for every
number of the output, carried from step to step and layer to layer in float64.

With w' = w + dw the quantised weight, |dw| <= s / 2, and v' = v + dv what it is multiplied by, of
which e is what the steps before left and d <= a / 2 its own rounding (0 with weight_only):

    |w' v' - w v| <= |w| (e + d) + |dw| (|v| + e + d)

Sigmoid and tanh grow with their argument: what an interval becomes is known from its ends. What
float32 rounds is a few units of 2^-24 of the terms' sums, counted as 16.
"""

import torch

_FLOAT = 16 * 2.0**-24
_GATES = torch.sigmoid, torch.sigmoid, torch.tanh, torch.sigmoid


def _product(v, e, weight, weight_only):
    """The bound of v (N, K) times weight (rows, K): (N, rows)."""
    scale = weight.abs().amax(1) / 127
    whole = v.abs() + e
    d = torch.zeros_like(v)
    if not weight_only:
        d += whole.amax(-1, keepdim=True) / 254 * (1 + 2.0**-15)
    rounding = (scale / 2 * (1 + 2.0**-20)) * (whole + d).sum(-1, keepdim=True)
    terms = whole @ weight.abs().t()
    return (e + d) @ weight.abs().t() + rounding + _FLOAT * terms


def _through(function, v, e):
    """A growing function of v, and what an error of up to e in v makes of it."""
    value = function(v)
    return value, torch.maximum(function(v + e) - value, value - function(v - e)) + _FLOAT


def _direction(x, e_x, weights, h, c, weight_only, reverse):
    ih, hh, *biases, hr = weights
    bias = sum(biases) if biases[0] is not None else 0
    e_h, e_c = torch.zeros_like(h), torch.zeros_like(c)
    outputs, bounds = [None] * len(x), [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        z = x[t] @ ih.t() + h @ hh.t() + bias
        e_z = _product(x[t], e_x[t], ih, weight_only) + _product(h, e_h, hh, weight_only)
        parts = zip(z.chunk(4, -1), (e_z + _FLOAT * z.abs()).chunk(4, -1), _GATES, strict=True)
        (i, e_i), (f, e_f), (g, e_g), (o, e_o) = (_through(act, v, e) for v, e, act in parts)
        e_c = f * e_c + e_f * (c.abs() + e_c) + i * e_g + e_i * (g.abs() + e_g) + _FLOAT
        c = f * c + i * g
        tanh_c, e_tanh = _through(torch.tanh, c, e_c)
        h, e_h = o * tanh_c, o * e_tanh + e_o * (tanh_c.abs() + e_tanh) + _FLOAT
        if hr is not None:
            h, e_h = h @ hr.t(), _product(h, e_h, hr, weight_only)
        outputs[t], bounds[t] = h, e_h
    return torch.stack(outputs), torch.stack(bounds)


def bounded(lstm, x, hx=None, weight_only=False):
    """What an nn.LSTM gives for x (T, N, I) in float64, and the bound for its int8 twin: output and
    bound (T, N, D*P)."""
    lstm, y = lstm.double(), x.double()
    D, P = 1 + lstm.bidirectional, lstm.proj_size or lstm.hidden_size
    if hx is None:
        hx = (torch.zeros(lstm.num_layers * D, x.shape[1], n) for n in (P, lstm.hidden_size))
    h0, c0 = (s.double() for s in hx)
    e = torch.zeros_like(y)
    for k in range(lstm.num_layers):
        found = []
        for d in range(D):
            weights = [w.detach() for w in lstm.all_weights[k * D + d]]
            hr = weights.pop() if lstm.proj_size else None
            weights += [] if lstm.bias else [None, None]
            state = h0[k * D + d], c0[k * D + d]
            found.append(_direction(y, e, [*weights, hr], *state, weight_only, d == 1))
        y, e = (torch.cat(parts, -1) for parts in zip(*found, strict=True))
    return y, e

"""Layers with 8-bit weights for the tests of their kernels: weights drawn and packed, and every
step evaluated in float64 from the states that the kernel itself entered it with, so that what is
quantised is the same to the bit."""

from dataclasses import dataclass

import torch

from fastlstm.reference import lstm as reference
from fastlstm.stack.int8 import int8_stack

UNIT = 2.0**-24  # roundoff of float32
ACTIVATION = 6 * UNIT  # of a sigmoid or tanh: 3 ULP, which tests/cpu/test_math.py holds them to


def quantise_weights(weight):
    """A matrix (rows, K) as int8 and the scales of its rows."""
    scale = weight.abs().amax(1) / 127
    q = (weight / scale.clamp_min(1e-30)[:, None]).round().clamp(-127, 127)
    return q.to(torch.int8), scale


def pack(q, gates):
    """(gates * H, K) -> (ceil(H / 16), ceil(K / 4), gates, 16, 4), zero padded."""
    H, K = q.shape[0] // gates, q.shape[1]
    blocks, depth = -(-H // 16), -(-K // 4)
    padded = torch.zeros(gates, blocks * 16, depth * 4, dtype=torch.int8)
    padded[:, :H, :K] = q.view(gates, H, K)
    return padded.view(gates, blocks, 16, depth, 4).permute(1, 3, 0, 2, 4).contiguous()


@dataclass
class Direction:
    """The weights of one direction of a layer, int8 and scales; bias (4H,) or None; hr or None."""

    ih: tuple
    hh: tuple
    bias: torch.Tensor | None
    hr: tuple | None

    @classmethod
    def drawn(cls, I, H, P=None, bias=True):
        def matrix(rows, K):
            # Rows of sizes far apart, one of zeros, and the extreme number.
            weight = torch.randn(rows, K) * torch.rand(rows, 1).mul(4).exp() / (30 * K**0.5)
            weight[torch.randint(rows, ())] = 0
            return quantise_weights(weight)

        return cls(
            matrix(4 * H, I),
            matrix(4 * H, P or H),
            torch.randn(4 * H) if bias else None,
            matrix(P, H) if P else None,
        )

    def packed(self):
        flat = [pack(self.ih[0], 4), self.ih[1], pack(self.hh[0], 4), self.hh[1]]
        flat += [self.bias] if self.bias is not None else []
        return flat + ([pack(self.hr[0], 1), self.hr[1]] if self.hr else [])


def run(x, h0, c0, directions, *, layers=1, batch_first=False, lengths=None, resets=None, **options):
    """The op on a list of the directions of all layers: output, h_n, c_n, cells."""
    weights = [w for d in directions for w in d.packed()]
    flags = options.get("weight_only", False), options.get("cells", True)
    two = len(directions) == 2 * layers
    return int8_stack(x, h0, c0, weights, layers, two, batch_first, lengths, resets, *flags)


def quantise_rows(v):
    """Rows (..., K) of float32 as int64 numbers and scales (..., 1) in float64; NaN where a row is
    not finite."""
    most = v.abs().amax(-1, keepdim=True)
    scale = most / 127
    scale = torch.where(most < 2.0**-100, torch.zeros(()), scale)
    q = (v * (1 / scale)).round()
    q = torch.where((scale > 0) & scale.isfinite(), q, torch.zeros(()))
    scale = torch.where(v.isfinite().all(-1, keepdim=True), scale, torch.tensor(float("nan")))
    return q.to(torch.int64), scale.double()


def product(v, weight, weight_only):
    """v (T, N, K) float32 times int8 weights: the value in float64, and what float32 may be off."""
    q, scale = weight[0].to(torch.int64), weight[1].double()
    if weight_only:
        value, size = ((a @ q.double().t()) * scale for a in (v.double(), v.double().abs()))
        size = (v.double().abs() @ q.double().abs().t()) * scale
        return value, (v.shape[-1] + 4) * UNIT * size
    rows, row_scale = quantise_rows(v)
    value = (row_scale * scale) * (rows @ q.t())
    return value, 5 * UNIT * value.abs()


def check_direction(d, x, h0, c0, output, cells, lengths, resets, reverse, weight_only):
    """Every step of one direction: output (T, N, P) and cells (T, N, H) against float64."""
    h_in = reference.entering_states(output, h0, resets, lengths, reverse)
    c_in = reference.entering_states(cells, c0, resets, lengths, reverse).double()
    from_x, e_x = product(x, d.ih, weight_only)
    from_h, e_h = product(h_in, d.hh, weight_only)
    bias = torch.zeros(1) if d.bias is None else d.bias
    gates = from_x + from_h + bias.double()
    e_gates = e_x + e_h + 2 * UNIT * (from_x.abs() + from_h.abs() + bias.double().abs())
    i, f, g, o = gates.chunk(4, -1)
    ei, ef, eg, eo = e_gates.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    ei, ef, eo = (e / 4 + ACTIVATION * v for e, v in ((ei, i), (ef, f), (eo, o)))
    eg = eg + ACTIVATION * g.abs()
    c = f * c_in + i * g
    e_c = ef * c_in.abs() + ei * g.abs() + eg * i + 3 * UNIT * ((f * c_in).abs() + (i * g).abs())
    held(cells, c, e_c, lengths, "cells")
    tanh_c = cells.double().tanh()
    h = o * tanh_c
    e_h = eo * tanh_c.abs() + (ACTIVATION + 2 * UNIT) * h.abs()
    if d.hr is not None:
        h, e_h = projected(h, e_h, d.hr, weight_only)
    held(output, h, e_h, lengths, "output")


def projected(h, e_h, hr, weight_only):
    """A projection of h, which is known but for e_h: where it is about half way between two
    numbers, either may have been taken."""
    q, scale = hr[0].double(), hr[1].double()
    if weight_only:
        value, size = (h @ q.t()) * scale, (h.abs() @ q.abs().t()) * scale
        return value, (e_h @ q.abs().t()) * scale + (h.shape[-1] + 4) * UNIT * size
    row_scale = h.abs().amax(-1, keepdim=True) / 127
    inverse = torch.where(row_scale > 0, 1 / row_scale, torch.zeros((), dtype=torch.float64))
    exact = h * inverse
    relative = e_h.amax(-1, keepdim=True) * inverse / 127 + 4 * UNIT
    doubt = e_h * inverse + exact.abs() * relative
    either = ((exact - exact.floor() - 0.5).abs() <= doubt).double()
    value = (row_scale * scale) * (exact.round() @ q.t())
    return value, (row_scale * scale) * (either @ q.abs().t()) + (relative + 5 * UNIT) * value.abs()


def held(got, expected, budget, lengths, name):
    exists = reference.valid_steps(got.shape[0], lengths)
    if exists is not None:
        assert not got.masked_fill(exists, 0).any(), f"{name}: not 0 where there is no step"
        got, expected, budget = (v.masked_fill(~exists, 0) for v in (got, expected, budget))
    over = (got.double() - expected).abs() - budget
    assert not over.numel() or over.max() <= 0, f"{name}: {over.max()} over the budget"
    assert torch.equal(got.isnan(), expected.isnan()), f"{name}: NaN in other places"


def check(x, h0, c0, directions, lengths=None, resets=None, weight_only=False):
    """One layer of one or two directions, with what its last states are."""
    T, N = x.shape[:2]
    D, H = len(directions), directions[0].hh[1].shape[0] // 4
    got = run(x, h0, c0, directions, lengths=lengths, resets=resets, weight_only=weight_only)
    output, h_n, c_n, cells = got
    P = h0.shape[2]
    assert output.shape == (T, N, D * P) and cells.shape == (T, N, D * H)
    for d, direction in enumerate(directions):
        y, c = output[..., d * P : (d + 1) * P], cells[..., d * H : (d + 1) * H]
        if T:
            masks = lengths, resets, d == 1
            check_direction(direction, x, h0[d], c0[d], y, c, *masks, weight_only)
        for last, states, first in ((h_n[d], y, h0[d]), (c_n[d], c, c0[d])):
            for n in range(N):
                length = T if lengths is None else min(max(int(lengths[n]), 0), T)
                at = 0 if d == 1 else length - 1
                assert torch.equal(last[n], states[at, n] if length else first[n])
    return got

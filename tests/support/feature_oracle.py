"""What the combinations of feature_grid.py are held to: a Python loop over rows' steps with torch's
LSTM cell, the one under nn.LSTMCell, and the variants' papers around it. `test_variants.py` holds
the masks of zoneout to their generator."""

import torch
import torch.nn.functional as F

from fastlstm import FastLSTM
from fastlstm.reference.zoneout_masks import zoneout_masks


def cell_loop(lstm: FastLSTM, x, hx, lengths, reset_mask, between, places=slice(None)):
    """x (T, N, I), hx of L*D states; lengths and reset_mask or None; between: what comes between
    layers. Random masks are drawn as the module draws them, which has row n at places[n]. Returns
    output, h_n, c_n and the last layer's cells.
    """
    D = 2 if lstm.bidirectional else 1
    steps, rows, finals = *x.shape[:2], []
    weights = _weights(lstm)
    draws = lstm.training and any(lstm.zoneout)
    seed = torch.randint(2**63 - 1, (1,)) if draws else None
    for layer in range(lstm.num_layers):
        if layer:
            x = between(x)
        part = slice(layer * D, (layer + 1) * D)
        h_mask = torch.ones_like(hx[0][part])
        if lstm.training and lstm.recurrent_dropout:
            h_mask = F.dropout(h_mask, lstm.recurrent_dropout)
        outputs = [[None] * steps for _ in range(D)]
        cells = [[None] * steps for _ in range(D)]
        for d in range(D):
            k = layer * D + d
            h, c = hx[0][k], hx[1][k]
            units = h.shape[1], c.shape[1]
            zones = _zones(lstm, seed, steps, rows, units, 2 * layer + d)
            for t in reversed(range(steps)) if d else range(steps):
                exists = torch.ones(rows, 1).bool()
                if lengths is not None:
                    exists = (t < lengths)[:, None]
                boundary = t + d  # the one that this step's state comes over
                h_in, c_in = h, c
                if reset_mask is not None and boundary < steps:
                    cut = reset_mask[boundary][:, None]
                    if lengths is not None:
                        cut = cut & (boundary < lengths)[:, None]
                    h_in, c_in = h.masked_fill(cut, 0), c.masked_fill(cut, 0)
                h_t, c_t = _cell(x[t], h_in, c_in, h_mask[d][places], **weights[k])
                zone_h, zone_c = (zone[t][places] for zone in zones)
                h_t = zone_h * h_in + (1 - zone_h) * h_t
                c_t = zone_c * c_in + (1 - zone_c) * c_t
                outputs[d][t] = h_t.masked_fill(~exists, 0)
                cells[d][t] = c_t.masked_fill(~exists, 0)
                h, c = torch.where(exists, h_t, h), torch.where(exists, c_t, c)
            finals.append((h, c))
        x = torch.cat([torch.stack(o) for o in outputs], -1)
    h_n, c_n = (torch.stack(s) for s in zip(*finals, strict=True))
    return x, h_n, c_n, torch.cat([torch.stack(c) for c in cells], -1)


def _weights(lstm) -> list[dict]:
    """Of each layer and direction by name, without what is not there; W_hh dropped."""
    found = []
    for k in range(lstm.num_layers):
        for suffix in ("", "_reverse")[: 2 if lstm.bidirectional else 1]:
            end = f"_l{k}{suffix}"
            named = dict(lstm.named_parameters())
            found.append({n.removesuffix(end): p for n, p in named.items() if n.endswith(end)})
            if lstm.training and lstm.weight_dropout:
                dropped = F.dropout(found[-1]["weight_hh"], lstm.weight_dropout)
                found[-1]["weight_hh"] = dropped
    return found


def _zones(lstm, seed, steps, rows, units, stream):
    """How much of h and of c each step keeps, each (steps, rows, units)."""
    kept = [torch.full((steps, rows, n), p) for n, p in zip(units, lstm.zoneout, strict=True)]
    if seed is not None:
        masks = zoneout_masks(seed, steps, rows, units, lstm.zoneout, stream, 0)
        kept = [zone if m is None else m for m, zone in zip(masks, kept, strict=True)]
    return [zone.double() for zone in kept]


def _cell(
    x, h, c, h_mask, weight_ih, weight_hh, bias_ih=None, bias_hh=None, weight_hr=None,
    ln_weight_ih=None, ln_weight_hh=None, ln_weight_c=None, ln_bias_c=None,
):  # fmt: skip
    of_x, of_h = F.linear(x, weight_ih), F.linear(h * h_mask, weight_hh)
    if ln_weight_ih is not None:
        of_x = F.layer_norm(of_x, of_x.shape[1:], ln_weight_ih)
        of_h = F.layer_norm(of_h, of_h.shape[1:], ln_weight_hh)
    gates = of_x + of_h
    for bias in (bias_ih, bias_hh):
        gates = gates if bias is None else gates + bias
    # The cell alone: the gates are its input, and it has no h of its own.
    eye, none = torch.eye(gates.shape[1], dtype=x.dtype), x.new_zeros(gates.shape[1], c.shape[1])
    h, c = torch.lstm_cell(gates, (torch.zeros_like(c), c), eye, none)
    if ln_weight_c is not None:
        shown = F.layer_norm(c, c.shape[1:], ln_weight_c, ln_bias_c)
        h = gates.chunk(4, dim=1)[3].sigmoid() * shown.tanh()
    return h if weight_hr is None else h @ weight_hr.t(), c

"""Features of FastLSTM in combination, against a loop over LSTM cells: every pair of them occurs.

A combination is a set of names of `support.FEATURES`. `COMBINATIONS` has for any two that can go
together one in which both are on, and for any feature one without each other feature. What a
combination is held to is `feature_oracle.cell_loop`, in float64, for results and gradients; with
autocast, the same call of a module that is itself of autocast's dtype, bit for bit.
"""

import copy
import itertools
import random

import torch
import torch.nn.functional as F
from feature_oracle import cell_loop
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm import FastLSTM

T, N, I, H, P = 5, 4, 3, 5, 2
TOGETHER = (
    "layers", "bidirectional", "projection", "no bias", "batch_first", "unbatched", "packed",
    "nested", "hx", "dropout", "lengths", "reset_mask", "cells", "checkpoint", "frozen", "eval",
    "double", "autocast", "layer_norm", "recurrent_dropout", "weight_dropout", "zoneout",
    "variational", "batch_first_states", "layer_outputs",
)  # fmt: skip
APART = [
    {"unbatched", "packed"},
    {"unbatched", "nested"},
    {"packed", "nested"},
    {"packed", "lengths"},
    {"nested", "lengths"},
    {"dropout", "eval"},
    {"variational", "eval"},
    {"dropout", "variational"},
    {"recurrent_dropout", "eval"},
    {"weight_dropout", "eval"},
    {"double", "autocast"},  # 16 bits twice differentiated say nothing
]


def can_go_together(features) -> bool:
    return not any(pair <= set(features) for pair in APART)


def _combinations() -> list[tuple[str, ...]]:
    """A greedy cover of all pairs (feature on, other feature on or off)."""
    rng = random.Random(1)
    on = [{a, b} for a, b in itertools.combinations(TOGETHER, 2)]
    left_on = [pair for pair in on if can_go_together(pair)]
    left_off = list(itertools.permutations(TOGETHER, 2))
    found = []
    while left_on or left_off:
        tries = []
        for _ in range(60):
            chosen = set(rng.choice(left_on)) if left_on else {left_off[0][0]}
            for feature in rng.sample(TOGETHER, len(TOGETHER)):
                if can_go_together({*chosen, feature}) and rng.random() < 0.7:
                    chosen.add(feature)
            if not left_on:
                chosen.discard(left_off[0][1])
            gain = sum(pair <= chosen for pair in left_on)
            gain += sum(a in chosen and b not in chosen for a, b in left_off)
            tries.append((gain, sorted(chosen)))
        chosen = set(max(tries)[1])
        left_on = [pair for pair in left_on if not pair <= chosen]
        left_off = [(a, b) for a, b in left_off if a not in chosen or b in chosen]
        found.append(tuple(f for f in TOGETHER if f in chosen))
    return found


COMBINATIONS = _combinations()


class Problem:
    """The module, inputs and options of a combination."""

    def __init__(self, features, backend: str, rows: int = N) -> None:
        self.on, self.backend = set(features), backend
        assert can_go_together(self.on)
        has = self.on.__contains__
        self.rows = 1 if has("unbatched") else rows
        dtype = torch.float32 if has("autocast") else torch.float64
        self.fast = FastLSTM(
            I,
            H,
            2 if {"layers", "dropout", "variational", "layer_outputs"} & self.on else 1,
            bias=not has("no bias"),
            batch_first=has("batch_first"),
            dropout=0.5 * (has("dropout") or has("variational")),
            bidirectional=has("bidirectional"),
            proj_size=P * has("projection"),
            dtype=dtype,
            backend=backend,
            checkpoint_every=2 if has("checkpoint") else None,
            layer_norm=has("layer_norm"),
            recurrent_dropout=0.4 * has("recurrent_dropout"),
            weight_dropout=0.3 * has("weight_dropout"),
            zoneout=(0.25, 0.5) if has("zoneout") else 0.0,
            variational_dropout=has("variational"),
            batch_first_states=has("batch_first_states"),
            return_layer_outputs=has("layer_outputs"),
        )
        for name, parameter in self.fast.named_parameters():
            if name.startswith("ln_"):
                nn.init.normal_(parameter, 1.0, 0.3)
        self.x = torch.randn(T, self.rows, I, dtype=dtype)
        L = self.fast.num_layers * (2 if has("bidirectional") else 1)
        P_ = P if has("projection") else H
        self.states = [torch.zeros(L, self.rows, k, dtype=dtype) for k in (P_, H)]
        if has("hx"):
            self.states = [torch.randn_like(s) for s in self.states]
        self.lengths = self.mask = None
        if has("lengths"):
            self.lengths = torch.tensor([3, 5, 0, 1][: self.rows])
        if has("packed"):
            self.lengths = torch.tensor([3, 5, 2, 1][: self.rows])
        if has("nested"):
            self.lengths = torch.tensor([0, 5, 3, 1][: self.rows])
        if has("reset_mask"):
            self.mask = torch.rand(T, self.rows) < 0.4
            self.mask[0, 0] = self.mask[2, 0] = self.mask[T - 1, -1] = True
        if has("eval"):
            self.fast.eval()
        if has("frozen"):
            for name, parameter in self.fast.named_parameters():
                trained = "weight_hh_l0", "weight_ih_l1", "ln_weight_hh_l0", "ln_weight_ih_l1"
                parameter.requires_grad_(name in trained)

    def leaves(self, module):
        return [p for p in module.parameters() if p.requires_grad]

    def layout(self, sequence):
        """A time-major sequence as the module takes it, or the other way round."""
        if "unbatched" in self.on:
            return sequence.squeeze(1) if sequence.dim() == 3 else sequence.unsqueeze(1)
        return sequence.transpose(0, 1) if "batch_first" in self.on else sequence

    def call(self, module, x, states):
        """output, h_n, c_n, cells or None and the outputs of lower layers, time-major, padded."""
        options = {"return_cell_sequence": True} if "cells" in self.on else {}
        if self.mask is not None:
            mask = self.mask
            if "unbatched" in self.on:
                mask = mask[:, 0]
            elif "batch_first" in self.on:
                mask = mask.t()
            options["reset_mask"] = mask
        hx = None
        if "hx" in self.on:
            hx = tuple(s.squeeze(1) if "unbatched" in self.on else self.swapped(s) for s in states)
        if "packed" in self.on:
            given = pack_padded_sequence(x, self.lengths, enforce_sorted=False)
        elif "nested" in self.on:
            offsets = torch.cat([torch.zeros(1).long(), self.lengths.cumsum(0)])
            given = torch.nested.nested_tensor_from_jagged(self.rows_of(x), offsets)
            if self.mask is not None:
                options["reset_mask"] = self.mask.t()
        else:
            given = self.layout(x)
            if self.lengths is not None:
                options["lengths"] = self.lengths
        y, (h_n, c_n), *more = module(given, hx, **options)
        if "unbatched" in self.on:
            h_n, c_n = h_n.unsqueeze(1), c_n.unsqueeze(1)
        else:
            h_n, c_n = self.swapped(h_n), self.swapped(c_n)
        cells = self.padded(more.pop(0)) if "cells" in self.on else None
        lower = ()
        if "layer_outputs" in self.on:
            *lower, last = more.pop()
            assert last is y
        assert not more
        return self.padded(y), h_n, c_n, cells, *map(self.padded, lower)

    def swapped(self, states):
        """States of (L*D, N, ...) as the module has them, or the other way round."""
        return states.transpose(0, 1) if "batch_first_states" in self.on else states

    def padded(self, sequence):
        if isinstance(sequence, PackedSequence):
            return pad_packed_sequence(sequence, total_length=T)[0]
        if sequence.is_nested:
            return self.from_rows(sequence.values())
        return self.layout(sequence)

    def rows_of(self, padded):
        """The steps that exist, row by row: the values of a NestedTensor."""
        return torch.cat([padded[:n, k] for k, n in enumerate(self.lengths.tolist())])

    def from_rows(self, values):
        rows = values.split(self.lengths.tolist())
        return torch.stack([F.pad(r, (0, 0, 0, T - len(r))) for r in rows], 1)

    def places(self):
        """Where the module has each row."""
        if "packed" not in self.on:
            return slice(None)
        return pack_padded_sequence(self.x, self.lengths, enforce_sorted=False).unsorted_indices

    def between(self, y):
        """Dropout as nn.LSTM draws it, or of one mask for all steps."""
        if "variational" in self.on:
            return y * F.dropout(torch.ones_like(y[0]), 0.5)
        if "dropout" not in self.on:
            return y
        if "nested" in self.on:
            return self.from_rows(F.dropout(self.rows_of(y), 0.5))
        if "packed" not in self.on:
            return F.dropout(y, 0.5)
        packed = pack_padded_sequence(y, self.lengths, enforce_sorted=False)
        packed = packed._replace(data=F.dropout(packed.data, 0.5))
        return pad_packed_sequence(packed, total_length=T)[0]

    def derived(self, function, module, x, states, seed=3):
        """Results, and the gradients of their weighted sum, of second order where asked for."""
        # torch's own NestedTensor of rows that need a gradient has no second derivative.
        x_needed = "frozen" not in self.on and not {"nested", "double"} <= self.on
        x = x.detach().clone().requires_grad_(x_needed)
        states = [s.detach().clone().requires_grad_("hx" in self.on) for s in states]
        leaves = [leaf for leaf in (x, *states, *self.leaves(module)) if leaf.requires_grad]
        torch.manual_seed(seed)
        results = [r for r in function(x, states) if r is not None]
        generator = torch.Generator().manual_seed(seed)
        loss = sum((r * torch.randn(r.shape, generator=generator).to(r.dtype)).sum() for r in results)
        double = "double" in self.on
        gradients = torch.autograd.grad(loss, leaves, create_graph=double)
        found = [*results, *gradients]
        if double:
            found += torch.autograd.grad(sum(g.sin().sum() for g in gradients), leaves)
        return [f.detach() for f in found]

    def check(self) -> None:
        if "autocast" in self.on:
            return self.check_autocast()
        got = self.derived(lambda x, s: self.call(self.fast, x, s), self.fast, self.x, self.states)

        def expected(x, states):
            lower = []

            def between(y):
                lower.append(y)
                return self.between(y)

            given = self.lengths, self.mask, between, self.places()
            *results, cells = cell_loop(self.fast, x, states, *given)
            lower = lower if "layer_outputs" in self.on else []
            return *results, cells if "cells" in self.on else None, *lower

        wanted = self.derived(expected, self.fast, self.x, self.states)
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)

    def check_autocast(self) -> None:
        low = torch.bfloat16
        inside = copy.deepcopy(self.fast).to(low)

        def cast(x, states):
            with torch.autocast("cpu", low):
                return self.call(self.fast, x, states)

        got = self.derived(cast, self.fast, self.x, self.states)
        given = self.x.to(low), [s.to(low) for s in self.states]
        wanted = self.derived(lambda x, s: self.call(inside, x, s), inside, *given)
        assert all(r.dtype == low for r in got[:3])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a.to(low), b, rtol=0, atol=0)

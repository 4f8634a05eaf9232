"""A whole stack with int8 weights (fastlstm/int8.py) as one op, for inference: its schema, and the
definition of what it computes, in plain torch.

    int8_stack(x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask,
               weight_only, return_cells) -> (output, h_n, c_n, cells)

x (T, N, I), (N, T, I) with batch_first, or (T, I), float32; h0 (L*D, N, P) and c0 (L*D, N, H),
without the N where x has none, or None for zeros. weights: of each layer and direction packed_ih,
scale_ih (4H,), packed_hh, scale_hh (4H,), with biases their sum (4H,), with a projection packed_hr,
scale_hr (P,). lengths (N,) int64, reset_mask (T, N) bool, time-major whatever batch_first says, as
in `fastlstm.reference.lstm`. cells: the last layer's (T, N, D*H), time-major, or (0,). output lies
time-major in memory. Of T = 1 it is a step.

What enters a product (x_t; h_{t-1}; with a projection o * tanh(c_t)) is quantised row by row as it
comes: a = max|row| / 127, q = round(v * (1 / a)) in -127..127, ties to even, all in float32. A row
with nothing from 2^-100 on counts as zeros. With NaN or infinity in a row a is NaN, and so
are the row's gates, but nobody else's. Sums of products are integers, and exact:

    gates = (a_x * s_ih) * sum_x + (a_h * s_hh) * sum_h + bias
    h_t   = o * tanh(c_t)           or (a_u * s_hr) * sum_u

With weight_only nothing but the weights is quantised: gates = s_ih * sum(q_ih x) + s_hh *
sum(q_hh h) + bias. Everything else is float32.

On the CPU the compiled library has the kernels; the definition stands in where it has none, and is
`int8_stack_reference` for who names that backend.

`int8_call` is what a module's call takes, on the CPU alone: output, h_n, c_n and with return_cells
the cells in a list, which is empty where the arguments do not fit each other. x of a step is (N, I)
or (I,), and the output (N, P) or (P,); a cell is a step whose states are (N, H) or (H,), and which
gives h_n, c_n. lengths are int64, within 0..T, without rows also (); reset_mask and cells are laid
out as x. inputs: I, of which packed weights do not say whether it is up to 3 less.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..int8 import LEVELS, dequantise, flat, unpack
from ..ops.define import define_op
from ..ops.library import register_autograd_later
from ..reference.lstm import entered, entering_zeros, left, unrolled, valid_steps
from ..weights import LSTMWeights, Variant

REFUSED = (
    "weight_dtype=torch.int8 is for inference: there is no gradient, and {} requires one. Call it "
    "under torch.no_grad(), or widen the weights to train: weight_dtype = None"
)
_LEAST = 2.0**-100


class Int8Stack(NamedTuple):
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: list[Tensor]
    layers: int
    bidirectional: bool
    batch_first: bool
    lengths: Tensor | None
    reset_mask: Tensor | None
    weight_only: bool
    return_cells: bool


class Int8Results(NamedTuple):
    output: Tensor
    h_n: Tensor
    c_n: Tensor
    cells: Tensor


def quantise_activations(v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows v (..., K) in float32 as integers in float64, and their scales (..., 1) in float32."""
    peak = v.abs().amax(-1, keepdim=True) if v.shape[-1] else v.new_zeros((*v.shape[:-1], 1))
    finite = peak.isfinite()
    counts = peak >= _LEAST
    scale = torch.where(finite, torch.where(counts, peak / LEVELS, 0.0), torch.nan)
    inverse = torch.where(counts & finite, 1 / scale, 0.0)
    q = (v * inverse).round().clamp(-LEVELS, LEVELS)
    return torch.where(finite, q, 0.0).double(), scale


def _product(v: Tensor, q: Tensor, scale: Tensor, weight_only: bool) -> Tensor:
    """v (..., K) times the matrix q * scale: q (K, rows) in float64, scale (rows,)."""
    if weight_only:
        return scale * (v.double() @ q).float()
    integers, a = quantise_activations(v)
    return (a * scale) * (integers @ q).float()


def by_direction(weights, layers: int, bidirectional: bool) -> list[list[tuple]]:
    """weights, layer by layer and direction by direction: packed_ih, scale_ih, packed_hh,
    scale_hh, bias or None, packed_hr or None, scale_hr or None."""
    D = 2 if bidirectional else 1
    each = len(weights) // (layers * D)
    if each not in (4, 5, 6, 7) or each * layers * D != len(weights):
        raise RuntimeError(f"int8_stack: got {len(weights)} weights for {layers} layers of {D}")
    found = []
    for k in range(0, len(weights), each):
        w = weights[k : k + each]
        bias = w[4] if each % 2 else None
        found.append((*w[:4], bias, *(w[-2:] if each >= 6 else (None, None))))
    return [found[k : k + D] for k in range(0, len(found), D)]


def _one_direction(x, h, c, w, lengths, reset_mask, reverse: bool, weight_only: bool, loop):
    """Outputs (T, N, P), h, c and cells (T, N, H) of x (T, N, K)."""
    packed_ih, scale_ih, packed_hh, scale_hh, bias, packed_hr, scale_hr = w
    H, P, T = c.shape[1], h.shape[1], x.shape[0]
    if T == 0:
        return x.new_empty((0, *h.shape)), h.clone(), c.clone(), x.new_empty((0, *c.shape))
    q_ih = unpack(packed_ih, H, x.shape[2]).t().double()
    q_hh = unpack(packed_hh, H, P).t().double()
    q_hr = None if packed_hr is None else unpack(packed_hr, P, H).t().double()
    gates_x = _product(x, q_ih, scale_ih, weight_only)

    def step(carry, at, constants):
        (h, c), (gates_x, valid, cut) = carry, at
        q_hh, scale_hh, bias, q_hr, scale_hr = constants
        h_in, c_in = entered(h, cut), entered(c, cut)
        gates = gates_x + _product(h_in, q_hh, scale_hh, weight_only)
        i, f, g, o = (gates if bias is None else gates + bias).chunk(4, dim=-1)
        c_out = f.sigmoid() * c_in + i.sigmoid() * g.tanh()
        h_out = o.sigmoid() * c_out.tanh()
        if q_hr is not None:
            h_out = _product(h_out, q_hr, scale_hr, weight_only)
        return left((h, c), (h_out, c_out), (h_out, c_out), valid)

    zeros = entering_zeros(T, reset_mask, lengths, reverse)
    sequences = gates_x, valid_steps(T, lengths), zeros
    constants = q_hh, scale_hh, bias, q_hr, scale_hr
    (h, c), (ys, cells) = loop(step, (h, c), sequences, constants, reverse)
    return ys, h, c, cells


def definition(call: Int8Stack, loop=unrolled) -> Int8Results:
    """The op in plain torch. loop: runs the steps of a direction, as `reference.lstm.unrolled`."""
    x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, *flags = call
    weight_only, return_cells = flags
    of_layers = by_direction(weights, layers, bidirectional)
    D, batched = len(of_layers[0]), x.dim() == 3
    y = (x.transpose(0, 1) if batch_first else x) if batched else x.unsqueeze(1)
    T, N, _ = y.shape
    _, _, _, scale_hh, _, _, scale_hr = of_layers[0][0]
    H = scale_hh.shape[0] // 4
    P = H if scale_hr is None else scale_hr.shape[0]
    h0, c0 = (
        x.new_zeros((layers * D, N, width)) if s is None else s.reshape(layers * D, N, width)
        for s, width in ((h0, P), (c0, H))
    )
    if lengths is not None:
        lengths = lengths.clamp(0, T)
    h_n, c_n = [], []
    for k, layer in enumerate(of_layers):
        outputs, cells = [], []
        for d, w in enumerate(layer):
            states = h0[k * D + d], c0[k * D + d]
            of_direction = _one_direction(y, *states, w, lengths, reset_mask, d == 1, weight_only, loop)
            for kept, value in zip((outputs, h_n, c_n, cells), of_direction, strict=True):
                kept.append(value)
        y = torch.cat(outputs, dim=-1)
    h_n, c_n = torch.stack(h_n), torch.stack(c_n)
    cells = torch.cat(cells, dim=-1) if return_cells else x.new_empty((0,))
    if not batched:
        return Int8Results(y.squeeze(1), h_n.squeeze(1), c_n.squeeze(1), cells)
    return Int8Results(y.transpose(0, 1) if batch_first else y, h_n, c_n, cells)


def _fake(call: Int8Stack) -> Int8Results:
    x, layers = call.x, call.layers
    _, _, _, scale_hh, _, _, scale_hr = by_direction(call.weights, layers, call.bidirectional)[0][0]
    D, H = 2 if call.bidirectional else 1, scale_hh.shape[0] // 4
    P = H if scale_hr is None else scale_hr.shape[0]
    T, *rows = x.shape[:-1]
    if call.batch_first and rows:
        T, rows = rows[0], [T]
    output = x.new_empty((T, *rows, D * P))
    output = output.transpose(0, 1) if call.batch_first and rows else output
    states = (x.new_empty((layers * D, *rows, width)) for width in (P, H))
    N = rows[0] if rows else 1
    return Int8Results(output, *states, x.new_empty((T, N, D * H) if call.return_cells else (0,)))


def _refuse_gradient(*args, **kwargs):
    raise RuntimeError(REFUSED.format("an argument of the op"))


def _of_rows(_op, info, in_dims: Int8Stack, call: Int8Stack):
    """vmap over inputs, states and masks: its members become rows of one call."""
    if any(d is not None for d in in_dims.weights):
        raise RuntimeError(
            "vmap: int8 weights are the same for all members of a call; give those of each member to a call of its own"
        )
    B, batched = info.batch_size, call.x.dim() - (in_dims.x is not None) == 3

    def folded(name: str, rows: int, width: int):
        """(..., N, ...) of each member -> (..., B*N, ...), N at `rows`; `width`: the dims that
        each has."""
        t, dim = getattr(call, name), getattr(in_dims, name)
        if t is None:
            return None
        t = t.unsqueeze(0).expand(B, *t.shape) if dim is None else t.movedim(dim, 0)
        if t.dim() == width:  # unbatched
            return t.movedim(0, rows)
        t = t.movedim(0, rows)
        return t.flatten(rows, rows + 1)

    first = call.batch_first and batched
    of_rows = call._replace(
        x=folded("x", 0 if first else 1, 3), h0=folded("h0", 1, 3), c0=folded("c0", 1, 3),
        batch_first=first, lengths=folded("lengths", 0, 1), reset_mask=folded("reset_mask", 1, 2),
    )  # fmt: skip
    output, h_n, c_n, cells = int8_stack(*of_rows)

    def unfolded(t, rows: int):
        return t.unflatten(rows, (B, -1)) if batched else t

    output = unfolded(output, 0 if first else 1)
    states = (unfolded(s, 1) for s in (h_n, c_n))
    no_cells = cells.dim() == 1
    cells = cells if no_cells else cells.unflatten(1, (B, -1))
    dims = (0 if first else 1, 1, 1, None if no_cells else 1)
    return (output, *states, cells), dims


def refuse_gradients(**given) -> None:
    """A RuntimeError where one of these tensors requires a gradient that would be wanted."""
    if torch.is_grad_enabled():
        for name, tensor in given.items():
            if tensor is not None and tensor.requires_grad:
                raise RuntimeError(REFUSED.format(name))


def norms_by_name(variant: Variant | None) -> dict[str, Tensor]:
    """The tensors of a variant's layer normalisation, for `refuse_gradients`."""
    if variant is None or variant.norms is None:
        return {}
    every = [norm for layer in variant.norms for norm in layer]
    return {f"layer_norm[{k}].{name}": value for k, norm in enumerate(every) for name, value in norm._asdict().items()}


def widened(layers) -> list[list[LSTMWeights]]:
    return [[dequantise(w) for w in layer] for layer in layers]


def run_layers(
    x, h0, c0, layers, *, lengths, reset_mask, return_cells, between_layers, reference: bool,
    weight_only: bool,
):  # fmt: skip
    """`stack.run.run_layers` by the op: one call, or where something stands between the layers one
    for each.

    Args:
        layers: L sequences of D `Int8Weights`. reference: by the definition, whatever kernels
        there are.
    """
    refuse_gradients(input=x, h0=h0, c0=c0)
    op = int8_stack_reference if reference else int8_stack
    D = len(layers[0])
    groups = [layers] if between_layers is None else [[layer] for layer in layers]
    h_n, c_n, first = [], [], 0
    for group in groups:
        if first:
            x = between_layers(x)
        rows = slice(first, first + D * len(group))
        last = rows.stop == D * len(layers)
        x, h, c, cells = op(
            x, h0[rows], c0[rows], flat(group), len(group), D == 2, False, lengths, reset_mask,
            weight_only, return_cells and last,
        )  # fmt: skip
        h_n.append(h)
        c_n.append(c)
        first = rows.stop
    if len(groups) > 1:
        h, c = torch.cat(h_n), torch.cat(c_n)
    return x, h, c, cells if return_cells else None


def _define(name: str):
    defined = define_op(name, Int8Stack, Int8Results, run=definition, fake=_fake, vmap=_of_rows)
    register_autograd_later(name, _refuse_gradient, _refuse_gradient)
    return defined.overload


int8_stack, int8_stack_reference = map(_define, ("int8_stack", "int8_stack_reference"))


class Int8Call(NamedTuple):
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: list[Tensor]
    inputs: int
    layers: int = 1
    bidirectional: bool = False
    batch_first: bool = False
    weight_only: bool = False
    step: bool = False
    cell: bool = False
    lengths: Tensor | None = None
    reset_mask: Tensor | None = None
    return_cells: bool = False


def _call_fake(call: Int8Call) -> list[Tensor]:
    x = call.x
    if x.dim() == 0 or x.shape[-1] != call.inputs:
        return []
    if call.step or call.cell:
        x = x.unsqueeze(0)
    output, h_n, c_n, _ = _fake(
        Int8Stack(
            x, call.h0, call.c0, call.weights, call.layers, call.bidirectional, call.batch_first,
            call.lengths, call.reset_mask, call.weight_only, return_cells=False,
        )
    )  # fmt: skip
    if call.cell:
        return [h_n.squeeze(0), c_n.squeeze(0)]
    results = [output.squeeze(0) if call.step else output, h_n, c_n]
    if call.return_cells:
        width = (2 if call.bidirectional else 1) * c_n.shape[-1]
        turned = call.batch_first and x.dim() == 3
        lead = output.transpose(0, 1).shape[:-1] if turned else output.shape[:-1]
        cells = x.new_empty((*lead, width))
        results.append(cells.transpose(0, 1) if turned else cells)
    return results


int8_call = define_op("int8_call", Int8Call, list[Tensor], fake=_call_fake, or_nothing=True).call

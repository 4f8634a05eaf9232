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
from ..ops.library import check_one_device, library, register_autograd_later
from ..reference.lstm import entered, entering_zeros, left, unrolled, valid_steps
from ..weights import LSTMWeights, Variant

REFUSED = (
    "weight_dtype=torch.int8 is for inference: there is no gradient, and {} requires one. Call it "
    "under torch.no_grad(), or widen the weights to train: weight_dtype = None"
)
_LEAST = 2.0**-100
_SCHEMA = (
    "(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, int layers, bool bidirectional, "
    "bool batch_first, Tensor? lengths, Tensor? reset_mask, bool weight_only, bool return_cells) "
    "-> (Tensor output, Tensor h_n, Tensor c_n, Tensor cells)"
)


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


def _directions(weights, layers: int, bidirectional: bool) -> list[list[tuple]]:
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


def _one_direction(x, h, c, w, lengths, reset_mask, reverse: bool, weight_only: bool):
    """Outputs (T, N, P), h, c and cells (T, N, H) of x (T, N, K)."""
    packed_ih, scale_ih, packed_hh, scale_hh, bias, packed_hr, scale_hr = w
    H, P, T = c.shape[1], h.shape[1], x.shape[0]
    if T == 0:
        return x.new_empty((0, *h.shape)), h.clone(), c.clone(), x.new_empty((0, *c.shape))
    q_ih = unpack(packed_ih, H, x.shape[2]).t().double()
    q_hh = unpack(packed_hh, H, P).t().double()
    q_hr = None if packed_hr is None else unpack(packed_hr, P, H).t().double()
    gates_x = _product(x, q_ih, scale_ih, weight_only)

    def step(carry, at, _):
        (h, c), (gates_x, valid, cut) = carry, at
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
    (h, c), (ys, cells) = unrolled(step, (h, c), sequences, (), reverse)
    return ys, h, c, cells


def definition(
    x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, weight_only,
    return_cells,
):  # fmt: skip
    """The op in plain torch; arguments and results at the top of this file."""
    of_layers = _directions(weights, layers, bidirectional)
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
            of_direction = _one_direction(y, *states, w, lengths, reset_mask, d == 1, weight_only)
            for kept, value in zip((outputs, h_n, c_n, cells), of_direction, strict=True):
                kept.append(value)
        y = torch.cat(outputs, dim=-1)
    h_n, c_n = torch.stack(h_n), torch.stack(c_n)
    cells = torch.cat(cells, dim=-1) if return_cells else x.new_empty((0,))
    if not batched:
        return y.squeeze(1), h_n.squeeze(1), c_n.squeeze(1), cells
    return y.transpose(0, 1) if batch_first else y, h_n, c_n, cells


def _fake(
    x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, weight_only,
    return_cells,
):  # fmt: skip
    check_one_device(x, h0, c0, *weights, lengths, reset_mask)
    _, _, _, scale_hh, _, _, scale_hr = _directions(weights, layers, bidirectional)[0][0]
    D, H = 2 if bidirectional else 1, scale_hh.shape[0] // 4
    P = H if scale_hr is None else scale_hr.shape[0]
    T, *rows = x.shape[:-1]
    if batch_first and rows:
        T, rows = rows[0], [T]
    output = x.new_empty((T, *rows, D * P))
    output = output.transpose(0, 1) if batch_first and rows else output
    states = (x.new_empty((layers * D, *rows, width)) for width in (P, H))
    N = rows[0] if rows else 1
    return output, *states, x.new_empty((T, N, D * H) if return_cells else (0,))


def _refuse_gradient(*args, **kwargs):
    raise RuntimeError(REFUSED.format("an argument of the op"))


def _of_rows(info, in_dims, *args):
    """vmap over inputs, states and masks: its members become rows of one call."""
    x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, *rest = args
    if any(d is not None for d in in_dims[3]):
        raise RuntimeError(
            "vmap: int8 weights are the same for all members of a call; give those of each member to a call of its own"
        )
    B, batched = info.batch_size, x.dim() - (in_dims[0] is not None) == 3

    def folded(t, dim, rows: int, width: int):
        """(..., N, ...) of each member -> (..., B*N, ...), N at `rows`; `width`: the dims that
        each has."""
        if t is None:
            return None
        t = t.unsqueeze(0).expand(B, *t.shape) if dim is None else t.movedim(dim, 0)
        if t.dim() == width:  # unbatched
            return t.movedim(0, rows)
        t = t.movedim(0, rows)
        return t.flatten(rows, rows + 1)

    first = batch_first and batched
    x = folded(x, in_dims[0], 0 if first else 1, 3)
    h0, c0 = (folded(s, d, 1, 3) for s, d in ((h0, in_dims[1]), (c0, in_dims[2])))
    lengths = folded(lengths, in_dims[7], 0, 1)
    reset_mask = folded(reset_mask, in_dims[8], 1, 2)
    output, h_n, c_n, cells = int8_stack(x, h0, c0, weights, layers, bidirectional, first, lengths, reset_mask, *rest)

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


for _name in ("int8_stack", "int8_stack_reference"):
    library.define(_name + _SCHEMA)
    library.impl(_name, definition, "CompositeExplicitAutograd")
    _op = f"fastlstm::{_name}"
    torch.library.register_fake(_op, _fake, lib=library)
    register_autograd_later(_name, _refuse_gradient, _refuse_gradient)
    torch.library.register_vmap(_op, _of_rows, lib=library)

int8_stack = torch.ops.fastlstm.int8_stack.default
int8_stack_reference = torch.ops.fastlstm.int8_stack_reference.default


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
    x, step, cell = call.x, call.step, call.cell
    if x.dim() == 0 or x.shape[-1] != call.inputs:
        return []
    if step or cell:
        x = x.unsqueeze(0)
    made = _fake(
        x, call.h0, call.c0, call.weights, call.layers, call.bidirectional, call.batch_first,
        call.lengths, call.reset_mask, call.weight_only, False,
    )  # fmt: skip
    output, h_n, c_n, _ = made
    if cell:
        return [h_n.squeeze(0), c_n.squeeze(0)]
    results = [output.squeeze(0) if step else output, h_n, c_n]
    if call.return_cells:
        width = (2 if call.bidirectional else 1) * c_n.shape[-1]
        turned = call.batch_first and x.dim() == 3
        lead = output.transpose(0, 1).shape[:-1] if turned else output.shape[:-1]
        cells = x.new_empty((*lead, width))
        results.append(cells.transpose(0, 1) if turned else cells)
    return results


int8_call = define_op("int8_call", Int8Call, list[Tensor], fake=_call_fake, or_nothing=True).call

"""ONNX: each layer of a FastLSTM as one node of ONNX's LSTM operator.

torch.onnx.export(dynamo=True) translates custom ops by a table; `translation_table` is that table
for the ops of ops/layer.py. Without it the ops are decomposed to torch's own lstm, by
`tell_exporter`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..ops.layer import LayerForward
from ..ops.recurrence import PREFIXES
from ..weights import weights_of
from . import onnx_int8
from .late import when_imported

# ONNX has the gates in the order i, o, f, c (its c is our g); ours are i, f, g, o.
_ONNX_ORDER = (0, 3, 1, 2)


class NotInOnnx(ValueError):
    """A call that cannot be expressed by ONNX's LSTM operator; the text names the argument."""


def translation_table() -> dict[Any, Callable[..., Any]]:
    """The `custom_translation_table` of torch.onnx.export for models with a FastLSTM, a
    FastLSTMCell or `functional.lstm`.

    Each layer becomes one LSTM node (https://onnx.ai/onnx/operators/onnx__LSTM.html) for all of its
    directions and steps, also with a projection, with lengths as sequence_lens. float32 and float64
    keep their dtype; bfloat16 and float16 are computed in float32 between casts, as by fastlstm's
    own kernels. A layer with int8 weights becomes ONNX Runtime's DynamicQuantizeLSTM, or with a
    projection or weight_only an LSTM node whose weights are stored in int8.

    Needs the package onnxscript, as torch.onnx.export itself does: pip install fastlstm[onnx].

    Returns:
        A new dictionary, to which other translations may be added.

    Raises (while exporting, as the cause of torch's error):
        NotInOnnx: reset_mask, return_cell_sequence, layer_norm, zoneout, or recurrent_dropout in
            training, which ONNX's operator does not support.

    Example::

        >>> torch.onnx.export(model.eval(), (x, lengths), "model.onnx", dynamo=True,
        ...                   custom_translation_table=fastlstm.onnx.translation_table())
    """
    try:
        import onnxscript
    except ImportError as error:
        raise ImportError("fastlstm.onnx needs onnx and onnxscript: pip install onnx onnxscript") from error

    # The arguments of `<prefix>_layer_forward`. By their annotations the exporter sees that the
    # last three are attributes, not tensors.
    def lstm_layer(
        x, h0, c0, weight_ih, weight_hh, bias_ih=None, bias_hh=None, weight_hr=None,
        weight_ih_reverse=None, weight_hh_reverse=None, bias_ih_reverse=None,
        bias_hh_reverse=None, weight_hr_reverse=None, lengths=None, reset_mask=None,
        wide_products: bool = False, save_tape: bool = False, save_cells: bool = False,
    ):  # fmt: skip
        _refuse(reset_mask, save_cells)
        directions = [(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)]
        if weight_ih_reverse is not None:
            directions.append(
                (weight_ih_reverse, weight_hh_reverse, bias_ih_reverse, bias_hh_reverse, weight_hr_reverse)
            )
        nodes = _Nodes(onnxscript.opset18, x.dtype)
        results = _layer(nodes, x, h0, c0, directions, lengths)
        # Cells and gates are not used in inference.
        return (*results, nodes.floats(0.0), nodes.floats(0.0))

    def variant(
        gates_x, h0, c0, weight_hh, weight_hr=None, h_mask=None, norm_hh=None, norm_c=None,
        bias_c=None, lengths=None, reset_mask=None, seed=None, zoneout_h: float = 0.0,
        zoneout_c: float = 0.0, stream: int = 0, first_step: int = 0, save_tape: bool = False,
        save_cells: bool = False,
    ):  # fmt: skip
        name = "zoneout" if zoneout_h or zoneout_c else "recurrent_dropout"
        name = name if norm_hh is None else "layer_norm"
        raise NotInOnnx(f"{name}: ONNX's LSTM operator is the plain LSTM")

    # The arguments of `int8_stack`.
    def int8_stack(
        x, h0, c0, weights, layers: int = 1, bidirectional: bool = False,
        batch_first: bool = False, lengths=None, reset_mask=None, weight_only: bool = False,
        return_cells: bool = False,
    ):  # fmt: skip
        _refuse(reset_mask, return_cells)
        nodes = _Nodes(onnxscript.opset18, x.dtype)
        given = weights, layers, bidirectional, lengths, weight_only
        return (*onnx_int8.stack(nodes, _layer, x, h0, c0, *given), nodes.floats(0.0))

    table = {torch.ops.fastlstm.int8_stack.default: int8_stack}
    for prefix in PREFIXES:
        table[getattr(torch.ops.fastlstm, f"{prefix}_layer_forward").default] = lstm_layer
        table[getattr(torch.ops.fastlstm, f"{prefix}_variant_forward").default] = variant
    return table


def _by_torch(*args):
    """A layer (`LayerForward`) by torch's own lstm, as torch exports an nn.LSTM."""
    call = LayerForward(*args)
    _refuse(call.reset_mask, call.save_cells)
    for name, given in (("lengths", call.lengths), ("proj_size", call.weight_hr)):
        if given is not None:  # torch's export of a projection does not run
            raise NotInOnnx(
                f"{name}: torch.onnx.export needs custom_translation_table=fastlstm.onnx.translation_table()"
            )
    weights, D = [], 1 if call.weight_hh_reverse is None else 2
    for w in (weights_of(call, reverse) for reverse in range(D)):
        biases = [b for b in (w.bias_ih, w.bias_hh) if b is not None]
        if len(biases) == 1:  # torch takes both or neither
            biases.append(torch.zeros_like(biases[0]))
        weights += [w.weight_ih, w.weight_hh, *biases]
    results = torch.ops.aten.lstm.input(call.x, [call.h0, call.c0], weights, bool(biases), 1, 0.0, False, D == 2, False)
    # Cells and gates are not used in inference.
    return (*results, call.x.new_zeros((0,)), call.x.new_zeros((0,)))


def _int8_by_torch(*args):
    raise NotInOnnx(
        "weight_dtype=torch.int8: torch.onnx.export needs custom_translation_table=fastlstm.onnx.translation_table()"
    )


def tell_exporter() -> None:
    """Has torch.onnx.export treat a layer as it treats nn.LSTM, where it is given no translation of
    the layer's op."""

    def register(exporter) -> None:
        # Not in torch's global table of decompositions, which others use too.
        make = exporter.create_onnx_friendly_decomposition_table

        @functools.wraps(make)
        def with_ours(onnx_registered_ops):
            table = make(onnx_registered_ops)
            for prefix in PREFIXES:
                op = getattr(torch.ops.fastlstm, f"{prefix}_layer_forward").default
                if op not in onnx_registered_ops:
                    table.setdefault(op, _by_torch)
            if torch.ops.fastlstm.int8_stack.default not in onnx_registered_ops:
                table.setdefault(torch.ops.fastlstm.int8_stack.default, _int8_by_torch)
            return table

        exporter.create_onnx_friendly_decomposition_table = with_ours

    when_imported("torch.onnx._internal.exporter._decomp", register)


def _refuse(reset_mask, save_cells: bool) -> None:
    if reset_mask is not None:
        raise NotInOnnx(
            "reset_mask: ONNX's LSTM operator has no resets; export a model that calls "
            "FastLSTM.step, and hand it zeros for the state where an episode begins"
        )
    if save_cells:
        raise NotInOnnx(
            "return_cell_sequence: ONNX's LSTM operator gives the last cell state alone; export a "
            "model that calls FastLSTM.step, whose state has every one of them"
        )


class _Nodes:
    """Makes nodes. Floating-point inputs and results are in `dtype`, computed in `wide`."""

    gate_order = _ONNX_ORDER

    def __init__(self, op, dtype) -> None:
        self.op, self.dtype = op, dtype
        self.wide = type(dtype).FLOAT if dtype.name in ("BFLOAT16", "FLOAT16") else dtype

    def __getattr__(self, name):
        return getattr(self.op, name)

    def widen(self, tensor):
        return tensor if self.dtype == self.wide else self.op.Cast(tensor, to=self.wide)

    def narrow(self, tensor):
        return tensor if self.dtype == self.wide else self.op.Cast(tensor, to=self.dtype)

    def floats(self, value: float):
        return self.op.Cast(self.op.Constant(value_float=value), to=self.wide)

    def integers(self, *values: int):
        return self.op.Constant(value_ints=list(values))

    def integer(self, value: int):
        return self.op.Constant(value_int=value)

    def stacked(self, tensors):  # D of shape (...) -> (D, ...)
        parts = [self.op.Unsqueeze(t, [0]) for t in tensors]
        return parts[0] if len(parts) == 1 else self.op.Concat(*parts, axis=0)

    def in_onnx_order(self, weight, H):
        """(4H, ...) with the gates in ONNX's order."""
        # As a single Gather of rows, which the exporter folds into small weights.
        return self.op.Gather(weight, self.integers(*(k * H + unit for k in _ONNX_ORDER for unit in range(H))), axis=0)

    def results(self, y, h_n, c_n, h0, c0, lengths):
        """output (T, N, D*P), h_n and c_n from a node's Y (T, D, N, P) and states."""
        op = self.op
        if lengths is not None:
            # ONNX does not define the final states of a row without steps; here they are h0, c0.
            some = op.Unsqueeze(op.Greater(lengths, self.integer(0)), [0, 2])
            h_n, c_n = op.Where(some, h_n, h0), op.Where(some, c_n, c0)
        return op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1]), h_n, c_n

    def first_steps(self, x, lengths, reverse: bool):
        """(T, N) bool: whether a step is a direction's first."""
        op = self.op
        T, rows = op.Shape(x, start=0, end=1), op.Shape(x, start=1, end=2)
        steps = op.Unsqueeze(op.Range(self.integer(0), op.Squeeze(T, [0]), self.integer(1)), [1])
        first = self.integer(0)
        if reverse:
            first = op.Sub(T if lengths is None else lengths, self.integer(1))
        return op.Expand(op.Equal(steps, first), op.Concat(T, rows, axis=0))


def _layer(op: _Nodes, x, h0, c0, directions, lengths, H=None):
    """The nodes of one layer: output (T, N, D*P), h_n (D, N, P), c_n (D, N, H).

    `directions` are D tuples weight_ih (4H, I), weight_hh (4H, P), bias_ih and bias_hh (4H,) or
    None, weight_hr (P, H) or None.

    ONNX's operator has no projection h = W_hr u. The recurrence of u alone has the weights W_hh
    W_hr, since W_hh h = (W_hh W_hr) u. h0 cannot be written as W_hr u: it becomes further inputs
    with the weights W_hh, which are zero at all but a direction's first step.
    """
    H, D = c0.shape[2] if H is None else H, len(directions)
    x, h0, c0 = op.widen(x), op.widen(h0), op.widen(c0)
    weights_ih, weights_hh, biases_ih, biases_hh, weights_hr = (
        [None if w is None else op.widen(w) for w in kind] for kind in zip(*directions, strict=True)
    )
    projected = weights_hr[0] is not None
    if projected:
        enters, zero = [], op.floats(0.0)
        for d in range(D):
            first = op.Unsqueeze(op.first_steps(x, lengths, d == 1), [2])
            enters.append(op.Where(first, op.Slice(h0, [d], [d + 1], [0]), zero))
        x = op.Concat(x, *enters, axis=2)
        weights_ih = [
            op.Concat(w, *(h if k == d else op.Mul(h, zero) for k in range(D)), axis=1)
            for d, (w, h) in enumerate(zip(weights_ih, weights_hh, strict=True))
        ]
        weights_hh = [op.MatMul(h, r) for h, r in zip(weights_hh, weights_hr, strict=True)]

    def in_onnx_order(weights):
        return op.stacked([op.in_onnx_order(w, H) for w in weights])

    both = [None if b[0] is None else in_onnx_order(b) for b in (biases_ih, biases_hh)]
    bias = None
    if both != [None, None]:
        given = both[0] if both[1] is None else both[1]
        bias = op.Concat(*(op.Sub(given, given) if b is None else b for b in both), axis=1)
    y, h_n, c_n = op.LSTM(
        x,
        in_onnx_order(weights_ih),
        in_onnx_order(weights_hh),
        bias,
        None if lengths is None else op.Cast(lengths, to=type(op.dtype).INT32),
        None if projected else h0,
        c0,
        direction="bidirectional" if D == 2 else "forward",
        hidden_size=H,
    )
    if projected:
        weight = op.Transpose(op.stacked(weights_hr), perm=[0, 2, 1])  # [D, H, P]
        y, h_n = op.MatMul(y, weight), op.MatMul(h_n, weight)
    return tuple(op.narrow(r) for r in op.results(y, h_n, c_n, h0, c0, lengths))

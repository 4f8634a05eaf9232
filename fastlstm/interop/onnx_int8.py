"""ONNX: the layers of a stack with int8 weights, for onnx.py's table.

A layer is one DynamicQuantizeLSTM of ONNX Runtime (domain com.microsoft), which quantises inputs
and states at run time, with one scale for all rows. It supports no projection and no float inputs:
layers with a projection or weight_only are ONNX's own LSTM after DequantizeLinear, with weights
stored in int8 and arithmetic in float32. Runtimes fold the nodes that reorder the packed weights
when they load a model.
"""

import functools

from ..int8 import TERMS, UNITS
from ..stack.int8 import by_direction

_ZERO = 128  # zero point: ONNX Runtime's AVX2 kernels saturate with signed weights, not unsigned


@functools.cache
def _operator():
    """DynamicQuantizeLSTM, for which the exporter has no schema."""
    import onnx
    import onnxscript

    schemas = onnx.defs.OpSchema
    optional = schemas.FormalParameterOption.Optional

    def inputs():
        names = "X:T W:T2 R:T2 B:T sequence_lens:T1 initial_h:T initial_c:T P:T W_scale:T"
        names += " W_zero_point:T2 R_scale:T R_zero_point:T2"
        for place, name in enumerate(names.split()):
            name, kind = name.split(":")
            given = {} if place < 3 else {"param_option": optional}
            yield schemas.FormalParameter(name, kind, **given)

    attribute = schemas.Attribute
    schema = schemas(
        "DynamicQuantizeLSTM",
        "com.microsoft",
        1,
        inputs=list(inputs()),
        outputs=[schemas.FormalParameter(name, "T") for name in ("Y", "Y_h", "Y_c")],
        type_constraints=[
            ("T", ["tensor(float)"], ""),
            ("T1", ["tensor(int32)"], ""),
            ("T2", ["tensor(uint8)", "tensor(int8)"], ""),
        ],
        attributes=[
            attribute("direction", schemas.AttrType.STRING),
            attribute("hidden_size", schemas.AttrType.INT),
        ],
    )
    return onnxscript.values.Op(onnxscript.values.Opset("com.microsoft", 1), schema.name, schema)


def _integers(op, packed, rows: int, K: int, gates: int):
    """A packed matrix as int8 (gates, rows, K)."""
    blocks, quads = -(-rows // UNITS), -(-K // TERMS)
    q = op.Transpose(packed, perm=[2, 0, 3, 1, 4])
    q = op.Reshape(q, op.integers(gates, blocks * UNITS, quads * TERMS))
    return op.Slice(q, op.integers(0, 0), op.integers(rows, K), op.integers(1, 2))


def _dequantised(op, packed, scale, rows: int, K: int, gates: int = 4):
    """The float32 matrix (gates*rows, K)."""
    q = op.Reshape(_integers(op, packed, rows, K, gates), op.integers(gates * rows, K))
    return op.DequantizeLinear(q, scale, axis=0)


def stack(op, float_layer, x, h0, c0, weights, layers, bidirectional, lengths, weight_only):
    """The nodes of `fastlstm::int8_stack`: output, h_n, c_n.

    Args:
        op: `onnx._Nodes`. float_layer: `onnx._layer`.
    """
    D = 2 if bidirectional else 1
    h_n, c_n, inputs = [], [], x.shape[2]
    for k, directions in enumerate(by_direction(weights, layers, bidirectional)):
        states = (op.Slice(s, [k * D], [(k + 1) * D], [0]) for s in (h0, c0))
        K, H = inputs if k == 0 else D * h0.shape[2], c0.shape[2]
        if weight_only or directions[0][5] is not None:
            P = h0.shape[2]
            floats = [
                (
                    _dequantised(op, w[0], w[1], H, K),
                    _dequantised(op, w[2], w[3], H, P),
                    w[4],  # the sum of both biases
                    None,
                    None if w[5] is None else _dequantised(op, w[5], w[6], P, H, 1),
                )
                for w in directions
            ]
            x, h, c = float_layer(op, x, *states, floats, lengths, H)
        else:
            h, c = states
            y, *found = _quantised_layer(op, x, h, c, directions, lengths, K, H)
            x, h, c = op.results(y, *found, h, c, lengths)
        h_n.append(h)
        c_n.append(c)
    if layers == 1:
        return x, h, c
    return x, op.Concat(*h_n, axis=0), op.Concat(*c_n, axis=0)


def _quantised_layer(op, x, h0, c0, directions, lengths, K: int, H: int):
    """A layer by DynamicQuantizeLSTM; results as of the node: Y, Y_h, Y_c."""
    gates, to = op.integers(*op.gate_order), type(op.dtype)

    def in_order(vector):  # (4H,) with the gates in ONNX's order
        rows = op.Reshape(vector, op.integers(4, H))
        return op.Reshape(op.Gather(rows, gates, axis=0), op.integers(4 * H))

    def matrix(packed, inputs):  # uint8 (inputs, 4H)
        q = op.Gather(_integers(op, packed, H, inputs, 4), gates, axis=0)
        q = op.Transpose(op.Reshape(q, op.integers(4 * H, inputs)), perm=[1, 0])
        shifted = op.Add(op.Cast(q, to=to.INT32), op.Cast(op.integer(_ZERO), to=to.INT32))
        return op.Cast(shifted, to=to.UINT8)

    zeros = [op.Cast(op.Constant(value_ints=[_ZERO] * 4 * H), to=to.UINT8) for _ in directions]
    bias = None
    if directions[0][4] is not None:
        sums = [in_order(w[4]) for w in directions]
        bias = op.stacked([op.Concat(b, op.Sub(b, b), axis=0) for b in sums])
    return _operator()(
        x,
        op.stacked([matrix(w[0], K) for w in directions]),
        op.stacked([matrix(w[2], H) for w in directions]),
        bias,
        None if lengths is None else op.Cast(lengths, to=to.INT32),
        h0,
        c0,
        None,
        op.stacked([in_order(w[1]) for w in directions]),
        op.stacked(zeros),
        op.stacked([in_order(w[3]) for w in directions]),
        op.stacked(zeros),
        direction="bidirectional" if len(directions) == 2 else "forward",
        hidden_size=H,
    )

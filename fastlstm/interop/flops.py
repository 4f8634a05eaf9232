"""Formulas of fastlstm's ops for counters of floating-point operations: those of the matrix
products, two for each multiply-add, as torch.utils.flop_counter counts torch's own.

A product of T * N rows with a matrix (A, B) is 2 * T * N * A * B, and so are the products with its
transpose and for its gradient in the backward. Steps that do not exist by `lengths` are counted, as
torch counts padding.
"""

from math import prod

import torch

from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..ops import layer, recurrence, variant
from ..ops.recurrence import PREFIXES
from ..stack import int8, step_training, whole
from ..stack import step as step_ops
from ..stack.checkpoint import calls as checkpoint
from ..stack.wavefront import calls as stack
from ..torch_classes import LSTM, LSTMCell
from ..weights import LSTMWeights, weights_of
from .late import when_imported


def _products(rows: int, *shapes) -> int:
    """Products of `rows` rows with matrices of these shapes (also stacked); biases and None count
    as 0."""
    return 2 * rows * sum(prod(s) for s in shapes if s is not None and len(s) > 1)


def recurrence_forward(call: recurrence.Forward | variant.VariantForward) -> int:
    T, N, *_ = call.gates_x
    return _products(T * N, call.weight_hh, call.weight_hr)


def recurrence_backward(call: recurrence.Backward | variant.VariantLoop) -> int:
    T, N, *_ = call.cells
    return _products(T * N, call.weight_hh, call.weight_hr)


def variant_backward(call: variant.VariantBackward) -> int:
    T, N, *_ = call.cells
    needs = variant.VariantNeeds(*call.needs)
    found = _products(T * N, call.weight_hh, call.weight_hr)
    found += _products(T * N, call.weight_hh) if needs.weight_hh else 0
    return found + (_products(T * N, call.weight_hr) if needs.weight_hr else 0)


def layer_forward(call: layer.LayerForward) -> int:
    T, N, _ = call.x
    return _products(T * N, *weights_of(call, False), *weights_of(call, True))


def layer_backward(call: layer.LayerBackward) -> int:
    T, N, _ = call.x
    of_inputs = call.weight_ih, call.weight_ih_reverse
    recurrent = call.weight_hh, call.weight_hr, call.weight_hh_reverse, call.weight_hr_reverse
    found = _products(T * N, *recurrent)
    found += _products(T * N, *of_inputs) if call.need_dx else 0
    return found + (_products(T * N, *of_inputs, *recurrent) if call.need_dweights else 0)


def whole_forward(call: whole.StackForward) -> int:
    return _products(prod(call.x[:-1]), *call.weights)


def whole_backward(call: whole.StackBackward) -> int:
    rows, directions = prod(call.output[:-1]), 2 if call.bidirectional else 1
    need_dx, _, _, *needs = call.needs
    each = len(needs) // (call.layers * directions)
    kept = len(call.matrices) // (2 + each % 2)  # directions of the layers from the lowest on
    first = call.layers * directions - kept
    found = 0
    for j in range(kept):
        ih, *recurrent = call.matrices[j::kept]
        found += _products(rows, *recurrent)
        below = need_dx if first + j < directions else j >= directions
        found += _products(rows, ih) if below else 0
        wanted = needs[(first + j) * each :][:each]
        places = (0, 1, each - 1)
        for place, weight in zip(places, (ih, *recurrent), strict=False):
            found += _products(rows, weight) if wanted[place] else 0
    return found


def int8_stack(call: int8.Int8Stack) -> int:
    """Without the padding of packed matrices."""
    x, layers, directions = call.x, call.layers, 2 if call.bidirectional else 1
    _, _, _, (H4,), _, _, scale_hr = int8.by_direction(call.weights, layers, call.bidirectional)[0][0]
    P = H4 // 4 if scale_hr is None else scale_hr[0]
    inputs = x[-1] + (layers - 1) * directions * P
    recurrent = directions * layers * (H4 * P + (0 if scale_hr is None else P * (H4 // 4)))
    return 2 * prod(x[:-1]) * (directions * H4 * inputs + recurrent)


def step(call: step_ops.Step) -> int:
    return _products(prod(call.x[:-1]), *call.weights)


def cell(call: step_ops.Cell | step_training.CellForward) -> int:
    rows, weight_hr = prod(call.x[:-1]), getattr(call, "weight_hr", None)
    return _products(rows, call.weight_ih, call.weight_hh, weight_hr)


def cell_training_backward(call: step_training.CellBackward) -> int:
    rows = prod(call.c[:-1])
    found = _products(rows, call.weight_hr)
    found += _products(rows, call.weight_ih) if call.need_dx else 0
    return found + (_products(rows, call.weight_hh) if call.need_dh else 0)


def cell_weight_gradients(call: step_training.Shares) -> int:
    def product(left, right) -> int:
        return sum(2 * prod(a) * b[-1] for a, b in zip(left, right, strict=True))

    needs = LSTMWeights(*call.needs)
    found = product(call.dgates, call.x) if needs.weight_ih else 0
    found += product(call.dgates, call.h) if needs.weight_hh else 0
    return found + (product(call.dh_n, call.unprojected) if needs.weight_hr else 0)


def stack_forward(call: stack.StackForward) -> int:
    T, N, _ = call.x
    return _products(T * N, *call.weights_ih, *call.weights_hh, *call.weights_hr)


def stack_backward(call: stack.StackBackward) -> int:
    (T, N, _), found, layers = call.x, 0, call.layers()
    for k in range(call.lowest, len(layers)):
        of_input, recurrent = layers[k].weight_ih, (layers[k].weight_hh, layers[k].weight_hr)
        found += _products(T * N, *recurrent)
        found += _products(T * N, of_input) if call.wants_dx_of(k) else 0
        found += _products(T * N, of_input, *recurrent) if call.need_dweights[k] else 0
    return found


def checkpointed_forward(call: checkpoint.CheckpointedForward) -> int:
    T, N, _ = call.x
    return _products(T * N, *call.weights)


def checkpointed_backward(call: checkpoint.CheckpointedBackward) -> int:
    """The forward is run again before the backward."""
    T, N, _ = call.x
    found = _products(T * N, *call.weights)
    needs = checkpoint.weights_of_layers(call, call.need_dweights)
    for k, directions in enumerate(checkpoint.weights_of_layers(call)):
        for weights, needed in zip(directions, needs[k], strict=True):
            below = call.need_dx or k > 0
            found += _products(T * N, weights.weight_hh, weights.weight_hr)
            found += _products(T * N, weights.weight_ih) if below else 0
            found += sum(_products(T * N, w) for w, need in zip(weights, needed, strict=True) if need)
    return found


def _named(arguments: type, formula):
    """A formula with the signature of flop_counter: the shapes of the op's arguments; options has
    those of the results."""

    def count(*args, **options) -> int:
        return formula(arguments(*args))

    return count


def formulas() -> dict:
    """The formula of each op, a function of the shapes of its arguments and `out_shape`."""
    by_arguments = {
        "lstm_stack_forward": (whole.StackForward, whole_forward),
        "lstm_stack_backward": (whole.StackBackward, whole_backward),
        "lstm_step": (step_ops.Step, step),
        "lstm_cell": (step_ops.Cell, cell),
        "lstm_cell_training_forward": (step_training.CellForward, cell),
        "lstm_cell_training_backward": (step_training.CellBackward, cell_training_backward),
        "lstm_cell_weight_gradients": (step_training.Shares, cell_weight_gradients),
        "stack_forward": (stack.StackForward, stack_forward),
        "stack_backward": (stack.StackBackward, stack_backward),
        "checkpointed_forward": (checkpoint.CheckpointedForward, checkpointed_forward),
        "checkpointed_backward": (checkpoint.CheckpointedBackward, checkpointed_backward),
        "lstm_variant_loop": (variant.VariantLoop, recurrence_backward),
        "int8_stack": (int8.Int8Stack, int8_stack),
        "int8_stack_reference": (int8.Int8Stack, int8_stack),
    }
    for prefix in PREFIXES:
        by_arguments |= {
            f"{prefix}_forward": (recurrence.Forward, recurrence_forward),
            f"{prefix}_backward": (recurrence.Backward, recurrence_backward),
            f"{prefix}_layer_forward": (layer.LayerForward, layer_forward),
            f"{prefix}_layer_backward": (layer.LayerBackward, layer_backward),
            f"{prefix}_variant_forward": (variant.VariantForward, recurrence_forward),
            f"{prefix}_variant_backward": (variant.VariantBackward, variant_backward),
        }
    ops = torch.ops.fastlstm
    return {getattr(ops, name): _named(*given) for name, given in by_arguments.items() if hasattr(ops, name)}


def _tell_torch(flop_counter) -> None:
    for op, formula in formulas().items():
        if op not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(op)(formula)


def _tell_by_type(hooks: dict) -> None:
    for fast, plain in ((FastLSTM, LSTM), (FastLSTMCell, LSTMCell)):
        if plain in hooks:
            hooks.setdefault(fast, hooks[plain])


def _tell_ptflops_of_ops(aten_ops) -> None:
    """ptflops calls formulas with the arguments, not their shapes, and counts multiply-adds."""

    def counted(formula):
        def count(inputs, outputs):
            shapes = [
                [t.shape for t in a]
                if isinstance(a, (list, tuple)) and a and isinstance(a[0], torch.Tensor)
                else getattr(a, "shape", a)
                for a in inputs
            ]
            return formula(*shapes) // 2

        return count

    for op, formula in formulas().items():
        aten_ops.ATEN_OPS_MAPPING.setdefault(op, counted(formula))


def tell_counters() -> None:
    """Registers fastlstm with torch's counter, thop and ptflops as soon as they are imported."""
    when_imported("torch.utils.flop_counter", _tell_torch)
    when_imported("thop.profile", lambda module: _tell_by_type(module.register_hooks))
    when_imported("ptflops.pytorch_ops", lambda module: _tell_by_type(module.MODULES_MAPPING))
    when_imported("ptflops.aten_ops", _tell_ptflops_of_ops)

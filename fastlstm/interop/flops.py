"""What counters of floating-point operations are told of fastlstm's ops and modules: those of the
matrix products, two for each multiply-add, as torch.utils.flop_counter counts torch's own.

A product of `rows` = T * N rows with a matrix (A, B) is 2 * rows * A * B, and so are those with its
transpose and for its gradient in the backward. Steps that `lengths` says do not exist are counted,
as torch counts those of a padded batch.
"""

from math import prod

import torch

from ..nn.cell import FastLSTMCell
from ..nn.lstm import FastLSTM
from ..ops.recurrence import FAMILIES
from ..torch_classes import LSTM, LSTMCell
from .late import when_imported


def _products(rows: int, *shapes) -> int:
    """Of `rows` rows with matrices of these shapes, stacked or not; biases and None are none."""
    return 2 * rows * sum(prod(s) for s in shapes if s is not None and len(s) > 1)


def recurrence_forward(gates_x, h0, c0, weight_hh, weight_hr, *rest, **options) -> int:
    return _products(prod(gates_x[:2]), weight_hh, weight_hr)


def recurrence_backward(
    doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, cells, *rest, **options
) -> int:
    return _products(prod(cells[:2]), weight_hh, weight_hr)


def variant_backward(
    doutput, dh_n, dc_n, dcells, dgates_out, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c,
    bias_c, output, *rest, **options,
) -> int:  # fmt: skip
    rows, needs = prod(output[:2]), rest[-1]
    found = _products(rows, weight_hh, weight_hr)
    for need, weight in zip(needs[:2], (weight_hh, weight_hr), strict=True):
        found += _products(rows, weight) if need else 0
    return found


def variant_loop(
    doutput, dh_n, dc_n, dcells, h0, c0, weight_hh, weight_hr, h_mask, norm_hh, norm_c, bias_c,
    cells, *rest, **options,
) -> int:  # fmt: skip
    return _products(prod(cells[:2]), weight_hh, weight_hr)


def layer_forward(x, h0, c0, *rest, **options) -> int:
    return _products(prod(x[:2]), *rest[:10])


def layer_backward(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weight_ih, weight_hh, weight_hr, weight_ih_reverse,
    weight_hh_reverse, weight_hr_reverse, *rest, **options,
) -> int:  # fmt: skip
    rows, (need_dx, need_dweights) = prod(x[:2]), rest[-2:]
    of_inputs = weight_ih, weight_ih_reverse
    recurrent = weight_hh, weight_hr, weight_hh_reverse, weight_hr_reverse
    found = _products(rows, *recurrent)
    found += _products(rows, *of_inputs) if need_dx else 0
    return found + (_products(rows, *of_inputs, *recurrent) if need_dweights else 0)


def whole_forward(x, h0, c0, weights, *rest, **options) -> int:
    return _products(prod(x[:-1]), *weights)


def whole_backward(
    doutput, dh_n, dc_n, dcells, x, h0, c0, matrices, output, tape, lengths, reset_mask, noise,
    layers, bidirectional, batch_first, wide_products, needs, **options,
) -> int:  # fmt: skip
    rows, directions = prod(output[:-1]), 2 if bidirectional else 1
    each = (len(needs) - 3) // (layers * directions)
    kept = len(matrices) // (2 + each % 2)  # directions of the layers from the lowest on
    first = layers * directions - kept
    found = 0
    for j in range(kept):
        ih, *recurrent = matrices[j::kept]
        found += _products(rows, *recurrent)
        below = needs[0] if first + j < directions else j >= directions
        found += _products(rows, ih) if below else 0
        wanted = needs[3 + (first + j) * each :][:each]
        places = (0, 1, each - 1)
        for place, weight in zip(places, (ih, *recurrent), strict=False):
            found += _products(rows, weight) if wanted[place] else 0
    return found


def step(x, h, c, weights, **options) -> int:
    return _products(prod(x[:-1]), *weights)


def cell(x, h, c, *weights, **options) -> int:
    return _products(prod(x[:-1]), *weights)


def cell_training_backward(
    dh_n, dc_n, c, cells, gates, weight_ih, weight_hh, weight_hr, need_dx, need_dh, *rest, **options
) -> int:
    rows = prod(c[:-1])
    found = _products(rows, weight_hr)
    found += _products(rows, weight_ih) if need_dx else 0
    return found + (_products(rows, weight_hh) if need_dh else 0)


def cell_weight_gradients(dgates, x, h, dh_n, unprojected, needs, **options) -> int:
    def product(left, right) -> int:
        return sum(2 * prod(a) * b[-1] for a, b in zip(left, right, strict=True))

    pairs = (dgates, x), (dgates, h), (dh_n, unprojected)
    wanted = *needs[:2], needs[4]
    return sum(product(*pair) for pair, need in zip(pairs, wanted, strict=True) if need)


def stack_forward(family, x, h0, c0, weights_ih, weights_hh, bi, bh, weights_hr, *rest, **options):
    return _products(prod(x[:2]), *weights_ih, *weights_hh, *weights_hr)


def stack_backward(
    family, doutput, dh_n, dc_n, dcells, x, h0, c0, weights_ih, weights_hh, weights_hr, *rest,
    **options,
) -> int:  # fmt: skip
    rows, (lowest, need_dx, need_dweights) = prod(x[:2]), rest[-3:]
    found = 0
    for k in range(lowest, len(weights_ih)):
        recurrent = weights_hh[k], *weights_hr[k : k + 1]
        found += _products(rows, *recurrent)
        found += _products(rows, weights_ih[k]) if (need_dx if k == 0 else k > lowest) else 0
        found += _products(rows, weights_ih[k], *recurrent) if need_dweights[k] else 0
    return found


def checkpointed_forward(x, h0, c0, weights, *rest, **options) -> int:
    return _products(prod(x[:2]), *weights)


def checkpointed_backward(
    doutput, dh_n, dc_n, dcells, x, h0, c0, weights, norms, h_mask, seed, lengths, reset_mask,
    family, directions, *rest, **options,
) -> int:  # fmt: skip
    """The forward once more, and the backward."""
    rows, (need_dx, _, needs, _) = prod(x[:2]), rest[-4:]
    each = len(weights) // directions
    found = _products(rows, *weights)
    for k, weight in enumerate(weights):
        of_input = k % each == 0
        found += _products(rows, weight) if need_dx or not of_input else 0
        found += _products(rows, weight) if k < len(needs) and needs[k] else 0
    return found


def formulas() -> dict:
    """The formula of each op, of the shapes of its arguments, with `out_shape` beside them."""
    named = {
        "lstm_stack_forward": whole_forward,
        "lstm_stack_backward": whole_backward,
        "lstm_step": step,
        "lstm_cell": cell,
        "lstm_cell_training_forward": cell,
        "lstm_cell_training_backward": cell_training_backward,
        "lstm_cell_weight_gradients": cell_weight_gradients,
        "stack_forward": stack_forward,
        "stack_backward": stack_backward,
        "checkpointed_forward": checkpointed_forward,
        "checkpointed_backward": checkpointed_backward,
        "lstm_variant_loop": variant_loop,
    }
    for family in FAMILIES:
        named |= {
            f"{family}_forward": recurrence_forward,
            f"{family}_backward": recurrence_backward,
            f"{family}_layer_forward": layer_forward,
            f"{family}_layer_backward": layer_backward,
            f"{family}_variant_forward": recurrence_forward,
            f"{family}_variant_backward": variant_backward,
        }
    names = {n: f for n, f in named.items() if hasattr(torch.ops.fastlstm, n)}
    return {getattr(torch.ops.fastlstm, name): formula for name, formula in names.items()}


def _tell_torch(flop_counter) -> None:
    for op, formula in formulas().items():
        if op not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(op)(formula)


def _tell_by_type(hooks: dict) -> None:
    for fast, plain in ((FastLSTM, LSTM), (FastLSTMCell, LSTMCell)):
        if plain in hooks:
            hooks.setdefault(fast, hooks[plain])


def _tell_ptflops_of_ops(aten_ops) -> None:
    """It counts multiply-adds, of the arguments themselves."""

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
    """Have torch's counter, thop's and ptflops' know us, as soon as they are imported."""
    when_imported("torch.utils.flop_counter", _tell_torch)
    when_imported("thop.profile", lambda module: _tell_by_type(module.register_hooks))
    when_imported("ptflops.pytorch_ops", lambda module: _tell_by_type(module.MODULES_MAPPING))
    when_imported("ptflops.aten_ops", _tell_ptflops_of_ops)

"""FastLSTMCell: one time step as a module, with nn.LSTMCell's contract."""

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..checks import check_pair
from ..precision import autocast_dtype, to_autocast
from ..stack import step as step_op
from ..stack import step_training
from ..stack.alone import needed, stands_alone
from ..stack.run import run_layers
from ..torch_classes import LSTMCell, above
from ..weights import BESIDE, LSTMWeights
from . import int8_calls, int8_storage, weight_storage
from .arguments import weights_by_name, without_weight_names
from .shortcuts import MOST_ROWS
from .torch_tools import (
    for_torchscript,
    proxies,
    quantization_config,
    rebuild,
    refuse_script_method,
    trace_as_leaf,
)

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@weight_storage.stores_weights
class FastLSTMCell(LSTMCell):
    """A faster `torch.nn.LSTMCell`: same arguments, parameters, state dict, results and errors.

    Args:
        input_size, hidden_size, bias, device, dtype: as for `torch.nn.LSTMCell`.
        weight_dtype, weight_only: torch.bfloat16 and torch.int8 store the two weight matrices so;
        see `FastLSTM`.
        backend: "auto", or a name of `fastlstm.backends.NAMES`.

    Inputs: input, hx=None
        * **input**: (N, I), or unbatched (I,).
        * **hx**: (h, c), each (N, H), or unbatched (H,); zeros if None.

    Outputs: (h, c), the new state, shaped as hx. Under autocast they are of its dtype, but on the
    CPU of float32 where c is, as nn.LSTMCell's.

    On the CPU a call takes the weights as they lie, and the calls of a loop make the weights'
    gradients together, when the loop's backward has gone through all of them.

    For a whole sequence, one call of `FastLSTM` takes far less time than a loop over cells, also
    where episodes begin in mid-sequence (reset_mask) or every c_t is wanted
    (return_cell_sequence).
    """

    __module__ = "fastlstm"  # for pickles: not where it stands

    backend: str = "auto"
    weight_dtype: torch.dtype | None = None
    weight_only: bool = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        weight_dtype: torch.dtype | None = None,
        weight_only: bool = False,
        backend: str = "auto",
    ) -> None:
        backends.check_name(backend)
        above(FastLSTMCell, self, "__init__").__init__(input_size, hidden_size, bias, device, dtype)
        self.backend = backend
        self.weight_dtype = weight_dtype
        self.weight_only = weight_only

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See the class for arguments and results.

        Raises:
            ValueError: hx is no pair of tensors, or not of the input's dimensions, or h not of its
            dtype, or either not on its device. Otherwise what nn.LSTMCell raises, in its words.
        """
        if type(input) is not Tensor and proxies(input):
            return self._trace(input, hx)
        if self.weight_dtype is int8_storage.INT8:
            return self._call_int8(input, hx)
        alone = stands_alone(input, self.backend)
        weights = weights_by_name(self, _NAMES, alone)
        result = self._direct(input, hx, weights) if alone else None
        if result is not None:
            return result
        dims = input.dim()
        if dims == 1 and isinstance(hx, Tensor) and hx.dim() == 2 and len(hx) == 2:
            hx = hx[0], hx[1]  # nn.LSTMCell takes such a tensor for unbatched input
        wanted = autocast_dtype(input.device)
        fitting = self._fitting(input, dims, hx, wanted, weights)
        if fitting is None:
            if proxies(hx):
                return self._trace(input, hx)
            # Refused, nearly always, and then in nn.LSTMCell's own words; or recorded by
            # torch.jit.trace as torch's own op.
            if hx is not None and dims in (1, 2):
                self._check_states(input, hx, wanted)
            return LSTMCell.forward(self, input, hx)
        x, h, c, weights = fitting
        if wanted is None:
            h, c = self._by_layer(x, h, c, weights)
        else:
            with torch.autocast(x.device.type, enabled=False):
                result = None
                if stands_alone(x, self.backend):
                    result = self._by_ops(*(t.squeeze(0) for t in (x, h, c)), weights)
                h, c = self._by_layer(x, h, c, weights) if result is None else result
        if dims == 1:
            return h.view(-1), c.view(-1)
        return h, c

    def _call_int8(self, input, hx):
        result = int8_calls.direct_cell(self, input, hx)
        if result is not None:
            return result
        if proxies(hx):
            return self._trace(input, hx)
        result = int8_calls.cell(self, input, hx)
        if result is None:
            # Refused in nn.LSTMCell's words, or what it takes beyond that: an hx of other shapes.
            result = self.to_torch()(input, hx)
        return result

    def reset_parameters(self) -> None:
        with int8_storage.as_floats(self):
            above(FastLSTMCell, self, "reset_parameters").reset_parameters()

    def _by_layer(self, x, h, c, weights):
        # Nobody gets the output.
        _, h, c, _ = run_layers(x, h, c, [[weights]], backend=self.backend, own_output=False)
        return h.squeeze(0), c.squeeze(0)

    def _direct(self, input, hx, weights):
        """The cell by the ops that take the weights as they lie; None where they do not take the
        arguments."""
        if input.dim() not in (1, 2):
            return None
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = zeros, zeros
        elif type(hx) not in (tuple, list) or len(hx) != 2 or hx[0] is None:
            return None
        if not weight_storage.fits(self, input, weights[0]):
            return None
        return self._by_ops(input, *hx, (*weights, None))

    def _by_ops(self, x, h, c, weights):
        """`_direct` of tensors, which the ops check; weights: as `LSTMWeights`."""
        needs = needed(x, h, c, weights[:4] if self.bias else weights[:2])
        if needs is None:
            return None
        if needs:
            return step_training.step(x, h, c, weights) if step_training.serves(x, weights) else None
        if x.dim() == 2 and x.shape[0] > MOST_ROWS:
            return None
        states = step_op.lstm_cell(x, h, c, *weights[:4])
        return tuple(states) if states else None

    def _trace(self, input, hx):
        return trace_as_leaf(self, (input,) if hx is None else (input, hx), {})

    def _check_states(self, input, hx, wanted) -> None:
        """A ValueError for states that torch does not look at before its kernels do."""
        check_pair("hx", hx)
        expected = "(H,)" if input.dim() == 1 else "(N, H)"
        for name, state in zip(("hx[0] (h)", "hx[1] (c)"), hx, strict=True):
            if state.dim() != input.dim() and state.dim() in (1, 2):
                raise ValueError(
                    f"{name}: got shape {tuple(state.shape)}, expected {expected} beside an input "
                    f"of shape {tuple(input.shape)}"
                )
            if state.device != input.device:
                raise ValueError(f"{name}: on {state.device}, expected the input's device, {input.device}")
        # torch computes with a c of another dtype, and the result has the wider one.
        if wanted is None and hx[0].dtype != input.dtype:
            raise ValueError(f"hx[0] (h): got dtype {hx[0].dtype}, expected the input's, {input.dtype}")

    def _fitting(self, input, dims, hx, wanted, weights):
        """x (1, N, I), h and c (1, N, H), and the weights; None where any does not fit the rest."""
        H = self.hidden_size
        if dims not in (1, 2) or H == 0 or torch.jit.is_tracing():
            return None
        if input.shape[-1] != self.input_size:
            return None
        x = input
        lead = (1, 1) if dims == 1 else (1, input.shape[0])
        x = x.view(1, 1, -1) if dims == 1 else x.unsqueeze(0)
        if hx is None:
            states = (x.new_zeros(*lead, H),) * 2
        else:
            states = hx
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                return None
            expected = (H,) if dims == 1 else (lead[1], H)
            if any(not isinstance(s, Tensor) or s.shape != expected for s in hx):
                return None
            states = tuple(s.reshape(*lead, H) for s in hx)
        found = list(weights)
        if self.weight_dtype is not None:
            found[:2] = [w.to(BESIDE) for w in found[:2]]
        if wanted is not None:
            h, c = states
            x, h, *found = (to_autocast(t, wanted) for t in (x, h, *found))
            cast = {t.dtype for t in (x, h, *found) if t is not None} == {wanted}
            if x.device.type == "cpu" and cast and c.dtype == torch.float32:
                # On the CPU, autocast takes nn.LSTMCell's products alone: a float32 cell stays one,
                # and so do the results.
                x, h, *found = (t if t is None else t.float() for t in (x, h, *found))
            else:
                c = to_autocast(c, wanted)
            states = h, c
        shapes = ((4 * H, self.input_size), (4 * H, H), (4 * H,), (4 * H,))
        for w, shape in zip(found, shapes, strict=True):
            if w is not None and w.shape != shape:
                return None
        present = [t for t in (*states, *found) if t is not None]
        if any(t.dtype != x.dtype or t.device != x.device for t in present):
            return None
        return x, *states, LSTMWeights(*found)

    @classmethod
    def from_torch(cls, cell: LSTMCell, **options: Any) -> "FastLSTMCell":
        """A FastLSTMCell with copies of an nn.LSTMCell's weights; see `FastLSTM.from_torch`."""
        if not isinstance(cell, LSTMCell):
            raise TypeError(f"cell: got {type(cell).__name__}, expected a torch.nn.LSTMCell")
        return rebuild(cls, cell, **options)

    def to_torch(self) -> LSTMCell:
        """An nn.LSTMCell with copies of the weights; see `FastLSTM.to_torch`."""
        return rebuild(LSTMCell, self)

    def extra_repr(self) -> str:
        more = "" if self.weight_dtype is None else f", weight_dtype={self.weight_dtype}"
        more += ", weight_only=True" if self.weight_only else ""
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        plain = above(FastLSTMCell, self, "extra_repr").extra_repr()
        return plain + more + backend

    def __setattr__(self, name, value):
        if name == "qconfig":
            value = quantization_config(self, value)
        elif name == "weight_dtype":
            weight_storage.store(self, value)
        elif name == "weight_only":
            value = int8_storage.checked_weight_only(self, value)
        above(FastLSTMCell, self, "__setattr__").__setattr__(name, value)

    def __prepare_scriptable__(self):
        return for_torchscript(LSTMCell, self)

    @property
    def __overloads__(self):
        return refuse_script_method(self)


without_weight_names.add(FastLSTMCell)

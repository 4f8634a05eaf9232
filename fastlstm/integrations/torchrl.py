"""TorchRL's LSTMModule on FastLSTM::

    from fastlstm.integrations.torchrl import FastLSTMModule
    lstm = FastLSTMModule(input_size=3, hidden_size=64, in_key="observation", out_key="features")

If episodes begin within the rows of a batch, LSTMModule splits the rows there, pads and packs the
parts; here each layer is one call with `is_init` as its reset_mask.
"""

import torch
from torch import Tensor

try:
    from tensordict import TensorDictBase
    from tensordict.nn import dispatch
    from torchrl.modules import LSTMModule
except ImportError as error:
    raise ImportError("fastlstm.integrations.torchrl needs TorchRL: pip install torchrl (the extra 'rl')") from error

from ..functional import lstm as functional_lstm
from ..interop.convert import convert
from ..nn.lstm import FastLSTM
from ..nn.variant_settings import is_plain

__all__ = ["FastLSTMModule"]


class FastLSTMModule(LSTMModule):
    """TorchRL's LSTMModule, with its arguments, parameters and results; `lstm` is a FastLSTM.

    Each layer is one call for batches in recurrent mode in which episodes begin within rows, with
    `recurrent_backend` "pad" (the default) or "auto", if the batch's states at these steps are 0,
    as from TensorDictPrimer. With other states, states that require a gradient, two directions,
    dropout in training, a FastLSTM with options of its own, or under torch.compile, it is
    LSTMModule's own forward with FastLSTM.

    Args:
        lstm: may be an nn.LSTM, which is converted to a FastLSTM in place.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.lstm = convert(self.lstm, report=[])

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """See LSTMModule. Time is the last batch dimension in recurrent mode."""
        lstm = self.lstm
        if (
            not self.recurrent_mode
            or tensordict.ndim == 0
            or self.recurrent_backend not in ("pad", "auto")
            or torch.compiler.is_compiling()
            or not isinstance(lstm, FastLSTM)
            or lstm.bidirectional
            or (lstm.dropout and lstm.training)
            or lstm.weight_dtype is not None
            or lstm.checkpoint_every is not None
            or not is_plain(lstm)
        ):
            return super().forward(tensordict)
        value, *states = (tensordict.get(key, None) for key in self.in_keys[:3])
        # (N, T) for any batch dimensions: where episodes begin, except at the rows' first steps.
        T = tensordict.shape[-1]
        starts = tensordict.get("is_init").reshape(-1, T).clone()
        starts[:, :1] = False
        if value is None or not starts.any() or (states[0] is None) != (states[1] is None):
            return super().forward(tensordict)
        value = value.reshape(*starts.shape, value.shape[-1])
        if states[0] is not None:
            h, c = (s.reshape(*starts.shape, *s.shape[-2:]) for s in states)
            if h.requires_grad or c.requires_grad or h[starts].any() or c[starts].any():
                return super().forward(tensordict)
            states = [s[:, 0].transpose(0, 1) for s in (h, c)]  # (L, N, ...)
        output, *states = self._layers(value, states, starts)
        for key, result in zip(self.out_keys, (output, *states), strict=True):
            tensordict.set(key, result.reshape(*tensordict.shape, *result.shape[2:]))
        return tensordict

    def _layers(self, x: Tensor, states: list, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs (N, T, P), and h (N, T, L, P) and c (N, T, L, H) of the steps after which an
        episode or the row ends, 0 at all others."""
        lstm, each_h, each_c = self.lstm, [], []
        for k, names in enumerate(lstm._all_weights):
            weights = [getattr(lstm, name) for name in names]
            if not lstm.bias:
                weights[2:2] = None, None
            hx = None if states[0] is None else tuple(s[k : k + 1] for s in states)
            x, _, cells = functional_lstm(
                x,
                [weights],
                hx,
                batch_first=True,
                reset_mask=starts,
                return_cell_sequence=True,
                backend=lstm.backend,
            )
            each_h.append(x)
            each_c.append(cells)
        ends = torch.ones_like(starts)
        ends[:, :-1] = starts[:, 1:]
        h, c = (torch.stack(each, 2) * ends[:, :, None, None] for each in (each_h, each_c))
        return x, h, c

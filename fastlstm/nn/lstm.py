"""FastLSTM: the module. It holds the weights and the settings, and keeps nn.LSTM's contract; what a
call does with each form of input stands in inputs.py, the computation in stack/run.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .. import backends
from ..checks import check_pair
from ..stack.checkpoint.layers import check_every
from ..torch_classes import LSTM, above
from ..weights import BESIDE
from . import inputs as forms
from . import int8_calls, int8_storage, weight_storage
from .arguments import without_weight_names
from .shortcuts import direct_step, plain_inference
from .torch_tools import (
    complete_state,
    for_torchscript,
    quantization_config,
    rebuild,
    refuse_script_method,
)
from .variant_settings import (
    PLAIN,
    checked,
    refuse_variants,
    reset_norms,
    take_variants,
    variants_of,
)


@weight_storage.stores_weights
class FastLSTM(LSTM):
    """A faster `torch.nn.LSTM`: same arguments, parameters, state dict, results and errors.

    T steps, N rows, I = input_size, H = hidden_size, P = proj_size or H, L = num_layers, D = 2 if
    bidirectional, else 1.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
        device, dtype:
            as for `torch.nn.LSTM`.
        layer_norm: normalise the gates' two products and the cell (Ba et al. 2016). Adds for each
            layer and direction the parameters ln_weight_ih_l{k}{suffix} and ln_weight_hh_… (4H,),
            ln_weight_c_… (H,), all 1 at first, and, with bias, ln_bias_c_… (H,), 0 at first. A
            state dict without them, such as nn.LSTM's, loads with strict=False.
        recurrent_dropout: probability of masking h on its way into the recurrent product: one mask
            for each row and unit, the same at all steps (Gal & Ghahramani 2016).
        weight_dropout: probability of masking the entries of weight_hh: one mask for the call
            (DropConnect; Merity et al. 2018).
        zoneout: probability with which a unit of h, and of c, keeps its old value at a step
            (Krueger et al. 2017), or a pair of them; in evaluation both are the mean instead.
            Masks of the three are drawn in training only, from torch's generator for the input's
            device: the same seed gives the same bits. `fastlstm.reference.variant` has the
            equations. Each call is a sequence of its own with masks of its own.
        checkpoint_every: K, or True for 64 (with two rows 128, with one 256, for short pieces are
            slow): training keeps the states every K steps, and the backward runs the forward again
            from there, K steps at a time: a third more arithmetic, and memory for the input, the
            outputs and L*T/K states, where otherwise gates and cells of all T steps are kept. The
            same results, gradients and dropout masks. Layers with dropout between them or of two
            directions keep their outputs too. Second derivatives, and transforms of torch.func,
            keep what they keep without.
        weight_dtype: torch.bfloat16 stores the weight matrices of a float32 module so, beside
            biases, inputs, states and arithmetic in float32: half the bytes to keep and, with few
            rows, to read, for inference. Each weight is rounded once, by at most 2^-8 of itself;
            nothing else is. May be set later, and None widens what is stored. Without a gradient
            the CPU's kernels take the weights as they are; else they are widened at each call, and
            gradients for them come in bfloat16. torch.int8 quantises the matrices row by row
            (`fastlstm.int8`): a quarter of the bytes, for inference alone. x_t and h are quantised
            too, row by row and step by step, on their way into the products; gates, states and
            results are float32, under autocast too. The parameters become buffers; the state dict
            has weight_ih_l0 as int8 and weight_ih_l0_scale, and takes floats. With layer_norm,
            zoneout or masks in training, and on a GPU, the weights are widened for each call.
        weight_only: with weight_dtype=torch.int8, x_t and h stay float32: the error is that of the
            weights alone.
        variational_dropout: `dropout` draws one mask for each row and unit of a layer's output, the
            same at all steps (Gal & Ghahramani 2016; AWD-LSTM, Merity et al. 2018), where nn.LSTM
            draws one at every step. It is one call of torch's dropout on ones (N, D*P), rows in the
            user's order: one seed gives the same masks for packed, nested and padded rows.
        batch_first_states: hx, h_n and c_n are (N, L*D, P) and (N, L*D, H), also those of `step`
            (with L*D = L), so that `nn.DataParallel` splits states with the rows. Unbatched states
            are as they were.
        return_layer_outputs: also return every layer's output. On a GPU the layers then run one
            after the other.
        backend: "auto", or a name of `fastlstm.backends.NAMES`: then that backend serves every
            call or the call fails. `python -m fastlstm` shows which backend serves what.

    Inputs: input, hx=None, *, lengths=None, reset_mask=None, return_cell_sequence=False
        * **input**: (T, N, I), or (N, T, I) with batch_first; unbatched (T, I); a
          `PackedSequence`; or a jagged NestedTensor (N, j, I), whatever batch_first says.
        * **hx**: (h0, c0) of shapes (L*D, N, P) and (L*D, N, H), without the N for unbatched
          input; zeros if None.
        * **lengths**: (N,) integers in 0..T, in any order, on any device: row n ends after
          lengths[n] steps. Its output is 0 from there on, its final states are those of its last
          step, and its reverse direction starts there. For unbatched input () or (1,). Not with a
          `PackedSequence`, which has its own.
        * **reset_mask**: (T, N) bool, (N, T) with batch_first, unbatched (T,): True at t begins a
          new episode in that row, and nothing crosses from t - 1 to t. The forward direction
          enters step t with zeros (at t = 0 instead of h0, c0), the reverse direction step t - 1.
          With a `PackedSequence`: T of its longest row, rows in the order in which the user packed
          them, and what it says of steps that do not exist is ignored. With a NestedTensor: (N, T)
          so, or jagged (N, j) like it.
        * **return_cell_sequence**: also return every c_t.

    Outputs: output, (h_n, c_n), with return_cell_sequence cells, with return_layer_outputs outputs
        * **output**: (T, N, D*P), laid out like input; a `PackedSequence` or a NestedTensor for
          one.
        * **h_n, c_n**: like h0 and c0.
        * **cells**: (T, N, D*H), the last layer's c_t, laid out like output.
        * **outputs**: a tuple of L, each laid out like output: what each layer gives, before
          dropout. The last is output itself.

    Where this is not as `torch.nn.LSTM`: T = 0 gives an output of no steps and hx itself (there an
    error); an hx that is no pair of tensors or of the wrong dtype, a wrong hx beside a
    `PackedSequence`, and weights replaced by some of the wrong shape or dtype are a ValueError that
    names the argument; a wrong `PackedSequence` is refused in the words for a wrong tensor, and
    under autocast a right one gives results of autocast's dtype too. `flatten_parameters()` has
    nothing to do and never warns. `torch.jit.script` puts an nn.LSTM of the same parameters in its
    place, in the given model, and warns of it; a subclass with a forward of its own is refused.
    `torch.jit.trace` records torch's own LSTM op.

    Example::

        >>> lstm = FastLSTM(10, 20, 2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output, state = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([2, 5, 0]))
    """

    __module__ = "fastlstm"  # for pickles: not where it stands

    # On the class too, for instances that no __init__ of ours has seen: converted ones, states
    # pickled by nn.LSTM.
    backend: str = "auto"
    checkpoint_every: int | bool | None = None
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)
    variational_dropout: bool = False
    batch_first_states: bool = False
    return_layer_outputs: bool = False
    weight_dtype: torch.dtype | None = None
    weight_only: bool = False
    # Inherited anyway, but not by a class that copies what stands here onto another base.
    get_expected_cell_size = LSTM.get_expected_cell_size
    check_forward_args = LSTM.check_forward_args
    permute_hidden = LSTM.permute_hidden

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        checkpoint_every: int | bool | None = None,
        weight_dtype: torch.dtype | None = None,
        weight_only: bool = False,
        variational_dropout: bool = False,
        batch_first_states: bool = False,
        return_layer_outputs: bool = False,
        backend: str = "auto",
    ) -> None:
        backends.check_name(backend)
        above(FastLSTM, self, "__init__").__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.backend = backend
        self.checkpoint_every = checkpoint_every
        take_variants(
            self,
            layer_norm=layer_norm,
            recurrent_dropout=recurrent_dropout,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            variational_dropout=variational_dropout,
            batch_first_states=batch_first_states,
            return_layer_outputs=return_layer_outputs,
        )
        self.weight_dtype = weight_dtype
        self.weight_only = weight_only

    def reset_parameters(self) -> None:
        """As nn.LSTM's; the gains of layer_norm become 1, its bias 0."""
        with int8_storage.as_floats(self):
            above(FastLSTM, self, "reset_parameters").reset_parameters()
        if self.layer_norm:
            reset_norms(self)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset_mask: Tensor | None = None,
        return_cell_sequence: bool = False,
    ) -> tuple[Any, ...]:
        """See the class for arguments and results.

        Raises:
            ValueError: lengths or reset_mask do not fit the input, or what the class lists; the
            text names the argument. Otherwise what nn.LSTM raises, in its words.
        """
        # By `is`: fx's proxies, which the longer way takes, have no truth.
        if lengths is None and reset_mask is None and return_cell_sequence is False:
            found = plain_inference(self, input, hx)
            if found is not None:
                return found
        return forms.call(self, input, hx, lengths, reset_mask, return_cell_sequence)

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One time step, for streaming: the module called with T = 1.

        On the CPU it is, for a few rows and where no gradient is wanted (`torch.no_grad()`), one op
        for all layers, else an op for each, that takes the weights as they lie: nothing is packed,
        and nothing is kept from call to call. The steps of a loop make the weights' gradients
        together, when the loop's backward has gone through all of them.

        Args:
            x_t: (N, I), or unbatched (I,).
            state: (h, c) of the last step, of shapes (L, N, P) and (L, N, H), unbatched (L, P) and
            (L, H), with batch_first_states (N, L, P) and (N, L, H); zeros if None.

        Returns:
            y (N, P), or unbatched (P,), and the new state.

        Raises:
            ValueError: the module is bidirectional, x_t is not of 1 or 2 dimensions, or state is no
            pair of tensors. Else as forward.
        """
        if self.bidirectional:
            raise ValueError("step: this FastLSTM is bidirectional, and its reverse direction needs the whole sequence")
        if x_t.dim() not in (1, 2):
            raise ValueError(f"x_t: got shape {tuple(x_t.shape)}, expected (N, I) or (I,)")
        if type(self).forward is FastLSTM.forward:
            short = int8_calls.direct_step if self.weight_dtype is torch.int8 else direct_step
            result = short(self, x_t, state)
            if result is not None:
                return result
        if state is not None:
            check_pair("state", state)
        time = 1 if self.batch_first and x_t.dim() == 2 else 0
        output, state = self(x_t.unsqueeze(time), state)[:2]
        return output.squeeze(time), state

    @classmethod
    def from_torch(cls, lstm: LSTM, **options: Any) -> "FastLSTM":
        """A FastLSTM with copies of an nn.LSTM's weights, and its settings, training and
        requires_grad flags.

        Parametrizations and pruning masks go into the copied weights; hooks are not copied.
        `fastlstm.convert` keeps all.

        Args:
            options: keyword-only arguments of the constructor, such as backend or zoneout. What
            a FastLSTM has beyond nn.LSTM goes along unless they name it.
        """
        if not isinstance(lstm, LSTM):
            raise TypeError(f"lstm: got {type(lstm).__name__}, expected a torch.nn.LSTM")
        return rebuild(cls, lstm, **options)

    def to_torch(self) -> LSTM:
        """An nn.LSTM with copies of the weights, and its settings; see `from_torch`.

        Raises:
            ValueError: this has layer_norm, recurrent_dropout, weight_dropout, zoneout,
            variational_dropout, batch_first_states or return_layer_outputs.
        """
        refuse_variants(self, "to_torch")
        return rebuild(LSTM, self)

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        # nn.LSTM stores this list, and with it what a parametrization or a pruning mask computed
        # last, which can be neither copied nor pickled.
        if int8_storage.is_int8(self):
            values = int8_storage.widened(self)
            return [values[name] for name in self._flat_weights_names]
        weights = [getattr(self, name, None) for name in self._flat_weights_names]
        if self.weight_dtype is not None:
            weights = [w if w is None else w.to(BESIDE) for w in weights]
        return weights

    @_flat_weights.setter
    def _flat_weights(self, weights) -> None:
        """nn.LSTM's own methods assign what they have just read by name."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """As nn.LSTM's; of int8 weights the float32 ones that they stand for."""
        if int8_storage.is_int8(self):
            values = int8_storage.widened(self)
            return [[values[name] for name in layer] for layer in self._all_weights]
        return [[getattr(self, name) for name in layer] for layer in self._all_weights]

    def flatten_parameters(self) -> None:
        """Nothing to do: no kernel here needs the weights in one piece."""

    def extra_repr(self) -> str:
        more = [f"{name}={value!r}" for name, value in variants_of(self).items()]
        if self.checkpoint_every is not None:
            more.append(f"checkpoint_every={self.checkpoint_every}")
        if self.weight_dtype is not None:
            more.append(f"weight_dtype={self.weight_dtype}")
        if self.weight_only:
            more.append("weight_only=True")
        if self.backend != "auto":
            more.append(f"backend={self.backend!r}")
        plain = above(FastLSTM, self, "extra_repr").extra_repr()
        return ", ".join([plain, *more])

    def __setstate__(self, state):
        above(FastLSTM, self, "__setstate__").__setstate__(complete_state(state))

    def __setattr__(self, name, value):
        if name == "qconfig":
            value = quantization_config(self, value)
        elif name == "checkpoint_every":
            value = check_every(value)
        elif name in PLAIN:
            value = checked(name, value)
        elif name == "weight_dtype":
            weight_storage.store(self, value)
        elif name == "weight_only":
            value = int8_storage.checked_weight_only(self, value)
        above(FastLSTM, self, "__setattr__").__setattr__(name, value)

    def __prepare_scriptable__(self):
        return for_torchscript(LSTM, self)

    @property
    def __overloads__(self):
        return refuse_script_method(self)


without_weight_names.add(FastLSTM)

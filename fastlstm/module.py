"""FastLSTM: the module. It holds the weights and keeps nn.LSTM's contract; the computation is
functional.py's.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import backends, nested, step_op
from .arguments import (
    has_hooks,
    state_shapes,
    state_widths,
    states_of,
    weights_by_name,
    weights_of,
    zero_states,
)
from .checkpointing import check_every
from .checks import check_lengths, check_reset_mask, check_states
from .exchange import (
    for_torchscript,
    proxies,
    rebuild,
    tell_quantization,
    trace_as_leaf,
)
from .functional import autocast_dtype, run_layers, to_autocast
from .packing import packing_of
from .variant_settings import (
    PLAIN,
    checked,
    is_plain,
    refuse_variants,
    reset_norms,
    take_variants,
    variant_of,
    variants_of,
)


class FastLSTM(nn.LSTM):
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
            device: the same seed gives the same bits. `fastlstm.variant_reference` has the
            equations. Each call is a sequence of its own with masks of its own.
        checkpoint_every: K, or True for 64: training keeps the states every K steps, and the
            backward runs the forward again from there, K steps at a time: a third more
            arithmetic, and memory for the input, the outputs and L*T/K states, where otherwise
            gates and cells of all T steps are kept. The same results, gradients and dropout masks;
            with 16-bit tensors c is rounded to them every K steps. Layers with dropout between
            them or of two directions keep their outputs too. Second derivatives, and transforms of
            torch.func, keep what they keep without.
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

    Outputs: output, (h_n, c_n), and with return_cell_sequence cells
        * **output**: (T, N, D*P), laid out like input; a `PackedSequence` or a NestedTensor for
          one.
        * **h_n, c_n**: like h0 and c0.
        * **cells**: (T, N, D*H), the last layer's c_t, laid out like output.

    Where this is not as `torch.nn.LSTM`: T = 0 gives an output of no steps and hx itself (there an
    error); an hx of the wrong dtype, hx = (None, None), a wrong hx beside a `PackedSequence`, and
    weights replaced by some of the wrong shape or dtype are a ValueError that names the argument;
    a wrong `PackedSequence` is refused in the words for a wrong tensor, and under autocast a right
    one gives results of autocast's dtype too. `flatten_parameters()` has nothing to do and never
    warns. `torch.jit.script` puts an nn.LSTM of the same parameters in its place, in the given
    model, and warns of it. `torch.jit.trace` records torch's own LSTM op.

    Example::

        >>> lstm = FastLSTM(10, 20, 2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output, state = lstm(torch.randn(5, 3, 10), lengths=torch.tensor([2, 5, 0]))
    """

    # On the class too, for instances that no __init__ of ours has seen: converted ones, states
    # pickled by nn.LSTM.
    backend: str = "auto"
    checkpoint_every: int | None = None
    layer_norm: bool = False
    recurrent_dropout: float = 0.0
    weight_dropout: float = 0.0
    zoneout: tuple[float, float] = (0.0, 0.0)

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
        device=None,
        dtype=None,
        *,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        checkpoint_every: int | bool | None = None,
        backend: str = "auto",
    ) -> None:
        backends.check_name(backend)
        super().__init__(
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
        )

    def reset_parameters(self) -> None:
        """As nn.LSTM's; the gains of layer_norm become 1, its bias 0."""
        super().reset_parameters()
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
    ):
        """See the class for arguments and results.

        Raises:
            ValueError: lengths or reset_mask do not fit the input, or what the class lists; the
            text names the argument. Otherwise what nn.LSTM raises, in its words.
        """
        if type(input) is not Tensor:
            if isinstance(input, PackedSequence):
                return self._forward_packed(input, hx, lengths, reset_mask, return_cell_sequence)
            if proxies(input):
                return self._trace(input, hx, lengths, reset_mask, return_cell_sequence)
        if nested.is_nested(input):
            return self._forward_nested(input, hx, lengths, reset_mask, return_cell_sequence)
        dims = input.dim()
        plain = lengths is None and reset_mask is None and not return_cell_sequence
        if dims not in (2, 3) or (plain and torch.jit.is_tracing()):
            # A trace then holds torch's own op, which runs and exports without fastlstm.
            return self._as_torch(input, hx, plain)
        wanted = autocast_dtype(input.device)
        x = input if wanted is None else to_autocast(input, wanted)
        layers = weights_of(self, x, wanted)
        if layers is None:
            return self._as_torch(input, hx, plain)
        layout = "(T, N)"
        if dims == 2:
            x, layout = x.unsqueeze(1), "(T,)"
        elif self.batch_first:
            x, layout = x.transpose(0, 1), "(N, T)"
        T, N, _ = x.shape
        if hx is None:
            h0, c0 = zero_states(self, x, N)
        else:
            states = states_of(self, hx, x, N if dims == 3 else None, wanted)
            if states is None:
                if proxies(hx):
                    return self._trace(input, hx, lengths, reset_mask, return_cell_sequence)
                return self._as_torch(input, hx, plain)
            h0, c0 = states
        if lengths is not None:
            if dims == 2 and isinstance(lengths, Tensor) and lengths.dim() == 0:
                lengths = lengths.unsqueeze(0)
            lengths = check_lengths(lengths, T, N, x.device)
        if reset_mask is not None:
            reset_mask = check_reset_mask(reset_mask, T, N, x.device, layout)
        output, h_n, c_n, cells = self._run(
            x, h0, c0, layers, lengths, reset_mask, return_cell_sequence, wanted
        )
        if dims == 2:
            output, h_n, c_n = output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
            cells = None if cells is None else cells.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
            cells = None if cells is None else cells.transpose(0, 1)
        return (output, (h_n, c_n)) if cells is None else (output, (h_n, c_n), cells)

    def _forward_packed(self, input, hx, lengths, reset_mask, return_cell_sequence):
        _refuse_lengths(lengths, "PackedSequence")
        data, batch_sizes, sorted_indices, unsorted_indices = input
        packing = packing_of(input)
        wanted = autocast_dtype(data.device)
        if wanted is not None:
            data = to_autocast(data, wanted)
        layers = weights_of(self, data, wanted)
        if layers is None or data.dim() != 2:
            # nn.LSTM does not check this, and reads on for some of it.
            self.check_input(data, batch_sizes)
            raise ValueError(
                f"input: got a PackedSequence of data on {data.device} and of {data.dtype}, "
                f"expected those of the weights, {self._flat_weights[0].device} and "
                f"{self._flat_weights[0].dtype}"
            )
        states = self._checked_states(hx, data, packing.N, wanted)
        h0, c0 = states if hx is None else self.permute_hidden(states, sorted_indices)
        if torch.jit.is_tracing() and reset_mask is None and not return_cell_sequence:
            return self._as_torch(input, hx, True)
        if reset_mask is not None:
            layout = "(N, T)" if self.batch_first else "(T, N)"
            reset_mask = check_reset_mask(reset_mask, packing.T, packing.N, data.device, layout)
            if sorted_indices is not None:
                reset_mask = reset_mask.index_select(1, sorted_indices)
        lengths = None if packing.lengths is None else packing.lengths.to(data.device)
        output, h_n, c_n, cells = self._run(
            packing.pad(data),
            h0,
            c0,
            layers,
            lengths,
            reset_mask,
            return_cell_sequence,
            wanted,
            packing,
        )

        def pack(sequence):
            return PackedSequence(
                packing.pack(sequence), batch_sizes, sorted_indices, unsorted_indices
            )

        states = self.permute_hidden((h_n, c_n), unsorted_indices)
        return (pack(output), states) if cells is None else (pack(output), states, pack(cells))

    def _checked_states(self, hx, data, N, wanted):
        """hx as tensors of the right shapes, or zeros, beside rows of data (S, I)."""
        if hx is None:
            return zero_states(self, data, N)
        if wanted is not None and isinstance(hx, (tuple, list)):
            hx = [to_autocast(s, wanted) for s in hx]
        check_states(hx, *state_shapes(self, N), data)
        return hx

    def _forward_nested(self, input, hx, lengths, reset_mask, return_cell_sequence):
        _refuse_lengths(lengths, "NestedTensor")
        packing = nested.jagged_of(input)
        values = input.values()
        wanted = autocast_dtype(values.device)
        if wanted is not None:
            values = to_autocast(values, wanted)
        layers = weights_of(self, values, wanted)
        if layers is None:
            first = self._flat_weights[0]
            raise ValueError(
                f"input: got a NestedTensor of {values.shape[1]} features, {values.dtype}, on "
                f"{values.device}, expected {self.input_size}, {first.dtype}, on {first.device}"
            )
        h0, c0 = self._checked_states(hx, values, packing.N, wanted)
        if reset_mask is not None and nested.is_nested(reset_mask):
            reset_mask = packing.pad(nested.mask_values(reset_mask, input))
        elif reset_mask is not None:
            sizes = packing.T, packing.N, values.device, "(N, T)"
            reset_mask = check_reset_mask(reset_mask, *sizes)
        output, h_n, c_n, cells = self._run(
            packing.pad(values),
            h0,
            c0,
            layers,
            packing.lengths,
            reset_mask,
            return_cell_sequence,
            wanted,
            packing,
        )
        output = nested.like(input, packing.pack(output))
        if cells is None:
            return output, (h_n, c_n)
        return output, (h_n, c_n), nested.like(input, packing.pack(cells))

    def _run(self, x, h0, c0, layers, lengths, reset_mask, cells, wanted, packing=None):
        """`functional.run_layers` with this module's dropout and backend, outside of autocast; all
        is time-major.
        """
        between = None
        if self.training and self.dropout and len(layers) > 1:

            def between(y):
                if packing is None:
                    return F.dropout(y, self.dropout)
                # nn.LSTM draws its mask for the packed rows, and the same seed is to give the same
                # mask.
                return packing.pad(F.dropout(packing.pack(y), self.dropout))

        guard = (
            contextlib.nullcontext()
            if wanted is None
            else torch.autocast(x.device.type, enabled=False)
        )
        with guard:
            return run_layers(
                x,
                h0,
                c0,
                layers,
                lengths=lengths,
                reset_mask=reset_mask,
                return_cells=cells,
                between_layers=between,
                dropout=self.dropout,
                backend=self.backend,
                variant=variant_of(self, x, wanted),
                checkpoint_every=self.checkpoint_every,
            )

    def _as_torch(self, input, hx, plain: bool):
        """What does not fit is refused by nn.LSTM's own call, in its own words; should it fit
        there, that is the result.
        """
        result = super().forward(input, hx)
        if plain:
            if self.training or self.layer_norm or any(self.zoneout):
                refuse_variants(self, "torch.jit.trace")
            return result
        raise ValueError(
            "input: fastlstm does not take these arguments, and nn.LSTM, which does, has no "
            "lengths, reset_mask or return_cell_sequence; leave those out"
        )

    def _trace(self, input, hx, lengths, reset_mask, return_cell_sequence):
        given = {"lengths": lengths, "reset_mask": reset_mask}
        given = {name: value for name, value in given.items() if value is not None}
        if return_cell_sequence is not False:
            given["return_cell_sequence"] = return_cell_sequence
        return trace_as_leaf(self, (input,) if hx is None else (input, hx), given)

    def step(self, x_t: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """One time step, for streaming: the module called with T = 1.

        On the CPU, for a few rows and where no gradient is wanted (`torch.no_grad()`), it is one op
        for all layers that takes the weights as they lie: nothing is packed, and nothing is kept
        from call to call.

        Args:
            x_t: (N, I), or unbatched (I,).
            state: (h, c) of the last step, of shapes (L, N, P) and (L, N, H), unbatched (L, P) and
            (L, H); zeros if None.

        Returns:
            y (N, P), or unbatched (P,), and the new state.

        Raises:
            ValueError: the module is bidirectional, or x_t is not of 1 or 2 dimensions. Else as
            forward.
        """
        if self.bidirectional:
            raise ValueError(
                "step: this FastLSTM is bidirectional, and its reverse direction needs the whole "
                "sequence"
            )
        if x_t.dim() not in (1, 2):
            raise ValueError(f"x_t: got shape {tuple(x_t.shape)}, expected (N, I) or (I,)")
        result = self._direct_step(x_t, state)
        if result is not None:
            return result
        time = 1 if self.batch_first and x_t.dim() == 2 else 0
        output, state = self(x_t.unsqueeze(time), state)
        return output.squeeze(time), state

    def _direct_step(self, x_t, state):
        """The step as one op, where nothing else may stand between: no hook, no forward of a
        subclass, no variant, no dropout. None where the op does not serve or does not take the
        arguments.
        """
        if (
            torch.compiler.is_compiling()
            or type(x_t) is not Tensor
            or "forward" in self.__dict__
            or type(self).forward is not FastLSTM.forward
            or not is_plain(self)
            or has_hooks(self)
        ):
            return None
        weights = weights_by_name(self, self._flat_weights_names)
        if state is None:
            lead = (self.num_layers, *x_t.shape[:-1])
            state = (x_t.new_zeros(*lead, width) for width in state_widths(self))
        elif type(state) not in (tuple, list) or len(state) != 2:
            return None
        h, c = state
        if not step_op.serves(x_t, (h, c), weights, self.backend):
            return None
        try:
            y, h_n, c_n = step_op.lstm_step(x_t, h, c, weights)
        except RuntimeError:  # what does not fit: the general way says so
            return None
        return y, (h_n, c_n)

    @classmethod
    def from_torch(cls, lstm: nn.LSTM, **options) -> "FastLSTM":
        """A FastLSTM with copies of an nn.LSTM's weights, and its settings, training and
        requires_grad flags.

        Parametrizations and pruning masks go into the copied weights; hooks are not copied.
        `fastlstm.convert` keeps all.

        Args:
            options: keyword-only arguments of the constructor, such as backend or zoneout. What
            a FastLSTM has beyond nn.LSTM goes along unless they name it.
        """
        if not isinstance(lstm, nn.LSTM):
            raise TypeError(f"lstm: got {type(lstm).__name__}, expected a torch.nn.LSTM")
        return rebuild(cls, lstm, **options)

    def to_torch(self) -> nn.LSTM:
        """An nn.LSTM with copies of the weights, and its settings; see `from_torch`.

        Raises:
            ValueError: this has layer_norm, recurrent_dropout, weight_dropout or zoneout.
        """
        refuse_variants(self, "to_torch")
        return rebuild(nn.LSTM, self)

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        # nn.LSTM stores this list, and with it what a parametrization or a pruning mask computed
        # last, which can be neither copied nor pickled.
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights) -> None:
        """nn.LSTM's own methods assign what they have just read by name."""

    def flatten_parameters(self) -> None:
        """Nothing to do: no kernel here needs the weights in one piece."""

    def extra_repr(self) -> str:
        more = [f"{name}={value!r}" for name, value in variants_of(self).items()]
        if self.checkpoint_every is not None:
            more.append(f"checkpoint_every={self.checkpoint_every}")
        if self.backend != "auto":
            more.append(f"backend={self.backend!r}")
        return ", ".join([super().extra_repr(), *more])

    def __setattr__(self, name, value):
        if name == "qconfig":
            tell_quantization(self)
        elif name == "checkpoint_every":
            value = check_every(value)
        elif name in PLAIN:
            value = checked(name, value)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self):
        return for_torchscript(nn.LSTM, self)


def _refuse_lengths(lengths, beside: str) -> None:
    if lengths is not None:
        raise ValueError(
            f"lengths: got a tensor beside a {beside}, which has lengths of its own; give one of "
            "them"
        )

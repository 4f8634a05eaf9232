"""Policies for sb3-contrib's RecurrentPPO on FastLSTM. Importing this module makes their names
known to RecurrentPPO::

    import fastlstm.integrations.sb3
    model = RecurrentPPO("FastMlpLstmPolicy", env)

Same parameters, results and checkpoints as the policies without "Fast" in their names. If an
episode begins within a minibatch, those run nn.LSTM in a loop over single steps; these make one
call, without the padding. A step of a rollout is `FastLSTM.step`.
"""

import functools

import numpy as np
import torch
from torch import Tensor

try:
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.buffers import (
        RecurrentDictRolloutBuffer,
        RecurrentRolloutBuffer,
    )
    from sb3_contrib.common.recurrent.policies import (
        RecurrentActorCriticCnnPolicy,
        RecurrentActorCriticPolicy,
        RecurrentMultiInputActorCriticPolicy,
    )
except ImportError as error:
    raise ImportError(
        "fastlstm.integrations.sb3 needs sb3-contrib: pip install sb3-contrib (the extra 'rl')"
    ) from error

from ..interop.convert import convert
from ..nn.lstm import FastLSTM

__all__ = ["FastCnnLstmPolicy", "FastLstmPolicy", "FastMlpLstmPolicy", "FastMultiInputLstmPolicy"]


class FastLstmPolicy:
    """A mixin for policies of sb3-contrib, to be the first base::

        class MyFastPolicy(FastLstmPolicy, MyPolicy): ...

    MyPolicy is a RecurrentActorCriticPolicy. Its LSTMs become FastLSTMs with the same Parameter
    objects, which its optimizer has, and a sequence is one call.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        convert(self, report=[])

    @staticmethod
    def _process_sequence(
        features: Tensor,
        lstm_states: tuple[Tensor, Tensor],
        episode_starts: Tensor,
        lstm: FastLSTM,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the LSTM on rows of T steps each.

        Args:
            features: (N*T, I), row by row.
            lstm_states: h and c before the first step, (L, N, H) each.
            episode_starts: (N*T,), not 0 where an episode begins.

        Returns:
            outputs (N*T, H), row by row, and the states after the last step. If the rollout buffer
            gives the lengths of the rows (`_tell_lengths`), outputs in the padding are 0, which the
            algorithm ignores, and the states are those after each row's last step.
        """
        N = lstm_states[0].shape[1]
        x = features.reshape(N, -1, lstm.input_size)
        starts = episode_starts.reshape(N, -1)
        T = starts.shape[1]
        if starts.is_cpu and (T == 1 or not starts[:, 1:].any()):
            # Only first steps are reset: reset the states before, and use faster calls without
            # masks.
            keep = (1 - starts[:, 0]).view(1, N, 1)
            lstm_states, reset_mask = tuple(keep * state for state in lstm_states), None
        else:
            reset_mask = (starts != 0).t()
        if T == 1 and reset_mask is None:
            return lstm.step(x[:, 0], lstm_states)
        lengths = getattr(episode_starts, "sequence_lengths", None)
        output, lstm_states = lstm(x.transpose(0, 1), lstm_states, lengths=lengths, reset_mask=reset_mask)
        return output.transpose(0, 1).flatten(0, 1), lstm_states


class FastMlpLstmPolicy(FastLstmPolicy, RecurrentActorCriticPolicy):
    """sb3-contrib's MlpLstmPolicy on FastLSTM, with its arguments."""


class FastCnnLstmPolicy(FastLstmPolicy, RecurrentActorCriticCnnPolicy):
    """sb3-contrib's CnnLstmPolicy on FastLSTM, with its arguments."""


class FastMultiInputLstmPolicy(FastLstmPolicy, RecurrentMultiInputActorCriticPolicy):
    """sb3-contrib's MultiInputLstmPolicy on FastLSTM, with its arguments."""


def _tell_lengths(buffer: type) -> None:
    """Makes minibatches of this class of rollout buffer have the lengths of their rows. It pads
    rows, which end with their episodes, to the longest, so that half of a minibatch may be padding.
    The lengths (N,) are an attribute `sequence_lengths` of `episode_starts`, which only this file
    uses.
    """
    get_samples = buffer._get_samples
    if hasattr(get_samples, "tells_lengths"):
        return

    @functools.wraps(get_samples)
    def _get_samples(self, batch_inds, *args, **options):
        samples = get_samples(self, batch_inds, *args, **options)
        lengths = np.diff(self.seq_start_indices, append=len(batch_inds))
        samples.episode_starts.sequence_lengths = torch.from_numpy(lengths)
        return samples

    _get_samples.tells_lengths = True
    buffer._get_samples = _get_samples


for _buffer in (RecurrentRolloutBuffer, RecurrentDictRolloutBuffer):
    _tell_lengths(_buffer)
for _policy in (FastMlpLstmPolicy, FastCnnLstmPolicy, FastMultiInputLstmPolicy):
    RecurrentPPO.policy_aliases[_policy.__name__] = _policy

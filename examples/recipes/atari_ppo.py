"""PPO in one file on pictures, with an LSTM behind the convolutions, as single files have it.

In each minibatch, the usual way takes the LSTM through the rollout in a loop over its steps, with
the states set to zero where an episode begins. The change is one call with `reset_mask`. The
environment is made up: a bar moves over a picture of 84 x 84, and which way it moves can only be
seen by remembering; the action is to say it. So is the time: the convolutions take most of it.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import nn

from examples.recipes.common import Outcome, by_turns, main
from fastlstm import FastLSTM

LIBRARY, WHAT = "", "PPO on pictures, updates"
SIZE, ACTIONS = 84, 2
DISCOUNT, LAMBDA, CLIP = 0.99, 0.95, 0.1


class Bars:
    """N pictures (1, 84, 84) with a bar that moves left or right, for episodes of 4 to 40 steps."""

    def __init__(self, N: int) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.place, self.left = torch.zeros(2, N, dtype=torch.long)
        self.way = torch.ones(N, dtype=torch.long)
        self.starts = torch.ones(N, dtype=torch.bool)

    def draw(self, low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, self.left.shape, generator=self.generator)

    def see(self) -> torch.Tensor:
        for name, new in (("place", self.draw(0, SIZE)), ("left", self.draw(4, 41))):
            setattr(self, name, torch.where(self.starts, new, getattr(self, name)))
        self.way = torch.where(self.starts, 2 * self.draw(0, 2) - 1, self.way)
        row = F.one_hot(self.place % SIZE, SIZE).float()
        return row[:, None, None].expand(-1, 1, SIZE, SIZE)

    def act(self, action: torch.Tensor) -> torch.Tensor:
        reward = ((2 * action - 1) == self.way).float()
        self.place, self.left = self.place + 2 * self.way, self.left - 1
        self.starts = self.left == 0
        return reward


class Agent(nn.Module):
    """Convolutions, an LSTM, and on it the policy and the value."""

    def __init__(self, lstm: type[nn.LSTM], H: int) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(1, 16, 8, 4),
            nn.ReLU(),
            nn.Conv2d(16, 32, 4, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 9 * 9, 256),
            nn.ReLU(),
        )
        self.lstm = lstm(256, H)
        self.head = nn.Linear(H, ACTIONS + 1)

    def remember(self, seen, state, starts):
        """seen (T, N, 256), starts (T, N) -> (T, N, H) and the state, step by step."""
        outputs = []
        for x, begins in zip(seen, starts, strict=True):
            keep = (~begins).float()[None, :, None]
            y, state = self.lstm(x[None], tuple(keep * s for s in state))
            outputs.append(y)
        return torch.cat(outputs), state

    def forward(self, pictures, state, starts):
        """pictures (T, N, 1, 84, 84) -> log probabilities, values, state."""
        seen = self.eye(pictures.flatten(0, 1)).unflatten(0, starts.shape)
        y, state = self.remember(seen, state, starts)
        out = self.head(y)
        return out[..., :ACTIONS].log_softmax(-1), out[..., ACTIONS], state


class FastAgent(Agent):
    def remember(self, seen, state, starts):
        return self.lstm(seen, state, reset_mask=starts)


def advantages(reward, value, ends, last):
    """Generalised advantage estimates, (T, N)."""
    total, found = torch.zeros_like(last), []
    for r, v, end in zip(reward.flip(0), value.flip(0), ends.flip(0), strict=True):
        total = r + DISCOUNT * last * ~end - v + DISCOUNT * LAMBDA * total * ~end
        found.append(total)
        last = v
    return torch.stack(found[::-1])


@torch.no_grad()
def collect(agent: Agent, world: Bars, state, T: int):
    """A rollout: what was seen, begun, done, thought likely and worth, and what it was worth."""
    found, before = [], state
    for _ in range(T):
        pictures, starts = world.see(), world.starts
        logp, value, state = agent(pictures[None], state, starts[None])
        u = torch.rand(starts.shape, generator=world.generator)
        action = (u > logp[0, :, 0].exp()).long()
        reward = world.act(action)
        chosen = logp[0].gather(-1, action[:, None])[:, 0]
        found.append((pictures, starts, action, chosen, value[0], reward, world.starts))
    pictures, starts, action, logp, value, reward, ends = map(torch.stack, zip(*found, strict=True))
    gain = advantages(reward, value, ends, value[-1])
    return before, (pictures, starts, action, logp, gain, gain + value), state


def update(agent: Agent, optimizer, before, batch, epochs: int, parts: int) -> None:
    """Minibatches are environments, whole rollouts of them."""
    for _ in range(epochs):
        for rows in torch.randperm(batch[1].shape[1]).chunk(parts):
            pictures, starts, action, old, gain, worth = (each[:, rows] for each in batch)
            logp, value, _ = agent(pictures, tuple(s[:, rows] for s in before), starts)
            ratio = (logp.gather(-1, action[..., None])[..., 0] - old).exp()
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            policy = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
            entropy = -(logp.exp() * logp).sum(-1).mean()
            loss = policy + 0.5 * F.mse_loss(value, worth) - 0.01 * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def run(smoke: bool, rounds: int) -> Outcome:
    T, N, H, epochs = (6, 2, 8, 1) if smoke else (128, 8, 128, 1)
    agents = [(Agent(nn.LSTM, H), ()), (FastAgent(FastLSTM, H), ())]
    (plain, _), (fast, _) = agents
    fast.load_state_dict(plain.state_dict())
    before, batch, _ = collect(plain, Bars(N), torch.zeros(2, 1, N, H).unbind(), T)

    def train(agent):
        start = {name: value.clone() for name, value in agent.state_dict().items()}

        def once():
            agent.load_state_dict(start)
            optimizer = torch.optim.Adam(agent.parameters(), 2.5e-4, eps=1e-5)
            update(agent, optimizer, before, batch, epochs, min(4, N))
            return agent(batch[0], before, batch[1])[1]

        return once

    return by_turns(train(plain), train(fast), rounds)


if __name__ == "__main__":
    sys.exit(main(run, WHAT))

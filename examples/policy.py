"""A recurrent policy learns by PPO to remember; episodes end inside the sequences.

The environment: the first step of an episode shows one of four cues, a random number of blank steps
follow, and the last step asks for the cue. Without memory one guess in four is right. Sixteen
copies run in parallel, each of which starts a new episode when one ends.

The usual implementation runs an nn.LSTM step by step in a loop, with states set to zero where an
episode begins, both to collect and in each pass of training. The fused one collects with
`FastLSTM.step` and trains with one call: `lstm(observations, state, reset_mask=starts)`. Both get
the same cues and random numbers; the environment does not depend on the actions, so that a rounding
difference cannot lead to different episodes.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import nn

from examples.common import BOTH, FAST, PLAIN, Comparison, Result, Settings, seeded
from examples.console import progress
from fastlstm import FastLSTM

CUES, SHORTEST, LONGEST = 4, 4, 12  # steps of an episode
T, N, H = 64, 16, 64
UPDATES, EPOCHS, LEARNING_RATE = 40, 4, 3e-3
DISCOUNT, LAMBDA, CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT = 0.95, 0.95, 0.2, 0.5, 0.01


class Recall:
    """N copies of the environment. An observation (N, 5) is the cue, one-hot of four, and whether
    it is asked for."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.cue, self.left = torch.zeros(2, N, dtype=torch.int64)
        self.starts = torch.ones(N, dtype=torch.bool)

    def observe(self) -> torch.Tensor:
        """Starts new episodes where one has ended; the observation."""
        cues = torch.randint(CUES, (N,), generator=self.generator)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (N,), generator=self.generator)
        self.cue = torch.where(self.starts, cues, self.cue)
        self.left = torch.where(self.starts, lengths, self.left)
        shown = F.one_hot(self.cue, CUES) * self.starts[:, None]
        asked = (self.left == 1)[:, None]
        return torch.cat([shown, asked], 1).to(torch.get_default_dtype())

    def act(self, action: torch.Tensor) -> torch.Tensor:
        """The reward (N,): 1 for the right cue where it is asked for."""
        over = self.left == 1
        reward = (over & (action == self.cue)).to(torch.get_default_dtype())
        self.left, self.starts = self.left - 1, over
        return reward


class Usual(nn.Module):
    """Policy and value on an nn.LSTM, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = self.make_lstm()
        self.head = nn.Linear(H, CUES + 1)

    def make_lstm(self):
        return nn.LSTM(CUES + 1, H)

    def step(self, x, state, starts):
        keep = (~starts).to(x.dtype)[:, None]
        y, state = self.lstm(x[None], tuple(s * keep for s in state))
        return y[0], state

    def steps(self, x, state, starts):
        outputs = []
        for x_t, starts_t in zip(x, starts, strict=True):
            y, state = self.step(x_t, state, starts_t)
            outputs.append(y)
        return torch.stack(outputs)

    def judge(self, y):
        """Log probabilities of the actions (…, 4) and the state's value (…)."""
        out = self.head(y)
        return out[..., :CUES].log_softmax(-1), out[..., CUES]


class Fused(Usual):
    """The same on a FastLSTM: one call for all steps."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        super().__init__()

    def make_lstm(self):
        return FastLSTM(CUES + 1, H, backend=self.backend)

    def step(self, x, state, starts):
        keep = (~starts).to(x.dtype)[:, None]
        return self.lstm.step(x, tuple(s * keep for s in state))

    def steps(self, x, state, starts):
        return self.lstm(x, state, reset_mask=starts)[0]


class Learner:
    """A policy with its environment, optimizer and carried state."""

    def __init__(self, model: Usual, seed: int) -> None:
        self.model, self.world = model, Recall(seed)
        self.draws = torch.Generator().manual_seed(seed + 1)
        self.optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=1e-5)
        self.state = torch.zeros(2, 1, N, H).unbind()
        self.right: list[float] = []  # of the episodes that ended in an update, the share recalled

    @torch.no_grad()
    def collect(self) -> dict[str, torch.Tensor]:
        found: dict[str, list] = {k: [] for k in ("x", "starts", "action", "logp", "value", "reward")}
        for _ in range(T):
            x, starts = self.world.observe(), self.world.starts
            y, self.state = self.model.step(x, self.state, starts)
            logp, value = self.model.judge(y)
            u = torch.rand(N, 1, generator=self.draws)
            action = (logp.exp().cumsum(-1) < u).sum(-1).clamp(max=CUES - 1)
            reward = self.world.act(action)
            logp = logp.gather(-1, action[:, None])[:, 0]
            for name, tensor in zip(found, (x, starts, action, logp, value, reward), strict=True):
                found[name].append(tensor)
        return {name: torch.stack(tensors) for name, tensors in found.items()}

    def update(self) -> float:
        """One rollout and its passes of training; the mean loss."""
        before = self.state
        batch = self.collect()
        ends = torch.cat([batch["starts"][1:], self.world.starts[None]])
        advantage = advantages(batch["reward"], batch["value"], ends)
        returns = advantage + batch["value"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        losses = []
        for _ in range(EPOCHS):
            logp, value = self.model.judge(self.model.steps(batch["x"], before, batch["starts"]))
            chosen = logp.gather(-1, batch["action"][..., None])[..., 0]
            ratio = (chosen - batch["logp"]).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            loss = -torch.min(ratio * advantage, clipped * advantage).mean()
            loss = loss + VALUE_WEIGHT * F.mse_loss(value, returns)
            loss = loss + ENTROPY_WEIGHT * (logp.exp() * logp).sum(-1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            losses.append(loss.item())
        self.right.append((batch["reward"].sum() / ends.sum().clamp(min=1)).item())
        return sum(losses) / len(losses)


def advantages(reward, value, ends):
    """Generalised advantage estimates (Schulman et al. 2016), (T, N). An episode that continues
    after the rollout is treated as ending with it."""
    after = torch.cat([value[1:], torch.zeros(1, N)]) * ~ends
    change, total, found = reward + DISCOUNT * after - value, torch.zeros(N), []
    for t in reversed(range(T)):
        total = change[t] + DISCOUNT * LAMBDA * total * ~ends[t]
        found.append(total)
    return torch.stack(found[::-1])


def run(settings: Settings) -> Result:
    learners = {
        PLAIN: Learner(seeded(settings.seed, Usual), settings.seed),
        FAST: Learner(seeded(settings.seed, lambda: Fused(settings.backend)), settings.seed),
    }
    updates = 2 if settings.smoke else settings.scaled(UPDATES)
    comparison = Comparison()
    with progress("policy", updates) as advance:
        for k in range(updates):
            for name in BOTH if k % 2 == 0 else reversed(BOTH):
                start = time.perf_counter()
                loss = learners[name].update()
                comparison.seconds[name] += time.perf_counter() - start
                comparison.losses[name].append(loss)
            advance()
    curves = {name: learner.right for name, learner in learners.items()}
    apart = max(abs(a - b) for a, b in zip(curves[PLAIN], curves[FAST], strict=True))
    return Result(
        name="policy",
        title="A recurrent policy, PPO: recall a cue; loop over nn.LSTM, one call of FastLSTM",
        comparison=comparison,
        score_name="recalled, last updates",
        score_format="{:.3f}".format,
        scores={name: sum(c[-5:]) / len(c[-5:]) for name, c in curves.items()},
        baseline=("guessing", 1 / CUES),
        draw=lambda ax: draw_curves(ax, curves),
        notes=[f"the learning curves are at most {apart:.2g} apart in any update"],
    )


def draw_curves(ax, curves) -> None:
    ax.plot(curves[PLAIN], color="tab:blue", linewidth=3.5, alpha=0.45, label=PLAIN)
    ax.plot(curves[FAST], color="tab:red", linewidth=0.9, label=FAST)
    ax.axhline(1 / CUES, color="0.7", linewidth=0.8)
    ax.set_title("Share of episodes in which the cue is recalled")
    ax.set_xlabel("update")
    ax.legend(loc="upper left", fontsize=8)

"""RecurrentPPO on a CartPole whose velocities are hidden, by turns with each policy.

All contenders start from the same seeds and have random numbers of their own, so that they see the
same episodes until a rounding turns an action over. A round is a rollout and its update of each,
one after the other, in an order that alternates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env

import fastlstm
import fastlstm.integrations.sb3
from benchmarks.common import timing

PLAIN, CONVERTED, FAST = "nn.LSTM", "converted", "fast policy"
CONTENDERS = (PLAIN, CONVERTED, FAST)
PARTS = ("update", "training")


class MaskedCartPole(gym.ObservationWrapper):
    """CartPole without its two velocities, which the policy has to remember positions for."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation):
        return observation[[0, 2]]


class Contender:
    """A training that goes on rollout by rollout, with its own stream of random numbers."""

    def __init__(self, name: str, H: int, n_envs: int, n_steps: int, seed: int) -> None:
        self.env = make_vec_env(MaskedCartPole, n_envs=n_envs, seed=seed)
        self.model = RecurrentPPO(
            "FastMlpLstmPolicy" if name == FAST else "MlpLstmPolicy",
            self.env,
            n_steps=n_steps,
            seed=seed,
            device="cpu",
            policy_kwargs={"lstm_hidden_size": H},
        )
        if name == CONVERTED:
            fastlstm.convert(self.model.policy)
        self.steps = n_envs * n_steps
        self.random = torch.get_rng_state(), np.random.get_state()
        self.train, self.model.train = self.model.train, self.timed_update
        self.update_s = 0.0

    def timed_update(self) -> None:
        start = time.perf_counter()
        self.train()
        self.update_s = time.perf_counter() - start

    def round(self) -> tuple[float, float]:
        """A rollout and its update; seconds of the update, and of both."""
        torch.set_rng_state(self.random[0])
        np.random.set_state(self.random[1])
        start = time.perf_counter()
        self.model.learn(self.steps, reset_num_timesteps=False)
        whole = time.perf_counter() - start
        self.random = torch.get_rng_state(), np.random.get_state()
        return self.update_s, whole

    def rewards(self) -> list[float]:
        """Of all episodes, environment by environment: the steps that the pole stood."""
        return [reward for each in self.env.env_method("get_episode_rewards") for reward in each]


def measure(H: int, *, n_envs: int, n_steps: int, rounds: int, threads: int, seed: int) -> Iterator[dict]:
    """A row of a results file of kind `rl` for each of `PARTS`."""
    with timing.torch_threads(threads), timing.collector_off():
        contenders = {name: Contender(name, H, n_envs, n_steps, seed) for name in CONTENDERS}
        seconds = {part: {name: [] for name in CONTENDERS} for part in PARTS}
        for k in range(rounds):
            for name in CONTENDERS if k % 2 == 0 else reversed(CONTENDERS):
                for part, took in zip(PARTS, contenders[name].round(), strict=True):
                    seconds[part][name].append(took)
    rewards = {name: contender.rewards() for name, contender in contenders.items()}
    for part in PARTS:
        yield {
            "part": part,
            "H": H,
            "n_envs": n_envs,
            "n_steps": n_steps,
            "threads": threads,
            "status": "ok",
            "times": {name: timing.spread(took) for name, took in seconds[part].items()},
            "total_s": {name: sum(took) for name, took in seconds[part].items()},
            "ratios": {
                name: {"of": PLAIN, **timing.paired_ratio(seconds[part][PLAIN], took)}
                for name, took in seconds[part].items()
                if name != PLAIN
            },
            "episodes": len(rewards[PLAIN]),
            "mean_reward": {name: float(np.mean(found)) for name, found in rewards.items()},
            "same_rewards": {name: found == rewards[PLAIN] for name, found in rewards.items()},
        }

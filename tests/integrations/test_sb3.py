"""Recurrent PPO of sb3-contrib: the fast policies beside its own, of the same parameters."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("sb3_contrib")

import gymnasium as gym
import numpy as np
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.env_util import make_vec_env

from fastlstm import FastLSTM
from fastlstm.integrations import sb3
from fastlstm.integrations.sb3 import FastLstmPolicy, FastMlpLstmPolicy

H = 12


class Recall(gym.Env):
    """Episodes of 1 to 9 steps. Seen once, at the first step, a number; its sign is asked for."""

    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 10))
        self.cue = self.np_random.uniform(-1, 1)
        return self.seen(self.cue), {}

    def seen(self, cue):
        return np.array([cue, self.left == 1, 0], np.float32)

    def step(self, action):
        self.left -= 1
        reward = float(action == (self.cue > 0))
        return self.seen(0), reward, self.left == 0, False, {}


class Pictures(Recall):
    observation_space = gym.spaces.Box(0, 255, (1, 36, 36), np.uint8)

    def seen(self, cue):
        return np.full((1, 36, 36), 255 * (cue > 0), np.uint8)


class Several(Recall):
    observation_space = gym.spaces.Dict({"a": Recall.observation_space})

    def seen(self, cue):
        return {"a": super().seen(cue)}


def ppo(policy, env=Recall, *, n_steps=24, n_epochs=2, **policy_options):
    policy_options = {"lstm_hidden_size": H, "n_lstm_layers": 1, **policy_options}
    return RecurrentPPO(
        policy,
        make_vec_env(env, n_envs=3, seed=1),
        n_steps=n_steps,
        batch_size=20,
        n_epochs=n_epochs,
        seed=5,
        device="cpu",
        policy_kwargs=policy_options,
    )


def rewards(model):
    return [(episode["r"], episode["l"]) for episode in model.ep_info_buffer]


def rows(N, T, starts):
    """An LSTM of each kind, and rows for it in float64 with episodes that begin at `starts`."""
    plain = nn.LSTM(5, H, num_layers=2).double()
    features = torch.randn(N * T, 5, dtype=torch.float64, requires_grad=True)
    states = tuple(torch.randn(2, N, H, dtype=torch.float64, requires_grad=True) for _ in range(2))
    begin = torch.zeros(N, T, dtype=torch.float64)
    for n, t in starts:
        begin[n, t] = 1
    return plain, FastLSTM.from_torch(plain), features, states, begin.flatten()


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize(
    "starts", [[], [(0, 0), (2, 0)], [(0, 3), (1, 0), (2, 5), (2, 6)]], ids=["none", "first", "any"]
)
def test_a_sequence_as_its_own(T, starts):
    starts = [(n, t) for n, t in starts if t < T]
    plain, fast, features, states, begin = rows(3, T, starts)
    results = []
    for own, lstm in ((RecurrentActorCriticPolicy, plain), (FastMlpLstmPolicy, fast)):
        output, ends = own._process_sequence(features, states, begin, lstm)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        loss = (output * weights).sum() + ends[0].sin().sum() + ends[1].cos().sum()
        inputs = features, *states, *lstm.parameters()
        results.append([output, *ends, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(results[1], results[0])
    with torch.no_grad():
        again = FastMlpLstmPolicy._process_sequence(features, states, begin, fast)
    torch.testing.assert_close([again[0], *again[1]], results[0][:3])


@pytest.mark.parametrize("starts", [[(0, 0), (2, 0)], [(0, 2), (1, 0)]], ids=["first", "any"])
def test_padding_is_left_out(starts):
    plain, fast, features, states, begin = rows(3, 7, starts)
    lengths = torch.tensor([7, 1, 4])
    exist = (torch.arange(7) < lengths[:, None]).flatten()
    expected, _ = RecurrentActorCriticPolicy._process_sequence(features, states, begin, plain)
    begin.sequence_lengths = lengths
    output, _ = FastMlpLstmPolicy._process_sequence(features, states, begin, fast)
    torch.testing.assert_close(output[exist], expected[exist])
    assert not output[~exist].any()
    gradients = [
        torch.autograd.grad(o[exist].square().sum(), [*states, *lstm.parameters()])
        for o, lstm in ((output, fast), (expected, plain))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("env", [Recall, Several])
def test_minibatches_say_their_lengths(env):
    model = ppo("FastMlpLstmPolicy" if env is Recall else "FastMultiInputLstmPolicy", env)
    model.learn(24 * 3)
    several = 0
    for samples in model.rollout_buffer.get(20):
        lengths = samples.episode_starts.sequence_lengths
        rows = samples.mask.view(len(lengths), -1)
        assert torch.equal(rows.sum(1).long(), lengths)
        assert torch.equal(rows, torch.arange(rows.shape[1]).lt(lengths[:, None]).float())
        several += len(lengths) > 1
    assert several > 1


def test_told_once():
    told = RecurrentRolloutBuffer._get_samples, RecurrentDictRolloutBuffer._get_samples
    sb3._tell_lengths(RecurrentRolloutBuffer)
    assert told == (RecurrentRolloutBuffer._get_samples, RecurrentDictRolloutBuffer._get_samples)
    assert all(method.tells_lengths for method in told)


class InDouble:
    """A policy that computes in float64, whatever the rollouts are."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.double()

    def extract_features(self, *args, **options):
        features = super().extract_features(*args, **options)
        return tuple(f.double() for f in features) if type(features) is tuple else features.double()

    def evaluate_actions(self, obs, actions, lstm_states, episode_starts):
        states = type(lstm_states)(*(tuple(s.double() for s in pair) for pair in lstm_states))
        return super().evaluate_actions(obs, actions, states, episode_starts)


class PlainInDouble(InDouble, RecurrentActorCriticPolicy):
    pass


class FastInDouble(FastLstmPolicy, InDouble, RecurrentActorCriticPolicy):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_lstm_layers": 2},
        {"enable_critic_lstm": False},
        {"shared_lstm": True, "enable_critic_lstm": False},
        {"share_features_extractor": False},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_a_minibatch_gives_the_same_gradients(options):
    """Those of PPO's loss in all but its constants, over the steps that exist."""
    model = ppo("MlpLstmPolicy", **options)
    model.learn(24 * 3)
    plain, fast = (
        policy(model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs)
        for policy in (PlainInDouble, FastInDouble)
    )
    fast.load_state_dict(plain.state_dict())
    for samples in model.rollout_buffer.get(20):
        exist = samples.mask > 0
        found = []
        for policy in (plain, fast):
            given = samples.actions.long().flatten(), samples.lstm_states, samples.episode_starts
            results = [r.flatten()[exist] for r in policy.evaluate_actions(samples.observations, *given)]
            values, log_prob, entropy = results
            loss = values.square().mean() + log_prob.mean() - entropy.square().mean()
            parameters = list(policy.parameters())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            found.append([*results, *(g for g in gradients if g is not None)])
        torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize(
    ("name", "env"),
    [
        ("MlpLstmPolicy", Recall),
        ("CnnLstmPolicy", Pictures),
        ("MultiInputLstmPolicy", Several),
    ],
)
def test_a_whole_training_has_the_same_rewards(name, env):
    both = []
    for policy in (name, f"Fast{name}"):
        model = ppo(policy, env, n_epochs=1)
        model.learn(24 * 3 * 2)
        both.append(rewards(model))
    assert both[0] == both[1] and len(both[0]) > 10
    assert isinstance(model.policy.lstm_actor, FastLSTM)
    assert isinstance(model.policy.lstm_critic, FastLSTM)
    assert type(model.policy) is sb3.RecurrentPPO.policy_aliases[f"Fast{name}"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("MlpLstmPolicy", "FastMlpLstmPolicy"), ("FastMlpLstmPolicy", "MlpLstmPolicy")],
)
def test_checkpoints_load_both_ways(one, other, tmp_path):
    model = ppo(one)
    model.learn(24 * 3)
    model.save(tmp_path / "model.zip")
    kinds = RecurrentPPO.policy_aliases
    loaded = RecurrentPPO.load(
        tmp_path / "model.zip", env=model.get_env(), custom_objects={"policy_class": kinds[other]}
    )
    assert type(loaded.policy) is kinds[other] and type(model.policy) is kinds[one]
    wanted, found = model.policy.state_dict(), loaded.policy.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    moments = [m.policy.optimizer.state_dict() for m in (model, loaded)]
    assert str(moments[0]) == str(moments[1])
    again = ppo(other)
    again.set_parameters(tmp_path / "model.zip")
    observation = Recall().reset(seed=3)[0]
    actions = [m.predict(observation, deterministic=True)[0] for m in (model, loaded, again)]
    assert actions[0] == actions[1] == actions[2]
    loaded.learn(24 * 3)


def test_copies_and_optimizers():
    policy = ppo("FastMlpLstmPolicy").policy
    held = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in policy.parameters()}
    assert type(copy.deepcopy(policy).lstm_actor) is FastLSTM

"""TorchRL's LSTMModule: ours beside it, of the same weights."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchrl")

from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torchrl.envs import GymEnv, InitTracker, StepCounter, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import LSTMModule, set_recurrent_mode

from fastlstm import FastLSTM, functional
from fastlstm.integrations import torchrl as integration
from fastlstm.integrations.torchrl import FastLSTMModule

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

I, H = 3, 6
KEYS = {"in_keys": ["x", "h", "c"], "out_keys": ["y", ("next", "h"), ("next", "c")]}
OPTIONS = [{}, {"num_layers": 2}, {"proj_size": 4, "num_layers": 2}, {"bias": False}]


def both(**options):
    """LSTMModule and ours in float64, of the same weights."""
    given = {"input_size": I, "hidden_size": H, **KEYS, **options}
    plain, fast = LSTMModule(**given).double(), FastLSTMModule(**given).double()
    fast.load_state_dict(plain.state_dict())
    return plain, fast


def batch(shape, starts, lstm, *, states=True, dtype=torch.float64):
    """Rows of steps with episodes that begin at `starts`, and states before each step, which are 0
    where one begins."""
    is_init = torch.zeros(*shape, 1, dtype=torch.bool)
    for place in starts:
        is_init[place] = True
    data = {"x": torch.randn(*shape, I, dtype=dtype, requires_grad=True), "is_init": is_init}
    if states:
        for key, width in (("h", lstm.proj_size or H), ("c", H)):
            state = torch.randn(*shape, lstm.num_layers, width, dtype=dtype)
            state = state * ~is_init.unsqueeze(-1)
            data[key] = state
    return TensorDict(data, shape)


def results(module, given):
    """What it sets, and the gradients of a sum of it."""
    with set_recurrent_mode(True):
        found = module(given.copy())
    outputs = [found[key] for key in KEYS["out_keys"]]
    loss = sum((o * torch.linspace(-1, 1, o.numel()).view_as(o)).sum() for o in outputs)
    leaves = [value for value in given.values() if value.requires_grad]
    return [*outputs, *torch.autograd.grad(loss, [*leaves, *module.parameters()])]


@pytest.fixture
def calls(monkeypatch):
    """The calls of layers with a reset_mask."""
    found = []

    def lstm(*args, **options):
        found.append(options["reset_mask"])
        return functional.lstm(*args, **options)

    monkeypatch.setattr(integration, "functional_lstm", lstm)
    return found


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("states", [True, False], ids=["states", "none"])
@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        ((3, 8), [(0, 0), (0, 3), (1, 5), (1, 6), (2, 7)]),
        ((2, 2, 5), [(0, 1, 1), (1, 0, 4)]),
        ((6,), [(2,)]),
    ],
    ids=["rows", "two-dims", "one"],
)
def test_episodes_within_the_rows(options, states, shape, starts, calls):
    plain, fast = both(**options)
    given = batch(shape, starts, plain.lstm, states=states)
    expected, found = results(plain, given), results(fast, given)
    torch.testing.assert_close(found, expected)
    assert len(calls) == fast.lstm.num_layers
    assert not calls[0][:, 0].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given["c"].fill_(0.5),  # an episode that does not begin with zeros
        lambda given: given["h"].requires_grad_(),
        lambda given: given["is_init"].fill_(False),
    ],
    ids=["states", "gradients", "no-starts"],
)
def test_what_goes_its_own_way(change, calls):
    plain, fast = both()
    given = batch((3, 8), [(0, 3), (2, 1)], plain.lstm)
    change(given)
    torch.testing.assert_close(results(fast, given), results(plain, given))
    assert not calls


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"recurrent_backend": "scan"}, marks=pytest.mark.slow),
        {"dropout": 0.5, "num_layers": 2},
    ],
)
def test_options_that_go_its_own_way(options, calls):
    plain, fast = both(**options)
    given = batch((3, 8), [(0, 3), (2, 1)], plain.lstm)
    found = []
    for module in (plain, fast):
        torch.manual_seed(0)
        found.append(results(module, given))
    torch.testing.assert_close(*found)
    assert not calls
    if "dropout" in options:
        torch.testing.assert_close(results(fast.eval(), given), results(plain.eval(), given))
        assert len(calls) == 2


def test_single_steps():
    plain, fast = both(num_layers=2)
    given = batch((5,), [(1,), (4,)], plain.lstm)
    given["h"].fill_(0.3)
    found = [module(given.copy()) for module in (plain, fast)]
    for key in KEYS["out_keys"]:
        torch.testing.assert_close(found[1][key], found[0][key])


def test_takes_an_lstm():
    lstm = nn.LSTM(I, H, batch_first=True)
    module = FastLSTMModule(lstm=lstm, **KEYS)
    assert module.lstm is lstm and type(lstm) is FastLSTM
    assert module.state_dict().keys() == LSTMModule(lstm=lstm, **KEYS).state_dict().keys()


def test_in_an_environment():
    """A rollout by single steps, and the same outputs by one call of all of it."""
    pytest.importorskip("gymnasium")
    lstm = FastLSTMModule(input_size=4, hidden_size=H, in_keys=["observation", "h", "c"], out_keys=KEYS["out_keys"])
    env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
    env.append_transform(lstm.make_tensordict_primer())
    env.append_transform(StepCounter(7))
    check_env_specs(env)

    class Choice(nn.Module):
        def forward(self, y):
            return nn.functional.one_hot((y[..., 0] > 0).long(), 2)

    policy = TensorDictSequential(lstm, TensorDictModule(Choice(), in_keys=["y"], out_keys=["action"]))
    with torch.no_grad():
        rollout = env.rollout(40, policy, break_when_any_done=False, auto_reset=True)
        assert rollout["is_init"].sum() > 3
        with set_recurrent_mode(True):
            again = lstm(rollout.select("observation", "h", "c", "is_init").unsqueeze(0))
    torch.testing.assert_close(again["y"][0], rollout["y"])

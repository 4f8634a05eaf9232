"""The same numbers from elsewhere: ONNX's own examples, Keras and flax, by the recipes of
docs/interchange.md. Each runs where its package is installed: `./run test --oracles`.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastlstm
from fastlstm import FastLSTM

# What these packages warn of when they are imported is theirs.
pytestmark = pytest.mark.filterwarnings("default", "error:fastlstm:RuntimeWarning")

N, T, I, H = 3, 5, 4, 6
PAGE = Path(__file__).parents[2] / "docs" / "interchange.md"


@pytest.fixture(scope="module")
def recipes():
    """The functions of the page, by name."""
    namespace = {"torch": torch, "np": np, "fastlstm": fastlstm, "FastLSTM": FastLSTM}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        if block.startswith("def "):
            exec(block, namespace)
    return namespace


def assert_same(got, expected):
    """In float64: the two sum in different orders, and so does a library's own activation."""
    got, expected = ([np.asarray(v) for v in part] for part in (got, expected))
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def detached(*tensors):
    return [t.detach() for t in tensors]


def onnx_examples():
    """ONNX's examples of its LSTM operator: name, attributes, inputs, expected outputs."""
    from onnx import helper
    from onnx.backend.test.case.node import lstm

    found = []

    def expect(node, inputs, outputs, name):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pairs = (node.input, inputs), (node.output, outputs)
        given, expected = (
            {k: torch.tensor(v) for k, v in zip(filter(None, names), values, strict=True)} for names, values in pairs
        )
        found.append((name, attributes, given, expected))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lstm, "expect", expect)
        for name in vars(lstm.LSTM):
            if name.startswith("export"):
                getattr(lstm.LSTM, name)()
    return found


def load_onnx(lstm, given):
    """ONNX's weights: (D, 4H, ...), gates i, o, f, c; both biases in one (D, 8H)."""

    def reordered(weight):
        i, o, f, c = weight.chunk(4)
        return torch.cat([i, f, c, o])

    with torch.no_grad():
        for d, suffix in enumerate(["_l0", "_l0_reverse"][: given["W"].shape[0]]):
            getattr(lstm, "weight_ih" + suffix).copy_(reordered(given["W"][d]))
            getattr(lstm, "weight_hh" + suffix).copy_(reordered(given["R"][d]))
            if "B" in given:
                for name, bias in zip(("bias_ih", "bias_hh"), given["B"][d].chunk(2), strict=True):
                    getattr(lstm, name + suffix).copy_(reordered(bias))


def run_onnx_example(attributes, given):
    """Y, Y_h and Y_c by a FastLSTM."""
    x, batch_first = given["X"], attributes.get("layout", 0) == 1
    direction = attributes.get("direction", b"forward").decode()
    D, both = given["W"].shape[0], direction == "bidirectional"
    lstm = FastLSTM(
        x.shape[2],
        attributes["hidden_size"],
        bias="B" in given,
        bidirectional=both,
        batch_first=batch_first,
    )
    load_onnx(lstm, given)
    time = 1 if batch_first else 0
    hx = None
    if "initial_h" in given:
        hx = tuple(given[k].transpose(0, time) for k in ("initial_h", "initial_c"))
    lengths = given.get("sequence_lens")
    # The operator can go in reverse alone.
    turned = direction == "reverse"
    y, (h_n, c_n) = lstm(x.flip(time) if turned else x, hx, lengths=lengths)
    y = (y.flip(time) if turned else y).unflatten(2, (D, -1))
    y = y if batch_first else y.transpose(1, 2)  # (N, T, D, H), (T, D, N, H)
    return {"Y": y, "Y_h": h_n.transpose(0, time), "Y_c": c_n.transpose(0, time)}


def test_onnx_own_examples():
    pytest.importorskip("onnx")
    tried = 0
    for name, attributes, given, expected in onnx_examples():
        if "P" in given:  # peepholes, which torch's LSTM has not
            continue
        results = run_onnx_example(attributes, given)
        for output, value in expected.items():
            torch.testing.assert_close(results[output].detach(), value, msg=f"{name}: {output}")
        tried += 1
    assert tried >= 3


@pytest.fixture(scope="module")
def layers():
    """keras.layers; on torch, unless KERAS_BACKEND says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras").layers


@pytest.fixture
def x():
    return torch.randn(N, T, I, dtype=torch.float64)


def keras_lstm(layers, dtype="float64", **options):
    biases = {"bias_initializer": "uniform", "unit_forget_bias": False}
    return layers.LSTM(H, dtype=dtype, **biases, **options)


def both_ways(layers, merge_mode="concat", dtype="float64", **options):
    layer = keras_lstm(layers, dtype, **options)
    return layers.Bidirectional(layer, merge_mode=merge_mode, dtype=dtype)


def numbers(value):
    """What a Keras layer gave, as NumPy arrays; of Bidirectional the states too."""
    return [
        np.asarray(v.detach() if isinstance(v, torch.Tensor) else v)
        for v in (value if isinstance(value, (tuple, list)) else [value])
    ]


@pytest.mark.parametrize("wrap", [keras_lstm, both_ways])
def test_keras_sequences_states_and_backwards(wrap, layers, x, recipes):
    both = wrap is both_ways
    layer = wrap(layers, return_sequences=True, return_state=True)
    expected = numbers(layer(x.numpy()))
    lstm = fastlstm.from_keras(*layer.get_weights(), bidirectional=both)
    assert lstm.weight_ih_l0.dtype == torch.float64
    assert_same(detached(*recipes["with_states"](lstm, x)), expected)
    shorter = wrap(layers)
    shorter(x.numpy())
    shorter.set_weights(layer.get_weights())
    assert_same(detached(recipes["last"](lstm, x)), numbers(shorter(x.numpy())))
    if not both:
        turned = wrap(layers, return_sequences=True, go_backwards=True)
        turned(x.numpy())
        turned.set_weights(layer.get_weights())
        assert_same(detached(recipes["go_backwards"](lstm, x)), numbers(turned(x.numpy())))


@pytest.mark.parametrize("wrap", [keras_lstm, both_ways])
def test_keras_masks(wrap, layers, x, recipes):
    # Beside a mask, Keras keeps states in float32 whatever the layer's dtype.
    layer, x = wrap(layers, dtype="float32", return_sequences=True), x.float()
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).bool()
    expected = numbers(layer(x.numpy(), mask=mask.numpy()))
    lstm = fastlstm.from_keras(*layer.get_weights(), bidirectional=wrap is both_ways)
    (output,) = detached(recipes["masked"](lstm, x, mask)[0])
    torch.testing.assert_close(output, torch.tensor(expected[0]))


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "ave"])
def test_keras_merge_modes(merge_mode, layers, x, recipes):
    layer = both_ways(layers, merge_mode, return_sequences=True, use_bias=False)
    expected = numbers(layer(x.numpy()))
    lstm = fastlstm.from_keras(*layer.get_weights(), bidirectional=True)
    assert_same(detached(recipes["merged"](lstm, x, merge_mode)), expected)


def test_keras_stack_and_variables(layers, x):
    stack = [both_ways(layers, return_sequences=True) for _ in range(3)]
    expected = x.numpy()
    for layer in stack:
        expected = layer(expected)
    weights = [w for layer in stack for w in layer.weights]
    lstm = fastlstm.from_keras(*weights, bidirectional=True, batch_first=False)
    assert_same(detached(lstm(x.transpose(0, 1))[0].transpose(0, 1)), numbers(expected))


@pytest.mark.parametrize("name", ["LSTMCell", "OptimizedLSTMCell"])
def test_flax_cells(name, x, recipes):
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    with jax.enable_x64(True):
        cell = getattr(linen, name)(H, param_dtype="float64", bias_init=linen.initializers.normal())
        model = linen.RNN(cell, return_carry=True)
        variables = model.init(jax.random.key(0), x.numpy())
        (c_n, h_n), output = model.apply(variables, x.numpy())
    lstm = recipes["from_flax"](variables["params"]["cell"])
    y, (h, c) = lstm(x)
    assert_same(detached(y, h[0], c[0]), [output, h_n, c_n])

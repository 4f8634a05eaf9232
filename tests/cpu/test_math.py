"""sigmoid, tanh and the 16-bit conversions of the kernels, seen through the ops.

With one step, no state and weights of 0 the tape holds the activated gate inputs; a backward whose
gates let everything through holds the conversions. test_kernels_isa.py runs this file on each
instruction set that the machine has.
"""

import numpy as np
import pytest
import torch
from op_cases import threads
from pairs import needs_library

pytestmark = needs_library

WIDTH = 4099  # units of a row: a prime, so that there are lanes left over
ULP_FLOAT32 = {"sigmoid": 3, "tanh": 3}
ULP_FLOAT64 = {"sigmoid": 3, "tanh": 3}


def activations(x):
    """sigmoid and tanh of a float32 or float64 array, as a kernel's tape has them."""
    rows = -(-len(x) // WIDTH)
    padded = torch.zeros(rows * WIDTH, dtype=x.dtype)
    padded[: len(x)] = x
    gates_x = padded.view(1, rows, 1, 1, WIDTH).expand(1, rows, 1, 4, WIDTH).flatten(3)
    states = torch.zeros(1, rows, 1, dtype=x.dtype), torch.zeros(1, rows, WIDTH, dtype=x.dtype)
    weights = torch.zeros(1, 4 * WIDTH, 1, dtype=x.dtype), torch.zeros(1, 1, WIDTH, dtype=x.dtype)
    gates = torch.ops.fastlstm.lstm_forward(gates_x, *states, *weights, None, None, True, True)[4]
    i, f, g, o = gates.unflatten(3, (4, WIDTH)).unbind(3)
    assert torch.equal(bits(i), bits(f)) and torch.equal(bits(i), bits(o))
    return i.reshape(-1)[: len(x)], g.reshape(-1)[: len(x)]


def bits(x):
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def sampled(dtype):
    """Bit patterns over the whole type, and all of them around where the code changes its ways."""
    if dtype == torch.float32:
        every = np.arange(0, 2**32, 8209, dtype=np.uint32).view(np.float32)
    else:
        every = np.arange(0, 2**64 - 2**46, 2**45 + 4099, dtype=np.uint64).view(np.float64)
    edges = np.array([0, 1, 2, 9, 10, 20, 22, 44, 87, 88, 89, 104, 708, 709, 710, 746, 1e30])
    # Where the nearest multiple of ln 2, by which the argument is reduced, changes.
    edges = np.concatenate([edges, (np.arange(0, 40) + 0.5) * np.log(2) / 2]).astype(every.dtype)
    steps = np.arange(-64, 65)
    near = (edges[:, None].view(f"i{edges.itemsize}") + steps).astype(f"i{edges.itemsize}")
    near = near[near >= 0].view(every.dtype)
    usual = np.linspace(-100, 100, 100_001).astype(every.dtype)
    tiny = (np.arange(1, 2000) * np.finfo(every.dtype).smallest_subnormal).astype(every.dtype)
    return torch.from_numpy(np.concatenate([every, near, -near, usual, tiny, -tiny]))


def oracles(x):
    """sigmoid and tanh of an array in the next wider type."""
    wide = x.numpy().astype(np.longdouble if x.dtype == torch.float64 else np.float64)
    with np.errstate(all="ignore"):
        small = np.exp(-np.abs(wide))
        sigmoid = np.where(wide >= 0, 1, small) / (1 + small)
        return sigmoid, np.tanh(wide)


def largest_ulp_error(got, expected):
    got = got.numpy()
    unit = np.spacing(np.abs(expected).astype(got.dtype)).astype(expected.dtype)
    return float(np.max(np.abs(got - expected) / unit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_in_units_of_the_last_place(dtype):
    if dtype == torch.float64 and np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double is no wider than double here")
    limits = ULP_FLOAT32 if dtype == torch.float32 else ULP_FLOAT64
    x = sampled(dtype)
    x = x[~x.isnan()]
    sigmoid, tanh = activations(x)
    expected_sigmoid, expected_tanh = oracles(x)
    # Beyond this the result is held at its value here: what is left is below the normal numbers.
    inside = (x.abs() <= (87 if dtype == torch.float32 else 708)).numpy()
    errors = {
        "sigmoid": largest_ulp_error(sigmoid[inside], expected_sigmoid[inside]),
        "tanh": largest_ulp_error(tanh, expected_tanh),
    }
    for name, error in errors.items():
        print(f"{name}, {dtype}: largest error {error:.3f} ULP")
        assert error <= limits[name], f"{name}: {error} ULP"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ranges_and_special_values(dtype):
    x = sampled(dtype)
    sigmoid, tanh = activations(x)
    nan = x.isnan()
    assert nan.any() and torch.equal(sigmoid.isnan(), nan) and torch.equal(tanh.isnan(), nan)
    assert sigmoid[~nan].min() >= 0 and sigmoid[~nan].max() == 1
    assert tanh[~nan].abs().max() == 1
    assert (tanh[x > 0] > 0).all() and (tanh[x < 0] < 0).all()
    low = x < (-87 if dtype == torch.float32 else -708)
    assert (sigmoid[low] <= 2 * torch.finfo(dtype).smallest_normal).all()

    infinities = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0], dtype=dtype)
    sigmoid, tanh = activations(infinities)
    assert sigmoid[0] == 1 and sigmoid[1] <= 2 * torch.finfo(dtype).smallest_normal
    assert sigmoid[2] == sigmoid[3] == 0.5
    assert tanh.tolist() == [1, -1, 0, 0]


def test_lanes_are_alone():
    """A number's result is the same whatever stands beside it: not a number, infinite, anything."""
    x = sampled(torch.float32)[:50_000]
    mixed = torch.stack([x, torch.full_like(x, float("nan")), x.flip(0)], 1).flatten()
    for whole, alone in zip(activations(mixed), activations(x), strict=True):
        assert torch.equal(bits(whole[::3]), bits(alone))


HALF = [torch.bfloat16, torch.float16]


def let_through(dtype, *, doutput=None, dcells=None):
    """dhidden (float32) and dc0 (`dtype`) of a backward that changes neither; (N, width) each.

    doutput (N, width) of `dtype` goes to dhidden unchanged: loaded. dcells (N, width) in float32
    goes to dc0: stored.
    """
    N, width = (doutput if dcells is None else dcells).shape
    H, P = (1, width) if dcells is None else (width, 1)

    def zeros(*shape, dtype=dtype):
        return torch.zeros(shape, dtype=dtype)

    gates = zeros(1, N, 1, 4 * H)
    gates[..., H : 2 * H] = 1
    _, _, dc0, dhidden = torch.ops.fastlstm.lstm_backward(
        None if doutput is None else doutput.unsqueeze(0),
        None,
        None,
        None if dcells is None else dcells.view(1, N, 1, H),
        None,
        zeros(1, N, P),
        zeros(1, N, H),
        zeros(1, 4 * H, P),
        zeros(1, P, H),
        zeros(1, N, 1, H, dtype=torch.float32),
        gates,
        None,
        None,
        False,
    )
    return dhidden.view(N, P), dc0.view(N, H)


def every_half(dtype):
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALF)
def test_loads_are_exact(dtype):
    numbers = every_half(dtype)
    loaded, _ = let_through(dtype, doutput=numbers.view(2**6, 2**10)[:, :1021])
    expected = numbers.float().view(2**6, 2**10)[:, :1021]
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF)
def test_packed_weights_and_states_are_exact(dtype):
    """Numbers that are widened one by one: c0, which a forget gate of 1 hands on to the cells."""
    numbers = every_half(dtype).view(1, 2**8, 2**8)
    gates_x = torch.zeros(1, 2**8, 1, 4, 2**8, dtype=dtype)
    gates_x[..., 1, :] = 80
    states = torch.zeros(1, 2**8, 1, dtype=dtype), numbers
    weights = torch.zeros(1, 2**10, 1, dtype=dtype), torch.zeros(1, 1, 2**8, dtype=dtype)
    results = torch.ops.fastlstm.lstm_forward(gates_x.flatten(3), *states, *weights, None, None, True, True)
    expected = numbers.float()
    torch.testing.assert_close(results[3][:, :, 0], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALF)
def test_stores_round_to_nearest_even(dtype):
    """Every number of the type, each midpoint of two, and the float32 numbers beside those."""
    numbers = every_half(dtype)
    numbers = numbers[numbers.isfinite()].double().sort().values
    top = numbers[-1]
    beyond = torch.tensor([top * (1 + k * torch.finfo(dtype).eps / 8) for k in range(12)])
    middle = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middle, beyond, -beyond]).float()
    specials = torch.tensor([float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 1e-45])
    x = torch.cat([x, specials])
    x = torch.cat([x, *(torch.nextafter(x, torch.tensor(s)) for s in (-torch.inf, torch.inf))])
    x = torch.nn.functional.pad(x, (0, -len(x) % 1021)).view(-1, 1021)
    with threads(1):
        _, stored = let_through(dtype, dcells=x)
    torch.testing.assert_close(stored, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    signed = (x != 0) & ~x.isnan()
    assert torch.equal(stored.signbit()[signed], x.signbit()[signed])

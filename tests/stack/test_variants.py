"""Layer normalisation, recurrent dropout, weight dropout and zoneout: their definition, against a
loop written from the papers; and what the module makes of them."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastlstm
from fastlstm import FastLSTM
from fastlstm.reference import zoneout_masks
from fastlstm.reference.variant import variant_forward
from fastlstm.weights import LayerNormWeights

ALL = {
    "layer_norm": True,
    "recurrent_dropout": 0.4,
    "weight_dropout": 0.3,
    "zoneout": (0.25, 0.5),
}


def make(*sizes, **options):
    return FastLSTM(*sizes, dtype=torch.float64, backend="reference", **options)


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def shuffled_norms(lstm):
    """Gains and biases as training leaves them."""
    for name, p in lstm.named_parameters():
        if name.startswith("ln_"):
            nn.init.normal_(p, 1.0, 0.5)
    return lstm


KNOWN = [  # counter, key, words: the known-answer tests of the generator's authors
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_generator_is_philox(counter, key, words):
    found = zoneout_masks.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(w) for w in found) == words


def scalar_philox(counter, key):
    a, b, c, d = counter
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            second >> 32 ^ b ^ key[0],
            second & 0xFFFFFFFF,
            first >> 32 ^ d ^ key[1],
            first & 0xFFFFFFFF,
        )
        key = (key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32
    return a, b, c, d


def keeps(word, units, row, t, stream, seed, p):
    """Whether each unit keeps its old value: (units,) float64 of 0 and 1, or p without a seed."""
    if seed is None:
        return torch.full((units,), p, dtype=torch.float64)
    key = seed & 0xFFFFFFFF, seed >> 32
    words = [scalar_philox((u, row, t, stream), key)[word] for u in range(units)]
    return torch.tensor([float((w >> 8) < round(p * 2**24)) for w in words], dtype=torch.float64)


def naive_direction(gates_x, h0, c0, w, m, zoneout, stream, reverse, lengths, resets, seed, first):
    """One direction, row by row and step by step: the equations as the papers have them.

    w: weight_hh, weight_hr, and the gain of W_hh h, the gain and the bias of the cell, or None.
    m: (N, P). Returns y (T, N, P), h_n (N, P), c_n (N, H), cells (T, N, H).
    """
    T, N, _ = gates_x.shape
    weight_hh, weight_hr, gain_hh, gain_c, bias_c = w
    ys, cs = [[None] * N for _ in range(T)], [[None] * N for _ in range(T)]
    hs, cells = [], []
    for n in range(N):
        h, c = h0[n], c0[n]
        L = T if lengths is None else int(lengths[n])
        for t in range(T):
            ys[t][n], cs[t][n] = torch.zeros_like(h), torch.zeros_like(c)
        for t in range(L - 1, -1, -1) if reverse else range(L):
            boundary = t + 1 if reverse else t
            if resets is not None and boundary < L and resets[boundary, n]:
                h, c = torch.zeros_like(h), torch.zeros_like(c)
            a = weight_hh @ (m[n] * h)
            if gain_hh is not None:
                a = F.layer_norm(a, a.shape, gain_hh)
            i, f, g, o = (gates_x[t, n] + a).chunk(4)
            new_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            shown = new_c if gain_c is None else F.layer_norm(new_c, c.shape, gain_c, bias_c)
            y = o.sigmoid() * shown.tanh()
            y = y if weight_hr is None else weight_hr @ y
            zh = keeps(0, len(h), n, t + first, stream, seed, zoneout[0])
            zc = keeps(1, len(c), n, t + first, stream, seed, zoneout[1])
            h, c = zh * h + (1 - zh) * y, zc * c + (1 - zc) * new_c
            ys[t][n], cs[t][n] = h, c
        hs.append(h)
        cells.append(c)
    nested = [torch.stack([torch.stack(row) for row in rows]) for rows in (ys, cs)]
    return nested[0], torch.stack(hs), torch.stack(cells), nested[1]


def naive_layer(gates_x, h0, c0, weights, m, norms, zoneout, stream, lengths, resets, seed, first=0):
    """All directions of a layer, or its reverse one where stream is odd. weights: (D, 4H, P) and
    (D, P, H) or None. norms: three of (D, ...), or None."""

    def part(x, d):
        return None if x is None else x[d]

    found = [
        naive_direction(
            gates_x[:, :, d],
            h0[d],
            c0[d],
            [part(x, d) for x in (*weights, *(norms or (None,) * 3))],
            torch.ones_like(h0[d]) if m is None else m[d],
            zoneout,
            stream + d,
            (stream + d) % 2 == 1,
            lengths,
            resets,
            seed,
            first,
        )
        for d in range(gates_x.shape[2])
    ]
    y, h_n, c_n, cells = zip(*found, strict=True)
    return torch.cat(y, -1), torch.stack(h_n), torch.stack(c_n), torch.stack(cells, 2)


def problem(T=4, N=3, D=2, H=3, P=2, projected=True, norm=True, mask=True, cuts=True):
    """The forward's tensors, as the op takes them up to `reset_mask`."""
    P = P if projected else H
    m = F.dropout(torch.ones(D, N, P, dtype=torch.float64), 0.4) if mask else None
    norms = (normal(D, 4 * H), normal(D, H), normal(D, H)) if norm else (None,) * 3
    return [
        normal(T, N, D, 4 * H),
        normal(D, N, P),
        normal(D, N, H),
        normal(D, 4 * H, P),
        normal(D, P, H) if projected else None,
        m,
        *norms,
        torch.tensor([T - 1, T, 0])[:N] if cuts else None,
        torch.rand(T, N) < 0.3 if cuts else None,
    ]


CASES = {
    "all": {},
    "all-eval": {"seed": None},
    "zoneout": {"norm": False, "mask": False, "projected": False, "cuts": False},
    "zoneout-h": {"norm": False, "mask": False, "zoneout": (0.5, 0.0)},
    "zoneout-c-eval": {"norm": False, "zoneout": (0.0, 0.3), "seed": None, "projected": False},
    "norm": {"mask": False, "zoneout": (0.0, 0.0), "D": 1, "projected": False},
    "dropout": {"norm": False, "zoneout": (0.0, 0.0), "D": 1, "cuts": False},
    "certain": {"zoneout": (1.0, 1.0), "norm": False},
    "one-step": {"T": 1, "cuts": False},
    "reverse-alone": {"D": 1, "stream": 5},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_op_and_its_gradients_are_those_of_the_papers(case):
    case = dict(case)
    seed, zoneout = case.pop("seed", 0x123456789ABCDEF), case.pop("zoneout", (0.25, 0.5))
    stream = case.pop("stream", 4)
    tensors = problem(**case)
    leaves = [
        t.requires_grad_() if t is not None and t.is_floating_point() and k != 5 else t for k, t in enumerate(tensors)
    ]
    gates_x, h0, c0, weight_hh, weight_hr, m, *norms, lengths, resets = leaves
    wanted = naive_layer(gates_x, h0, c0, (weight_hh, weight_hr), m, norms, zoneout, stream, lengths, resets, seed, 7)
    seeds = None if seed is None else torch.tensor([seed])
    options = *zoneout, stream, 7
    found = torch.ops.fastlstm.reference_variant_forward(*leaves, seeds, *options, True, True)
    inputs = [t for t in leaves if t is not None and t.requires_grad]
    weights = [torch.randn_like(w) for w in wanted]
    for a, b in zip(found, wanted, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    grads = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(r, weights, strict=False)), inputs, allow_unused=True)
        for r in (found[:4], wanted)
    ]
    for a, b, leaf in zip(*grads, inputs, strict=True):
        # What nothing depends on has no gradient in a loop.
        b = torch.zeros_like(leaf) if b is None else b
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", [None, 99], ids=["eval", "train"])
def test_second_derivatives(seed):
    tensors = problem(T=2, N=1, D=1, H=2, P=1)
    seeds = None if seed is None else torch.tensor([seed])
    tensors[5] = None
    places = [k for k, t in enumerate(tensors) if t is not None and t.is_floating_point()]

    def run(*values):
        given = list(tensors)
        for k, v in zip(places, values, strict=True):
            given[k] = v
        tail = (seeds, 0.3, 0.4, 0, 0, True, True)
        return torch.ops.fastlstm.reference_variant_forward(*given, *tail)[:4]

    leaves = [tensors[k].requires_grad_() for k in places]
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_the_reference_itself_is_differentiable():
    tensors = problem(T=2, N=1, D=1)
    leaf = tensors[3].requires_grad_()
    y = variant_forward(*tensors, torch.tensor([5]), 0.2, 0.2, 0, 0)[0]
    found = torch.ops.fastlstm.reference_variant_forward(*tensors, torch.tensor([5]), 0.2, 0.2, 0, 0, True, False)[0]
    torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), leaf)[0] for r in (y, found)))


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_opcheck(which):
    tensors = problem(T=2, N=3, D=1, H=2)
    tail = torch.tensor([3]), 0.25, 0.5, 1, 2
    given = [*tensors, *tail, True, True]
    if which == "backward":
        y, h_n, c_n, cells, gates = torch.ops.fastlstm.reference_variant_forward(*given)
        grads = [torch.randn_like(r) for r in (y, h_n, c_n, cells)]
        given = [*grads, None, *tensors[1:9], y, cells, gates, *tensors[9:], *tail, False]
        given.append([True, False, True, False, True])
    op = getattr(torch.ops.fastlstm, f"reference_variant_{which}").default
    torch.library.opcheck(op, tuple(given))


def test_compiled_it_is_one_graph_and_draws_the_same():
    weights = [(normal(20, 3), normal(20, 5), normal(20), normal(20))]
    norms = [tuple(normal(n).requires_grad_() for n in (20, 20, 5, 5))]
    options = {k: v for k, v in ALL.items() if k != "layer_norm"}

    def run(x):
        return fastlstm.functional.lstm(x, weights, layer_norm=norms, training=True, backend="reference", **options)[0]

    results = []
    for f in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(4)
        y = f(torch.ones(4, 2, 3, dtype=torch.float64))
        results.append((y, *torch.autograd.grad(y.square().sum(), norms[0])))
    torch._dynamo.reset()
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_module_is_its_layers(training):
    """Weights, layer normalisation of the input product, the order of the draws, dropout between
    layers, batch_first, lengths and resets: two bidirectional, projected layers by hand."""
    lstm = shuffled_norms(make(3, 4, 2, proj_size=2, bidirectional=True, batch_first=True, dropout=0.5, **ALL)).train(
        training
    )
    N, T, D, P = 3, 4, 2, 2
    x, hx = normal(N, T, 3), (normal(4, N, 2), normal(4, N, 4))
    lengths, resets = torch.tensor([2, 4, 3]), torch.rand(N, T) < 0.3
    torch.manual_seed(3)
    found = lstm(x, hx, lengths=lengths, reset_mask=resets, return_cell_sequence=True)

    torch.manual_seed(3)
    p = dict(lstm.named_parameters())
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    hh = {s: p[f"weight_hh_{s}"] for s in suffixes}
    if training:
        hh = {s: F.dropout(w, 0.3) for s, w in hh.items()}
    seed = int(torch.randint(2**63 - 1, (1,))) if training else None
    y, states = x.transpose(0, 1), []
    for k in range(2):
        names = suffixes[2 * k : 2 * k + 2]
        m = F.dropout(torch.ones(D, N, P, dtype=torch.float64), 0.4) if training else None
        gates_x = torch.stack(
            [
                F.layer_norm(y @ p[f"weight_ih_{s}"].t(), (16,), p[f"ln_weight_ih_{s}"])
                + p[f"bias_ih_{s}"]
                + p[f"bias_hh_{s}"]
                for s in names
            ],
            dim=2,
        )
        norms = [torch.stack([p[f"ln_{n}_{s}"] for s in names]) for n in ("weight_hh", "weight_c", "bias_c")]
        weights = (
            torch.stack([hh[s] for s in names]),
            torch.stack([p[f"weight_hr_{s}"] for s in names]),
        )
        h, c = (s[2 * k : 2 * k + 2] for s in hx)
        y, *rest = naive_layer(gates_x, h, c, weights, m, norms, (0.25, 0.5), 2 * k, lengths, resets.t(), seed)
        states.append(rest)
        if k == 0 and training:
            y = F.dropout(y, 0.5)
    wanted = [
        y.transpose(0, 1),
        (torch.cat([s[0] for s in states]), torch.cat([s[1] for s in states])),
        states[-1][2].flatten(2).transpose(0, 1),
    ]
    torch.testing.assert_close(found, tuple(wanted), rtol=1e-11, atol=1e-11)


def test_the_same_seed_gives_the_same_bits_and_another_gives_others():
    lstm = make(3, 8, 2, **ALL)
    x = normal(5, 2, 3)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        lstm.zero_grad()
        y, _ = lstm(x)
        y.sum().backward()
        runs.append((y, *(p.grad.clone() for p in lstm.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_masks_have_their_probability_and_chunks_have_the_same():
    seed = torch.tensor([12345])
    whole = zoneout_masks.zoneout_masks(seed, 40, 8, (16, 32), (0.25, 0.5), 7, 0)
    for mask, p in zip(whole, (0.25, 0.5), strict=True):
        deviation = (p * (1 - p) / mask.numel()) ** 0.5
        assert abs(mask.double().mean() - p) < 4 * deviation
    late = zoneout_masks.zoneout_masks(seed, 15, 8, (16, 32), (0.25, 0.5), 7, 25)
    assert all(torch.equal(a[25:], b) for a, b in zip(whole, late, strict=True))


def test_evaluation_without_zoneout_and_norm_is_the_plain_lstm():
    lstm = make(3, 5, recurrent_dropout=0.5, weight_dropout=0.5).eval()
    plain = nn.LSTM(3, 5, dtype=torch.float64)
    plain.load_state_dict(lstm.state_dict())
    x = normal(4, 2, 3)
    torch.testing.assert_close(lstm(x), plain(x))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_steps_and_chunks_are_the_sequence(training):
    lstm = shuffled_norms(make(3, 5, 2, layer_norm=True, zoneout=0.0 if training else 0.3))
    lstm.train(training)
    x = normal(6, 2, 3)
    whole, final = lstm(x)
    state, parts = None, []
    for chunk in x.split([3, 1, 2]):
        y, state = lstm(chunk, state)
        parts.append(y)
    torch.testing.assert_close((torch.cat(parts), state), (whole, final))
    state, parts = None, []
    for x_t in x:
        y, state = lstm.step(x_t, state)
        parts.append(y)
    torch.testing.assert_close((torch.stack(parts), state), (whole, final))


def test_parameters_state_dict_and_copies():
    torch.manual_seed(0)
    plain = nn.LSTM(3, 5, 2, bidirectional=True)
    torch.manual_seed(0)
    lstm = FastLSTM(3, 5, 2, bidirectional=True, backend="reference", **ALL)
    new = [n for n, _ in lstm.named_parameters() if n not in dict(plain.named_parameters())]
    kinds = ("ln_weight_ih", "ln_weight_hh", "ln_weight_c", "ln_bias_c")
    assert new == [f"{kind}_{s}" for s in ("l0", "l0_reverse", "l1", "l1_reverse") for kind in kinds]
    shapes = [(20,), (20,), (5,), (5,)] * 4
    assert [tuple(p.shape) for n, p in lstm.named_parameters() if n in new] == shapes
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, lstm.get_parameter(name))
    with pytest.raises(RuntimeError, match=r'Missing key.*"ln_weight_ih_l0"'):
        lstm.load_state_dict(plain.state_dict())
    assert lstm.load_state_dict(plain.state_dict(), strict=False).missing_keys == new
    nn.init.normal_(lstm.ln_bias_c_l1)
    with torch.no_grad():
        x = torch.randn(4, 2, 3)
        copies = [copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm)), FastLSTM.from_torch(lstm)]
        buffer = io.BytesIO()
        torch.save(lstm.state_dict(), buffer)
        buffer.seek(0)
        copies.append(FastLSTM(3, 5, 2, bidirectional=True, **ALL))
        copies[-1].load_state_dict(torch.load(buffer))
        for other in copies:
            other.backend = "reference"
            assert other.extra_repr() == lstm.extra_repr()
            torch.manual_seed(1)
            wanted = lstm(x)[0]
            torch.manual_seed(1)
            assert torch.equal(other(x)[0], wanted)
    lstm.reset_parameters()
    assert torch.equal(lstm.ln_bias_c_l1, torch.zeros(5))
    assert torch.equal(lstm.ln_weight_hh_l1_reverse, torch.ones(20))
    assert not [n for n, _ in FastLSTM(3, 5, bias=False, layer_norm=True).named_parameters() if "bias" in n]


def test_from_torch_and_convert_take_the_options():
    plain = nn.LSTM(3, 5, 2)
    lstm = FastLSTM.from_torch(plain, backend="reference", **ALL)
    assert (lstm.zoneout, lstm.layer_norm) == ((0.25, 0.5), True)
    assert torch.equal(lstm.ln_weight_c_l1, torch.ones(5))
    assert torch.equal(lstm.weight_hh_l1, plain.weight_hh_l1)
    model = nn.Sequential(plain, nn.LSTMCell(2, 2))
    fastlstm.convert(model, backend="reference", **ALL)
    torch.manual_seed(0)
    wanted = lstm(torch.ones(4, 2, 3))[0]
    torch.manual_seed(0)
    assert torch.equal(model[0](torch.ones(4, 2, 3))[0], wanted)
    with pytest.raises(TypeError, match="zonout"):
        fastlstm.convert(nn.LSTM(2, 2), zonout=0.1)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch")
def test_what_nn_lstm_cannot_express_is_refused_by_name():
    lstm = FastLSTM(3, 5, backend="reference", **ALL)
    for call in (lstm.to_torch, lstm.__prepare_scriptable__):
        with pytest.raises(ValueError, match=r"layer_norm=True, recurrent_dropout=0.4, weight_dr"):
            call()
    with pytest.raises(ValueError, match=r"jit.trace: nn.LSTM cannot express layer_norm"):
        torch.jit.trace(lstm, torch.ones(2, 1, 3))
    dropped = FastLSTM(3, 5, backend="reference", zoneout=0.1, recurrent_dropout=0.1)
    dropped.zoneout = dropped.recurrent_dropout = 0
    assert type(dropped.to_torch()) is nn.LSTM


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"zoneout": 1.5}, ValueError, r"zoneout: got 1.5, expected a number in \[0, 1\]"),
        ({"zoneout": (0.1, 0.2, 0.3)}, ValueError, "zoneout: got .*, expected a number or a pair"),
        ({"zoneout": "0.5"}, ValueError, "zoneout: got '0.5'"),
        ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout: got -0.1"),
        ({"weight_dropout": True}, ValueError, "weight_dropout: got True"),
        ({"layer_norm": 1}, TypeError, "layer_norm: got int, expected a bool"),
    ],
)
def test_wrong_options(options, error, text):
    with pytest.raises(error, match=text):
        FastLSTM(3, 5, **options)
    lstm, (name, value) = FastLSTM(3, 5), next(iter(options.items()))
    with pytest.raises(error, match=text):
        setattr(lstm, name, value)


def test_wrong_norms():
    lstm = FastLSTM(3, 5, backend="reference", layer_norm=True)
    lstm.ln_weight_c_l0 = nn.Parameter(torch.ones(4))
    with pytest.raises(ValueError, match=r"ln_weight_c_l0: got shape \(4,\), expected \(5,\)"):
        lstm(torch.ones(2, 1, 3))
    weights = [(torch.ones(20, 3), torch.ones(20, 5))]
    norm = LayerNormWeights(torch.ones(20), torch.ones(20), torch.ones(5))
    for norms, text in (
        ([], "got 0 entries, expected one for each of the 1"),
        ([norm._replace(weight_hh=torch.ones(5))], r"layer_norm\[0\].weight_hh: got shape \(5,\)"),
    ):
        with pytest.raises(ValueError, match=text):
            fastlstm.functional.lstm(torch.ones(2, 1, 3), weights, layer_norm=norms)


def test_function_is_the_module():
    lstm = shuffled_norms(make(3, 4, 2, **ALL))
    p = dict(lstm.named_parameters())
    weights = [[p[f"{n}_l{k}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] for k in (0, 1)]
    norms = [[p[f"ln_{n}_l{k}"] for n in ("weight_ih", "weight_hh", "weight_c", "bias_c")] for k in (0, 1)]
    x, options = normal(4, 2, 3), {k: v for k, v in ALL.items() if k != "layer_norm"}
    torch.manual_seed(5)
    wanted = lstm(x)
    torch.manual_seed(5)
    found = fastlstm.functional.lstm(x, weights, layer_norm=norms, training=True, backend="reference", **options)
    assert torch.equal(found[0], wanted[0])


def test_autocast_packed_and_no_steps():
    lstm = FastLSTM(3, 5, 2, backend="reference", dropout=0.2, **ALL)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = lstm(torch.randn(4, 2, 3))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert lstm.ln_weight_c_l0.grad.dtype == torch.float32
    lstm.eval()
    rows = [torch.randn(n, 3) for n in (2, 4, 1)]
    packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    y, lengths = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0])
    padded = nn.utils.rnn.pad_sequence(rows)
    torch.testing.assert_close(y, lstm(padded, lengths=lengths)[0])
    empty, (h_n, _) = lstm(torch.zeros(0, 2, 3))
    assert empty.shape == (0, 2, 5)
    assert torch.equal(h_n, torch.zeros(2, 2, 5))
    lstm(torch.zeros(0, 2, 3, requires_grad=True))[0].sum().backward()

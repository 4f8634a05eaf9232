"""opacus, where it is installed, gets the gradients of each sample from a FastLSTM: those of a loop
over the samples, in every form of a call."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm import FastLSTM

pytest.importorskip("opacus")
pytestmark = pytest.mark.filterwarnings("ignore")

T, N, I, H = 5, 4, 3, 6
MODULES = {
    "plain": {},
    "L2-D2-P2": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True},
    "no-bias": {"bias": False, "num_layers": 2},
    "layer-norm": {"layer_norm": True, "batch_first": True},
    "checkpoint": {"checkpoint_every": 2},
}
modules = pytest.mark.parametrize("options", MODULES.values(), ids=MODULES)


class Model(nn.Module):
    """(N, K), all results of a call in the given form; each argument has a row for each sample."""

    def __init__(self, form, **options):
        super().__init__()
        self.lstm = FastLSTM(I, H, dtype=torch.float64, **options)
        self.form = form

    def forward(self, x, lengths, mask, h0, c0):
        lstm, options, hx = self.lstm, {}, None
        first = lstm.batch_first
        if "hx" in self.form:
            hx = h0.transpose(0, 1).contiguous(), c0.transpose(0, 1).contiguous()
        if "reset" in self.form:
            options["reset_mask"] = mask if first or "nested" in self.form else mask.t()
        if "cells" in self.form:
            options["return_cell_sequence"] = True
        if "packed" in self.form:
            given = pack_padded_sequence(x if first else x.transpose(0, 1), lengths, first, enforce_sorted=False)
        elif "nested" in self.form:
            rows = [row[:n] for row, n in zip(x, lengths, strict=True)]
            given = torch.nested.nested_tensor(rows, layout=torch.jagged)
            if "reset" in self.form:
                options["reset_mask"] = mask[:, : max(lengths)]
        else:
            given = x if first else x.transpose(0, 1)
            if "lengths" in self.form:
                options["lengths"] = lengths
        if "packed" in self.form and "reset" in self.form:
            steps = int(max(lengths))
            options["reset_mask"] = mask[:, :steps] if first else mask[:, :steps].t()
        y, states, *cells = lstm(given, hx, **options)
        found = [self.rows(y), *(s.transpose(0, 1) for s in states), *map(self.rows, cells)]
        return torch.cat([f.flatten(1) for f in found], 1)

    def rows(self, sequence):
        if "packed" in self.form:
            return pad_packed_sequence(sequence, True, total_length=T)[0]
        if "nested" in self.form:
            size = sequence.shape[0], T, sequence.shape[2]
            return torch.nested.to_padded_tensor(sequence, 0.0, size)
        return sequence if self.lstm.batch_first else sequence.transpose(0, 1)


def draw(model):
    lstm = model.lstm
    D = lstm.num_layers * (2 if lstm.bidirectional else 1)
    x, h0, c0 = (torch.randn(N, *size, dtype=torch.float64) for size in ((T, I), (D, lstm.proj_size or H), (D, H)))
    lengths = torch.tensor([3, 5, 1, 4])
    return x, lengths, torch.rand(N, T) < 0.4, h0, c0


def loss(results, k=slice(None)):
    weights = torch.randn(N, results.shape[1], generator=torch.Generator().manual_seed(1))
    return (results.sin() * weights[k]).sum()


def by_loop(model, given):
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {name: [] for name in trained}
    for k in range(N):
        part = slice(k, k + 1)
        grads = torch.autograd.grad(loss(model(*(g[part] for g in given)), part), list(trained.values()))
        for name, grad in zip(trained, grads, strict=True):
            found[name].append(grad)
    return {name: torch.stack(grads) for name, grads in found.items()}


def by_opacus(model, given, scale=1.0, **options):
    from opacus import GradSampleModule

    sampled = GradSampleModule(model, **{"loss_reduction": "sum", **options})
    (loss(sampled(*given)) * scale).backward()
    found = {n: p.grad_sample for n, p in model.named_parameters() if p.requires_grad}
    sampled.remove_hooks()
    return found


FORMS = ["", "hx", "lengths", "reset", "packed", "nested", "cells"]
FORMS += ["lengths-reset-hx-cells", "packed-reset-hx-cells", "nested-reset-hx-cells"]


@modules
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_samples_are_those_of_a_loop(form, options):
    model = Model(form, **options)
    given = draw(model)
    torch.testing.assert_close(by_opacus(model, given), by_loop(model, given))


@pytest.mark.parametrize("options", [{"force_functorch": True}, {"batch_first": False}], ids=str)
def test_settings_of_the_hooks(options):
    model = Model("lengths-reset", num_layers=2)
    given = draw(model)
    expected = by_loop(model, given)
    torch.testing.assert_close(by_opacus(model, given, **options), expected)


def test_a_mean_of_losses():
    model = Model("lengths")
    given = draw(model)
    found = by_opacus(model, given, scale=1 / N, loss_reduction="mean")
    torch.testing.assert_close(found, by_loop(model, given))


def test_frozen_weights_and_inputs_with_gradients():
    model = Model("hx")
    model.lstm.weight_ih_l0.requires_grad_(False)
    x, *rest = draw(model)
    given = x.requires_grad_(), *rest
    found = by_opacus(model, given)
    assert "lstm.weight_ih_l0" not in found
    assert x.grad is not None
    torch.testing.assert_close(found, by_loop(model, given))


def test_other_layouts_and_results():
    options = {"batch_first_states": True, "return_layer_outputs": True, "num_layers": 3}

    class All(Model):
        def forward(self, x, lengths, mask, h0, c0):
            _, states, cells, outputs = self.lstm(
                x.transpose(0, 1), (h0, c0), lengths=lengths, return_cell_sequence=True
            )
            found = [*states, *(s.transpose(0, 1) for s in (cells, *outputs))]
            return torch.cat([f.flatten(1) for f in found], 1)

    model = All("", **options)
    model.lstm.requires_grad_(False)
    model.lstm.weight_hh_l1.requires_grad_(True)
    given = draw(model)
    torch.testing.assert_close(by_opacus(model, given), by_loop(model, given))


def test_two_calls_add_up():
    model = Model("lengths")
    given, other = draw(model), draw(model)
    from opacus import GradSampleModule

    sampled = GradSampleModule(model, loss_reduction="sum")
    (loss(sampled(*given)) + loss(sampled(*other))).backward()
    found = {n: p.grad_sample for n, p in model.named_parameters()}
    first, second = by_loop(model, given), by_loop(model, other)
    sampled.remove_hooks()
    torch.testing.assert_close(found, {n: first[n] + second[n] for n in first})


def test_norms_of_fast_gradient_clipping():
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model = Model("lengths-reset", num_layers=2)
    given = draw(model)
    expected = by_loop(model, given)
    clipping = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=1.0)
    loss(clipping(*given)).backward()
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in expected.values()]).norm(dim=0)
    torch.testing.assert_close(clipping.get_norm_sample(), norms)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = FastLSTM(I, H, batch_first=True), nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0]).mean(1)


def test_a_privacy_engine_takes_it():
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    model = Tagger()
    assert ModuleValidator.validate(model, strict=False) == []
    assert type(ModuleValidator.fix(model).lstm) is FastLSTM
    data = torch.utils.data.TensorDataset(torch.randn(8, T, I), torch.randint(2, (8,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.lstm.weight_hh_l0.detach().clone()
    model, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=0.1,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x, target in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert not torch.equal(model._module.lstm.weight_hh_l0, before)


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.5, "num_layers": 2}, {"zoneout": 0.1}, {"weight_dropout": 0.2}],
    ids=str,
)
def test_random_masks_are_refused(options):
    model = Model("", **options)
    with pytest.raises(ValueError, match=f"opacus: .*other masks for {next(iter(options))}="):
        by_opacus(model, draw(model))


def test_unbatched_input_is_refused():
    from opacus import GradSampleModule

    sampled = GradSampleModule(FastLSTM(I, H))
    with pytest.raises(ValueError, match=r"input: got shape .*need a batch"):
        sampled(torch.zeros(T, I))

"""FastLSTM in torch.distributed: each check runs in every one of several processes, and holds
them to one process that has the whole batch. `run` starts the processes: test_distributed.py does
so on CPUs with gloo, gpu/test_device_distributed.py on GPUs with NCCL.
"""

import copy
import datetime
import json
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fastlstm import FastLSTM, FastLSTMCell

T, N, I = 5, 4, 3


class Model(nn.Module):
    """A neighbour before and after, a layer of each kind, and a cell."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(I, 6)
        self.lstm = FastLSTM(6, 7, 2, bidirectional=True, batch_first=True, proj_size=4)
        self.cell = FastLSTMCell(8, 5)
        self.unused = FastLSTM(3, 3)
        self.head = nn.Linear(5, 2)
        del self.unused.bias_hh_l0
        self.unused.register_parameter("bias_hh_l0", None)

    def forward(self, x, lengths):
        output, (h_n, c_n) = self.lstm(self.first(x), lengths=lengths)
        h, c = self.cell(output.sum(1))
        return self.head(h), h_n.sum() + c_n.sum() + c.sum()


def problem(device, dtype=torch.float64):
    """The model, the same in every process, and the whole batch."""
    torch.manual_seed(0)
    model = Model().to(device, dtype)
    x = torch.randn(N, T, I).to(device, dtype)
    return model, x, torch.tensor([5, 0, 3, 2], device=device)


def loss_of(model, x, lengths):
    y, rest = model(x, lengths)
    return (y.square().sum() + rest) / len(x)


def mine(x):
    """This process's rows."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def expected_gradients(model, x, lengths):
    reference = copy.deepcopy(model)
    loss_of(reference, x, lengths).backward()
    return gradients(reference)


def full(gradients):
    return {name: g.full_tensor() for name, g in gradients.items()}


def check_ddp(device):
    """Equal to one process, in its first and later steps, gradients added up over two."""
    model, x, lengths = problem(device)
    expected = expected_gradients(model, x, lengths)
    for options in ({"find_unused_parameters": True}, {"static_graph": True}):
        ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(model), **options)
        for _ in range(3):
            ddp.zero_grad()
            loss_of(ddp, mine(x), mine(lengths)).backward()
            torch.testing.assert_close(gradients(ddp.module), expected)
    ddp.zero_grad()
    with ddp.no_sync():
        loss_of(ddp, mine(x), mine(lengths)).backward()
    loss_of(ddp, mine(x), mine(lengths)).backward()
    torch.testing.assert_close(gradients(ddp.module), {name: 2 * g for name, g in expected.items()})


def check_ddp_gradients_as_views_of_buckets(device):
    """Every parameter is used; the optimizer steps to the same weights everywhere."""
    model, x, lengths = problem(device)
    model.unused = nn.Identity()
    one = copy.deepcopy(model)
    ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (one, ddp)]
    for _ in range(3):
        for m, optimizer, part in zip((one, ddp), optimizers, (lambda v: v, mine), strict=True):
            optimizer.zero_grad()
            loss_of(m, part(x), part(lengths)).backward()
            optimizer.step()
    torch.testing.assert_close(dict(ddp.module.named_parameters()), dict(one.named_parameters()))


def shard(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

    for module in (model.lstm, model.cell, model):
        fully_shard(module, mesh=mesh, **options)
    return model


def mesh_of(device):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(torch.device(device).type, (dist.get_world_size(),))


def check_fsdp(device):
    """Gradients and three steps of Adam, then the whole state dict into an nn.LSTM and back."""
    from torch.distributed.checkpoint import state_dict as states

    model, x, lengths = problem(device)
    one = copy.deepcopy(model)
    sharded = shard(model, mesh_of(device))
    assert isinstance(sharded.lstm, FastLSTM)
    optimizers = [torch.optim.Adam(m.parameters()) for m in (one, sharded)]
    for _ in range(3):
        for m, optimizer, part in zip((one, sharded), optimizers, (lambda v: v, mine), strict=True):
            optimizer.zero_grad()
            loss_of(m, part(x), part(lengths)).backward()
            optimizer.step()
        torch.testing.assert_close(full(gradients(sharded)), gradients(one))
    options = states.StateDictOptions(full_state_dict=True)
    saved = states.get_model_state_dict(sharded, options=options)
    torch.testing.assert_close(saved, one.state_dict())
    plain = nn.LSTM(6, 7, 2, bidirectional=True, batch_first=True, proj_size=4)
    own = {k.removeprefix("lstm."): v for k, v in saved.items() if k.startswith("lstm.")}
    plain.load_state_dict(own)
    other, *_ = problem(device)
    other = shard(other, mesh_of(device))
    states.set_model_state_dict(other, saved, options=options)
    with torch.no_grad():
        torch.testing.assert_close(other(mine(x), mine(lengths)), sharded(mine(x), mine(lengths)), rtol=0, atol=0)


def check_fsdp_in_mixed_precision(device):
    """Weights gathered in bfloat16; a step of a stream gathers them as well."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    model, x, lengths = problem(device, torch.float32)
    low = copy.deepcopy(model).to(torch.bfloat16)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    sharded = shard(model, mesh_of(device), mp_policy=policy)
    got = sharded(mine(x), mine(lengths))
    expected = low(mine(x).bfloat16(), mine(lengths))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    sum(v.float().sum() for v in got).backward()
    assert {g.dtype for g in gradients(sharded).values()} == {torch.float32}
    from torch.distributed.fsdp import fully_shard

    stream = FastLSTM(I, 5, 2).to(device)
    plain = copy.deepcopy(stream)
    fully_shard(stream, mesh=mesh_of(device))
    state = None
    with torch.no_grad():
        for t in range(2):
            y, state = stream.step(x[:, t], state)
        torch.testing.assert_close(y, plain(x[:, :2].transpose(0, 1))[0][-1])


def check_tensor_parallel_neighbours(device):
    """The linear layers around it are split by columns and by rows; the LSTM is whole."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model, x, lengths = problem(device)
    expected = expected_gradients(model, x, lengths)
    plan = {
        "first": ColwiseParallel(output_layouts=Replicate()),
        "head": RowwiseParallel(input_layouts=Replicate()),
    }
    model = parallelize_module(model, mesh_of(device), plan)
    assert isinstance(model.first.weight, DTensor)
    loss_of(model, x, lengths).backward()
    got = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in gradients(model).items()}
    torch.testing.assert_close(got, expected)


def check_dtensors(device, **settings):
    """Inputs and weights that are DTensors themselves, each in every layout; the results' layout is
    the input's where that is by rows."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    mesh = mesh_of(device)
    torch.manual_seed(0)
    lstm = FastLSTM(I, 6, 2, bidirectional=True, batch_first=True, **settings)
    lstm = lstm.to(device, torch.float64)
    rows = 5  # not the same number for all processes
    x = torch.randn(rows, T, I).to(device, torch.float64)
    lengths = torch.tensor([5, 0, 3, 2, 4], device=device)
    resets = torch.rand(rows, T, device=device) < 0.3
    states = tuple(torch.randn(4, rows, 6).to(x) for _ in range(2))

    def results_of(module, x, states, options):
        x = x.detach().requires_grad_()
        if lstm.batch_first_states:
            states = tuple(s.transpose(0, 1) for s in states)
        output, (h_n, c_n), cells, *more = module(x, states, return_cell_sequence=True, **options)
        outputs = more[0] if more else [output]
        loss = output.sin().sum() + (h_n * c_n).sum() + cells.cos().sum()
        (loss + outputs[0].square().sum()).backward()
        found = [output, h_n, c_n, cells, *outputs, x.grad, *gradients(module).values()]
        module.zero_grad()
        return found

    options = {"lengths": lengths, "reset_mask": resets}
    expected = results_of(lstm, x, states, options)
    for layout, weights in [
        (Shard(0), Shard(0)),
        (Shard(0), None),  # plain weights, which count as replicated
        (Shard(1), Replicate()),
        (Replicate(), Shard(1)),
    ]:
        module = copy.deepcopy(lstm)
        if weights is not None:
            for name, p in list(module.named_parameters()):
                where = weights if p.dim() == 2 else Replicate()
                p = nn.Parameter(distribute_tensor(p.detach(), mesh, [where]))
                module.register_parameter(name, p)
        given = distribute_tensor(x, mesh, [layout])
        by_rows = distribute_tensor(states[0], mesh, [Shard(1)]), states[1]
        got = results_of(module, given, by_rows, options)
        assert all(isinstance(v, DTensor) for v in got[:6])
        assert got[0].placements == (layout if layout == Shard(0) else Replicate(),)
        got = [v.full_tensor() if isinstance(v, DTensor) else v for v in got]
        torch.testing.assert_close(got, expected)


def check_dtensors_with_other_results(device):
    check_dtensors(device, batch_first_states=True, return_layer_outputs=True)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
# Of torch's own: deprecated calls within it, and that nn.Linear gives FSDP a view.
TORCHS = (
    {"category": FutureWarning},
    {"message": "FSDP2-wrapped module"},
    {"message": "find_unused_parameters=True was specified"},
)


def work(rank: int, world: int, backend: str, folder: str) -> None:
    """One process: runs every check and writes what became of it."""
    torch.set_num_threads(1)
    device = "cpu"
    if backend == "nccl":
        device = f"cuda:{rank}"
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=300),
    )
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for ignored in TORCHS:
                    warnings.filterwarnings("ignore", **ignored)
                check(device)
            outcomes[name] = "ok"
        except Exception:
            outcomes[name] = traceback.format_exc()
            break  # the processes would wait for each other for ever
    Path(folder, str(rank)).write_text(json.dumps(outcomes))
    dist.destroy_process_group()


def run(backend: str, world: int, folder: Path) -> dict[str, str]:
    """Every check in `world` processes: "ok", or what failed in one of them."""
    torch.multiprocessing.spawn(work, (world, backend, str(folder)), nprocs=world)
    found = [json.loads((folder / str(rank)).read_text()) for rank in range(world)]
    worst = {}
    for name in CHECKS:
        failed = [f[name] for f in found if f.get(name, "ok") != "ok"]
        missing = any(name not in f for f in found)
        worst[name] = failed[0] if failed else "not run" if missing else "ok"
    return worst

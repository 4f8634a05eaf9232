"""Train on several processes at once: the digits, read row by row, by DDP or by FSDP2.

    torchrun --standalone --nproc-per-node 2 -m examples.distributed
    torchrun --standalone --nproc-per-node 2 -m examples.distributed --fsdp

One process for each GPU, with NCCL; without GPUs on the CPU, with gloo. Every process gets an equal
part of each batch, so that the losses are those of one process with whole batches.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from examples import digits
from examples.common import seeded, shuffled_batches
from fastlstm import FastLSTM


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.distributed", description=__doc__)
    parser.add_argument("--epochs", type=int, default=digits.EPOCHS)
    parser.add_argument("--fsdp", action="store_true", help="shard the weights, too (FSDP2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="three steps only")
    return parser.parse_args(argv)


def join() -> torch.device:
    """This process's device, after it has met the others that torchrun started."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def distributed(model: nn.Module, fsdp: bool) -> nn.Module:
    """The model as every process trains it."""
    if not fsdp:
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # In a larger model, shard each block first, whose weights are then gathered only while it
    # runs.
    mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
    return fully_shard(model, mesh=mesh)


def train(args: argparse.Namespace) -> tuple[list[float], float]:
    """The loss of every step over the whole batch, and the accuracy on the test images."""
    device = join()
    rank, world = dist.get_rank(), dist.get_world_size()
    train_set, (images, labels) = digits.load(args.seed)
    limit, epochs = (3, 1) if args.smoke else (None, args.epochs)
    size = digits.BATCH // world * world  # equal parts: the mean of their losses is the batch's
    batches = shuffled_batches(train_set, size, epochs, args.seed, limit)
    model = seeded(args.seed, lambda: digits.DigitLSTM(FastLSTM)).to(device)
    model = distributed(model, args.fsdp)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, digits.LEARNING_RATE, total_steps=len(batches))
    losses = []
    for step, batch in enumerate(batches):
        x, y = (part.chunk(world)[rank].to(device) for part in batch)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        schedule.step()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean.item())
        if rank == 0 and (step % 100 == 0 or step == len(batches) - 1):
            print(f"step {step:4}  loss {losses[-1]:.4f}", flush=True)
    model.eval()
    score = digits.accuracy(digits.predict(model, images.to(device)).cpu(), labels)
    return losses, score


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if "RANK" not in os.environ:
        print(f"start it with torchrun:\n{__doc__.split(chr(10) * 2)[1]}")
        return 2
    try:
        _, score = train(args)
        if dist.get_rank() == 0:
            how = "FSDP2" if args.fsdp else "DDP"
            backend, world = dist.get_backend(), dist.get_world_size()
            print(f"{how} on {world} processes by {backend}: test accuracy {score:.2%}")
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What test_forks.py runs in a process of its own: `python fork_cases.py NAME...`, which prints
each name when its case is over. The parent computes on two threads, then a forked child computes
the same, and both must have the same bits.
"""

import ctypes
import multiprocessing
import os
import sys
import threading

import torch
from torch.utils.data import DataLoader, Dataset

SIZES = [(3, 1, 8), (20, 1, 200), (40, 16, 256), (70, 64, 96)]  # T, N, H


def problems():
    from fastlstm import FastLSTM

    torch.manual_seed(0)
    for T, N, H in SIZES:
        yield FastLSTM(H, H, num_layers=2), torch.randn(T, N, H)
    yield FastLSTM(96, 96, layer_norm=True), torch.randn(20, 16, 96)
    yield FastLSTM(96, 96, proj_size=33, bidirectional=True), torch.randn(20, 16, 96)


def results() -> list[torch.Tensor]:
    """Of inference and training at every size, a step, and torch's own ops."""
    found = []
    for lstm, x in problems():
        with torch.no_grad():
            y, (h, c) = lstm(x)
            found += [y, h, c] if lstm.bidirectional else [y, h, c, lstm.step(x[0])[0]]
        lstm(x)[0].square().sum().backward()
        found += [p.grad for p in lstm.parameters()]
    big = torch.randn(700, 700)
    found += [big @ big, big + big, big[torch.randperm(700)], big.sum(0)]
    return [*found, torch.nn.LSTM(64, 64)(torch.randn(20, 16, 64))[0].detach()]


def check(expected) -> None:
    got = results()
    different = [k for k, (a, b) in enumerate(zip(got, expected, strict=True)) if not a.equal(b)]
    assert not different, f"in the child these results are not the same: {different}"


def in_child(work, *arguments, fork=os.fork) -> None:
    """work(*arguments) in a forked child, for whose end it waits."""
    pid = fork()
    if pid == 0:
        status = 1
        try:
            work(*arguments)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status


def twice(expected) -> None:
    """In a child of the child too, and in the parent again."""
    for _ in range(2):
        in_child(check, expected)
        check(expected)
    in_child(in_child, check, expected)


def from_a_thread(expected) -> None:
    failures = []

    def work():
        try:
            torch.set_num_threads(2)
            check(expected)
            in_child(check, expected)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures, failures


def prefork(expected) -> None:
    """Workers that serve from their first thread and from new ones, and go on to fork."""

    def serve():
        check(expected)
        from_a_thread(expected)
        twice(expected)

    in_child(serve)
    in_child(serve)


def by_c(expected) -> None:
    """As a server in C does, of which Python is not told."""
    fork = ctypes.PyDLL(None).fork
    in_child(check, expected, fork=fork)
    check(expected)


def pool(expected) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as workers:
        for _ in workers.imap_unordered(check, [expected] * 3):
            pass
    check(expected)


class Encoded(Dataset):
    """Rows that a model in the worker makes, on one thread as DataLoader sets there."""

    def __init__(self, lstm, x, expected):
        self.lstm, self.x, self.expected = lstm, x, expected

    def __len__(self):
        return 6

    def __getitem__(self, k):
        assert torch.get_num_threads() == 1
        with torch.no_grad():
            y = self.lstm(self.x)[0]
        assert y.equal(self.expected)
        self.lstm(self.x)[0].sum().backward()
        return y[k]


def loader(expected) -> None:
    lstm, x = list(problems())[2]
    with torch.no_grad():
        y = lstm(x)[0]
    data = Encoded(lstm, x, y)
    for _ in range(2):
        rows = torch.cat(list(DataLoader(data, 2, num_workers=2, multiprocessing_context="fork")))
        assert rows.equal(y[:6])
    check(expected)


def chosen(expected) -> None:
    """A thread count that the child sets itself."""

    def one():
        torch.set_num_threads(1)
        check(alone)
        torch.set_num_threads(2)
        check(expected)

    torch.set_num_threads(1)
    alone = results()
    torch.set_num_threads(2)
    check(expected)
    in_child(one)


def unknown_pool() -> None:
    """A process that was forked before the library was loaded: whether torch's threads in it are
    alive is not known, so its own children compute alone."""

    def child():
        torch.set_num_threads(1)
        alone = results()
        torch.set_num_threads(2)
        results()

        def grandchild():
            check(alone)
            assert torch.ops.fastlstm.cpu_workers() == 1

        in_child(grandchild)
        in_child(in_child, grandchild)

    assert "fastlstm" not in sys.modules
    in_child(child)


CASES = {f.__name__: f for f in (twice, from_a_thread, prefork, by_c, pool, loader, chosen)}

if __name__ == "__main__":
    torch.set_num_threads(2)
    if sys.argv[1:] == ["unknown_pool"]:
        unknown_pool()
        print("unknown_pool")
    else:
        expected = results()
        for name in sys.argv[1:]:
            CASES[name](expected)
            print(name, flush=True)  # a fork would take along what is not written yet

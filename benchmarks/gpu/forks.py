"""Child processes that need not import torch, since they are forked from one that has.

The first process of a run (cli.py) has imported it, and forks a server before it asks for the GPU
or has threads of its own. For each request the server forks a child, which calls a module's `main`,
and tells what became of it. Neither of the two opens the GPU: a child could not use it then.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from benchmarks.common.machine import ROOT
from benchmarks.gpu.drive import leash

MOST_BYTES = 1 << 16  # of a request
PRELOADED = ("fastlstm", "pytest")


class Forked:
    """A child of the server, with what `drive` asks of a `subprocess.Popen`."""

    def __init__(self, pid: int, read: int) -> None:
        self.pid, self.read = pid, read
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.read], [], [], 0)[0]:
            # Where the server is gone, its children are too.
            text = os.read(self.read, 32)
            os.close(self.read)
            self.returncode = int(text) if text else -signal.SIGKILL
        return self.returncode

    def wait(self, timeout: float) -> int:
        stop = time.time() + timeout
        while self.poll() is None:
            if time.time() > stop:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self.returncode


class Forks:
    """The server. To be made early, in a process that has no threads and no GPU."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lock = threading.Lock()
        flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.socket.close()
                serve(theirs)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()

    def preload(self) -> None:
        """Have the server import what most children need. For when the library is built."""
        self._ask({"preload": PRELOADED}, [])

    def start(self, command: Sequence[str], env: Mapping[str, str], out: BinaryIO) -> Forked:
        """Start a module's `main`. Any thread may.

        Args:
            command: the module's name and what `main` gets as its list of arguments.
            env: the whole environment. out: where what the child prints goes.
        """
        changed = {k: v for k, v in env.items() if self.environment.get(k) != v}
        changed |= {k: None for k in self.environment if k not in env}
        read, write = os.pipe()
        try:
            request = {"command": list(command), "environment": changed}
            return Forked(self._ask(request, [out.fileno(), write]), read)
        finally:
            os.close(write)

    def _ask(self, request: dict, files: list[int]) -> int:
        with self.lock:
            socket.send_fds(self.socket, [json.dumps(request).encode()], files)
            answer = self.socket.recv(32)
        if not answer:
            raise RuntimeError("the process that forks the others has ended")
        return int(answer)

    def end(self) -> None:
        """The server ends, and with it what it has started."""
        self.socket.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def serve(requests: socket.socket) -> None:
    """The server's work, until its parent is gone."""
    leash()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}  # process id -> where its status goes
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            tell_ended(running)
        if requests not in ready:
            continue
        text, files, _, _ = socket.recv_fds(requests, MOST_BYTES, 2)
        if not text:
            return
        request = json.loads(text)
        for name in request.get("preload", ()):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        pid = 0
        if "command" in request:
            out, status = files
            flush()
            pid = os.fork()
            if pid == 0:
                for file in (woken, wake, status, *running.values()):
                    os.close(file)
                requests.close()
                run(request, out)
            with contextlib.suppress(OSError):  # also here, so that it can be killed at once
                os.setpgid(pid, pid)
            os.close(out)
            running[pid] = status
        requests.send(str(pid).encode())


def tell_ended(running: dict[int, int]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            write = running.pop(pid)
            with contextlib.suppress(OSError):
                os.write(write, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(write)


def run(request: dict, out: int) -> None:
    """In a child: as `python -m` would, from the repository's root."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        leash()
        for k, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, out)):
            os.dup2(file, k)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout, sys.stderr = (os.fdopen(k, "w", 1, closefd=False) for k in (1, 2))
        os.chdir(ROOT)
        for name, value in request["environment"].items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        module, *arguments = request["command"]
        sys.argv = [module, *arguments]
        status = int(importlib.import_module(module).main(arguments) or 0)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            flush()
        os._exit(status)


def flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()

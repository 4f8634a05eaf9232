"""The tests that need a GPU: pytest over tests/gpu, in several processes that share the device.

Each test that ends is in the journal at once (tests/gpu/conftest.py writes it). A test that crashes
or hangs its process is recorded as broken, and another process goes on after it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from benchmarks.common import stand_ins
from benchmarks.gpu.drive import Outcome, drive
from benchmarks.gpu.journal import digest

PART = "tests"
# Most of a test's time is the reference on the CPU and the compilation of Triton kernels.
MOST_PROCESSES = 12
SHARD, SALT = "FASTLSTM_GPU_SHARD", "FASTLSTM_GPU_SALT"
# All passed; some failed; none was left to run.
FINISHED = (0, 1, 5)
# The files of tests in the order of their worth: what the kernels compute, then what torch makes of
# it. Others come last.
FILES = (
    "ops", "stack", "variants", "gradients", "module", "graphs", "determinism", "large", "errors",
    "autograd", "autocast", "triton", "transforms", "compile", "export", "distributed",
)  # fmt: skip
SOURCES = ("tests/gpu/*.py", "tests/support/*.py", "benchmarks/common/stand_ins.py")


def prefix(salt: str, shard: str) -> str:
    """What the keys of a shard's tests begin with; new after a change of the tests."""
    return f"{PART}@{salt} {shard} "


def place(name: str) -> int:
    """Where a file of tests comes in the order."""
    kind = name.removeprefix("test_device_").removesuffix(".py")
    return FILES.index(kind) if kind in FILES else len(FILES)


def run(context) -> str:
    """Run what is not in the journal; gives the part's state (see `plan`)."""
    salt = digest(SOURCES)
    count = 1 if context.dry else max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) * 3 // 4))
    # cuBLAS wants this, before its first call, for torch's deterministic algorithms.
    base = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", SALT: salt}
    if context.dry:
        stand_ins.prepare_environment()

    def shard(k: int) -> Outcome:
        name = f"{k}/{count}"
        return drive(
            command(context.tests),
            context.journal,
            prefix(salt, name),
            stop=context.stop,
            log=context.logs / f"tests-{k}-of-{count}.log",
            environment={**base, SHARD: name},
            finished=FINISHED,
            start=context.start,
        )

    with ThreadPoolExecutor(count) as pool:
        outcomes = list(pool.map(shard, range(1, count + 1)))
    found = results(context.journal)
    context.say(summary(found))
    for nodeid, each in found.items():
        if each["outcome"] in ("failed", "broken"):
            said = each["reason"].strip().splitlines() or [""]
            context.say(f"  {each['outcome']} {nodeid}: {said[-1][:160]}")
    for outcome in outcomes:
        if outcome.state == "failed":
            context.say(f"  pytest ended early: {outcome.why}")
            context.journal.append("note", PART, text=outcome.why)
    bad = any(each["outcome"] in ("failed", "broken") for each in found.values())
    if bad or any(outcome.state == "failed" for outcome in outcomes):
        return "failed"
    return "cut" if any(outcome.state == "time" for outcome in outcomes) else "done"


def command(expression: str | None) -> list[str]:
    line = ["pytest", "tests/gpu", "-m", "gpu", "-q", "-rN", "--tb=short"]
    line += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    # Of other packages, which may warn of one another on a machine that was not made for this. What
    # fastlstm warns of is an error still (tests/gpu/conftest.py).
    line += ["-W", "default"]
    return [*line, "-k", expression] if expression else line


def results(journal) -> dict[str, dict]:
    """By test: ``outcome`` (passed, failed, skipped, broken), ``reason``, ``seconds``; of the
    newest version of the tests that the journal has.
    """
    records = [r for r in journal.records() if r["key"].startswith(f"{PART}@")]
    if not records:
        return {}
    salt = records[-1]["key"].split(" ")[0]
    found = {}
    for record in records:
        start, _, nodeid = record["key"].split(" ", 2)
        if start != salt:
            continue
        if record["kind"] == "broken":
            found[nodeid] = {"outcome": "broken", "reason": record["reason"], "seconds": 0.0}
        elif record["kind"] == "test":
            found[nodeid] = {k: record[k] for k in ("outcome", "reason", "seconds")}
    return found


def summary(found: dict[str, dict]) -> str:
    counts = {}
    for each in found.values():
        counts[each["outcome"]] = counts.get(each["outcome"], 0) + 1
    return ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "no test ended"

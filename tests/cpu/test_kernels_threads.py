"""Any number of threads: the same results within the budget, and bit for bit from run to run."""

import multiprocessing
import threading

import pytest
import torch
from op_cases import Case, backward, by_id, check, draw, forward, tape_of, threads, to
from pairs import needs_library

pytestmark = needs_library

COUNTS = [1, 2, 3, 5]  # more than the machine has cores, too: a worker that waits gives way

# So much work a step that units, rows, or both are shared out, with shares that are not even.
CASES = [
    Case("recurrence", T=17, N=7, H=129, dtype=torch.float32, masks="random"),
    Case("recurrence", T=6, N=2, H=257, dtype=torch.bfloat16, D=2),
    Case("recurrence", T=9, N=13, H=130, P=67, dtype=torch.float64, D=2, masks="random"),
    Case("recurrence", T=5, N=101, H=65, dtype=torch.float32, masks="lengths"),
    Case("recurrence", T=40, N=3, H=200, P=101, dtype=torch.float32),
    Case("recurrence", T=20, N=3, H=264, P=131, dtype=torch.float16, wide=True, D=2),
    Case("layer", T=17, N=7, I=5, H=129, dtype=torch.float32, D=2, masks="random"),
    Case("layer", T=9, N=33, I=17, H=96, P=40, dtype=torch.float64, masks="resets"),
    Case("layer", T=40, N=64, I=3, H=64, dtype=torch.bfloat16, wide=True),
]


def drawn(case):
    """Arguments, gradients and tape of a case, in its dtype."""
    dtype = torch.float64 if case.dtype == torch.float64 else None
    arguments, gradients = (to(dtype, part) for part in draw(case))
    return arguments, gradients, tape_of(forward(case, "lstm", arguments))


def run(case, problem):
    arguments, gradients, tape = problem
    return forward(case, "lstm", arguments) | backward(case, "lstm", arguments, gradients, tape)


def differing(got, expected):
    """The names of the results that are not bit for bit the same."""
    return [name for name in expected if not torch.equal(got[name], expected[name])]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(**by_id(CASES))
def test_any_number_of_threads(case, count):
    with threads(count):
        check(case)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(**by_id(CASES))
def test_bitwise_from_run_to_run(case, count):
    problem = drawn(case)
    with threads(count):
        first = run(case, problem)
        for _ in range(4):
            assert not differing(run(case, problem), first)


def test_the_thread_count_can_change_between_forward_and_backward():
    for case in CASES[:3]:
        problem = drawn(case)
        with threads(3):
            expected = run(case, problem)
            results = forward(case, "lstm", problem[0])
        with threads(2):
            run(case, problem)
        with threads(3):
            results |= backward(case, "lstm", *problem)
        assert not differing(results, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_calls_from_many_threads(count):
    """Six Python threads at once, each with a problem of its own size, as a server runs a model."""
    cases = CASES[:6]
    problems = [drawn(case) for case in cases]
    with threads(count):
        expected = [run(*both) for both in zip(cases, problems, strict=True)]
        failures, start = [], threading.Barrier(len(cases))

        def work(k):
            torch.set_num_threads(count)  # a setting of each thread's own OpenMP pool
            start.wait()
            for turn in range(6):
                names = differing(run(cases[k], problems[k]), expected[k])
                if names:
                    failures.append((str(cases[k]), turn, names))

        workers = [threading.Thread(target=work, args=(k,)) for k in range(len(cases))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not failures


def test_calls_of_rising_and_falling_sizes():
    """One thread's scratch memory serves calls of all sizes and types in any order."""
    problems = [(case, drawn(case)) for case in CASES]
    expected = [run(case, problem) for case, problem in problems]
    for order in (range(len(CASES)), reversed(range(len(CASES)))):
        for k in order:
            case, problem = problems[k]
            assert not differing(run(case, problem), expected[k])


def _in_child(case, problem, expected, queue):
    # As a worker of torch's DataLoader does: the parent's OpenMP threads are not there any more.
    torch.set_num_threads(1)
    queue.put(differing(run(case, problem), expected))


# Python 3.12 warns of any fork beside threads, which is what is tested here.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=str)
def test_a_fork_after_use_works_on_one_thread(case):
    problem = drawn(case)
    run(case, problem)
    with threads(1):
        expected = run(case, problem)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(case, problem, expected, queue))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        child.join()
        pytest.fail("the child hangs")
    assert child.exitcode == 0
    assert queue.get() == []

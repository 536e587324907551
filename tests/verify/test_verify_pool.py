"""Workers: limits of time and memory, deaths, threads, and nobody left behind."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mpo_jax.verify import maths
from mpo_jax.verify.verdict import RIGHT, UNDECIDED

pytestmark = pytest.mark.slow

BOMBS = [
    *(
        "9^{9^{9^9}}",
        "9^{9^{9^{9^9}}}-1",
        "(1+x)^{100000}",
        "(((1+x)^{99}+y)^{99}+z)^{99}",
    ),
    *(r"\sin(10^{10^{10}})", "e^{e^{e^{e^{e}}}}", "x^{2}" * 500, "(1000!)!", "5!!!!"),
    *("1000000!+x", r"\binom{10^9}{10^8}+x", "(1+x+y+z)^{60}(1-x-y)^{60}", "1" * 8000),
    *(
        r"\frac{1}{" * 39 + "2" + "}" * 39,
        r"\sqrt{1+" * 39 + "x" + "}" * 39,
        "x+" * 4000 + "1",
    ),
    *(
        "(" * 4000 + "1" + ")" * 4000,
        r"\sum_{i=1}^{10^{10}} i",
        "2^{2^{2^{2^{2^2}}}}",
        "5" + "!" * 39,
    ),
    *(
        r"\{" + "1," * 2000 + r"1\}",
        "x=" * 2000 + "1",
        r"\begin{pmatrix}" + "x^{99}&" * 900 + r"1\end{pmatrix}",
    ),
]


def resident(pids: list[int]) -> int:
    """Bytes of memory that processes hold, shared pages counted once."""
    total = 0
    for pid in pids:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        line = next(line for line in text.splitlines() if line.startswith("Pss:"))
        total += int(line.split()[1]) << 10
    return total


def until(condition, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return state.split()[0] != "Z"


@pytest.fixture(scope="module")
def mathematics():
    with maths.Mathematics(2) as made:
        assert made.check("1", "1").right
        yield made


def test_bombs_end_by_the_limits_alone_also_in_a_thread(mathematics):
    """No guard stands before them here. Limits are of processor time, so a machine that
    is busy with other things takes longer."""
    before, peak, found = resident([os.getpid(), *mathematics.pids()]), [0], []
    start = time.monotonic()

    def ask() -> None:
        found.extend(mathematics.check_many([(bomb, "7x+1") for bomb in BOMBS]))

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        try:
            peak[0] = max(peak[0], resident([os.getpid(), *mathematics.pids()]))
        except (OSError, StopIteration):
            continue  # a worker ended while it was looked at
        time.sleep(0.01)
    assert time.monotonic() - start < 180
    assert peak[0] - before < 300 << 20
    assert len(found) == len(BOMBS)
    assert not any(verdict.right for verdict in found)
    assert mathematics.check("1/2", "0.5").right


def test_each_bomb_ends_in_its_time(mathematics):
    for bomb in BOMBS[:8]:
        start = time.monotonic()
        verdict = mathematics.check(bomb, "7x+1")
        assert verdict.outcome == UNDECIDED
        # Ten times 0.5 s by the clock, and another worker's start.
        assert time.monotonic() - start < 60, bomb


def test_time_and_memory_are_told_apart():
    with maths.Mathematics(1, seconds=20, memory=16 << 20) as small:
        assert small.check("2^{1000000000}+x", "7+x").rule == "maths_memory"
        assert small.check("x+1", "1+x").right
    with maths.Mathematics(1, seconds=0.05) as hasty:
        assert hasty.check("9^{9^{9^9}}", "7x").rule == "maths_timeout"
        assert hasty.check("x", "x").right


def test_the_limit_is_of_processor_time():
    def used() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return children.ru_utime + children.ru_stime

    before = used()
    with maths.Mathematics(1, seconds=1.5) as pool:
        assert pool.check("9^{9^{9^9}}", "7x").rule == "maths_timeout"
    assert used() - before < 4  # the imports among it; the clock's limit is 15 s


def test_a_killed_worker_loses_its_item_alone():
    # Long work beside short: the long one's worker is killed.
    with maths.Mathematics(2, seconds=30) as pool:
        assert pool.check("1", "1").right
        mother, *children = pool.pids()
        pairs = [("9^{9^{9^9}}", "7x+1"), *[(f"{i}+x", f"x+{i}") for i in range(200)]]
        verdicts = []
        thread = threading.Thread(
            target=lambda: verdicts.extend(pool.check_many(pairs))
        )
        thread.start()

        def busy() -> list[int]:
            states = {
                pid: pathlib.Path(f"/proc/{pid}/stat").read_text() for pid in children
            }
            ticks = {
                pid: int(text.rpartition(")")[2].split()[11])
                for pid, text in states.items()
            }
            return [pid for pid, used in ticks.items() if used > 80]

        assert until(busy)
        os.kill(busy()[0], signal.SIGKILL)
        thread.join(60)
        assert verdicts[0].rule == "maths_error"
        assert [v.outcome for v in verdicts[1:]] == [RIGHT] * 200
        assert until(lambda: len(pool.pids()) == 3)
        assert pool.pids()[0] == mother


def test_workers_killed_between_answers_lose_nothing():
    with maths.Mathematics(2) as pool:
        assert pool.check("1", "1").right
        for _ in range(5):
            for pid in pool.pids()[1:]:
                os.kill(pid, signal.SIGKILL)
            verdicts = pool.check_many([(f"{i}", f"{i}") for i in range(20)])
            assert all(verdict.right for verdict in verdicts)


def test_children_go_on_without_the_first_and_are_replaced_when_they_go():
    with maths.Mathematics(2) as pool:
        assert pool.check("1", "1").right
        before = pool.pids()
        os.kill(before[0], signal.SIGKILL)
        pairs = [(f"{i}", f"{i}") for i in range(50)]
        assert all(verdict.right for verdict in pool.check_many(pairs))
        for pid in before[1:]:
            os.kill(pid, signal.SIGKILL)
        assert all(verdict.right for verdict in pool.check_many(pairs))
        assert until(lambda: len(pool.pids()) == 3)
        assert not set(before) & set(pool.pids())
        assert until(lambda: not any(map(alive, before)))


def test_a_socket_is_closed_when_nobody_asks_on_it_any_more():
    ours, theirs = socket.socketpair()
    line = maths._Line(ours)
    with theirs, concurrent.futures.ThreadPoolExecutor(2) as threads:

        def ask() -> None:
            with line.used:
                began.set()
                try:
                    line.read(60)
                finally:
                    held.append(ours.fileno())  # its number would go to another

        began, held = threading.Event(), []
        asking = threads.submit(ask)
        assert began.wait(60)
        line.close()
        with pytest.raises(ConnectionError):
            asking.result()
        assert held[0] != -1 and ours.fileno() == -1


def test_workers_are_renewed():
    with maths.Mathematics(1, renew=5) as pool:
        seen = set()
        for i in range(20):
            assert pool.check(f"x+{i}", f"{i}+x").right
            seen.update(pool.pids()[1:])
        assert len(seen) >= 3


def test_close_ends_all():
    pool = maths.Mathematics(2)
    assert pool.pids() == []
    assert pool.check("1", "1").right
    assert until(lambda: len(pool.pids()) == 3)
    pids = pool.pids()
    pool.close()
    assert not any(map(alive, pids))
    with pytest.raises(ValueError, match="closed"):
        pool.check("1", "1")
    with pytest.raises(ValueError, match="closed"):
        pool.check_many([("1", "1")])


def test_workers_go_when_the_caller_is_killed(root):
    code = (
        "import threading; from mpo_jax.verify import maths\n"
        "m = maths.Mathematics(2, seconds=2); m.check('1', '1')\n"
        "threading.Thread(target=m.check, args=('9^{9^{9^9}}', '7x+1')).start()\n"
        "while len(m.pids()) < 3: threading.Event().wait(0.01)\n"
        "print(*m.pids(), flush=True); threading.Event().wait()"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    pids = [int(word) for word in caller.stdout.readline().split()]
    assert len(pids) == 3 and all(map(alive, pids))
    time.sleep(0.3)
    caller.kill()
    caller.wait()
    caller.stdout.close()
    assert until(lambda: not any(map(alive, pids)))


def test_a_failing_start_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with maths.Mathematics(1) as pool, pytest.raises(RuntimeError, match="math-verify"):
        pool.check("1", "1")


@pytest.mark.parametrize(
    "name, value", [("workers", 0), ("seconds", 0), ("memory", 1), ("renew", 0)]
)
def test_bounds_of_arguments(name, value):
    with pytest.raises(ValueError, match=name):
        maths.Mathematics(**{name: value})

"""A thread ahead: same order, bounded, errors as they are, no thread left behind."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax.utils import background


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "mpo-ahead"]


@given(st.lists(st.integers()), st.integers(0, 3))
@settings(deadline=None)
def test_order_and_values_do_not_depend_on_depth(items, depth):
    with background.Ahead(iter(items), lambda x: x * 2, depth=depth) as ahead:
        assert list(ahead) == [x * 2 for x in items]
        assert list(ahead) == []  # the end stays the end


@pytest.mark.parametrize("depth", [1, 3])
def test_it_works_ahead_but_not_further_than_depth(depth):
    made, release = [], threading.Semaphore(0)

    def items():
        for n in range(20):
            release.acquire()
            yield n

    with background.Ahead(items(), lambda n: made.append(n) or n, depth=depth) as ahead:
        for _ in range(20):
            release.release()
        deadline = time.time() + 120
        while len(made) < depth + 1 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)  # time enough to overrun
        assert len(made) == depth + 1  # and one in the making
        assert next(ahead) == 0
        assert list(ahead) == list(range(1, 20))


def test_without_depth_nothing_is_made_ahead_and_no_thread_runs():
    made = []
    with background.Ahead(iter(range(9)), made.append, depth=0) as ahead:
        assert made == [] and not threads()
        next(ahead)
        assert made == [0]


class OwnError(Exception):
    pass


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("where", ["iterator", "function"])
def test_an_error_arrives_in_its_place_with_its_message(depth, where):
    def items():
        yield 1
        yield 2
        if where == "iterator":
            raise OwnError("record 3 of a.jsonl is gone")
        yield 3

    def apply(x):
        if x == 3:
            raise OwnError("record 3 of a.jsonl is gone")
        return x

    with background.Ahead(items(), apply, depth=depth) as ahead:
        assert [next(ahead), next(ahead)] == [1, 2]
        with pytest.raises(OwnError, match="^record 3 of a.jsonl is gone$"):
            next(ahead)
        with pytest.raises(StopIteration):
            next(ahead)


@pytest.mark.parametrize("take", [0, 2])
def test_close_stops_the_thread_and_the_iterator_is_left_alone(take):
    asked = []

    def items():
        n = 0
        while True:
            asked.append(n)
            yield n
            n += 1

    ahead = background.Ahead(items(), lambda n: n, depth=2)
    assert [next(ahead) for _ in range(take)] == list(range(take))
    ahead.close()
    ahead.close()
    assert not threads()
    count = len(asked)
    time.sleep(0.05)
    assert len(asked) == count <= take + 3
    with pytest.raises(StopIteration):
        next(ahead)


def test_a_hanging_loader_does_not_hold_the_end_up(caplog):
    hang = threading.Event()

    def items():
        hang.wait(30)
        yield 1

    ahead = background.Ahead(items(), lambda n: n, depth=1)
    start = time.time()
    ahead.close(timeout=0.1)
    assert time.time() - start < 5
    hang.set()


def test_time_in_the_function_is_counted():
    with background.Ahead(iter(range(3)), lambda n: time.sleep(0.02), depth=2) as a:
        list(a)
        assert a.busy_s >= 0.06


def test_depth_is_checked():
    with pytest.raises(ValueError, match="depth=-1"):
        background.Ahead(iter(()), lambda n: n, depth=-1)

"""Saving by time, agreed among processes, by a clock that is the test's."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mpo_jax import config
from mpo_jax.checkpoint import schedule
from mpo_jax.utils import runtime


def run(*, steps, first=0, step_s=10.0, **fields):
    """Steps after which a save was due, and how often the clock was read."""
    seconds, read = 1000.0, []

    def now():
        read.append(seconds)
        return seconds

    made = schedule.Schedule(config.CheckpointConfig(**fields), now=now)
    due = []
    for step in range(first + 1, first + steps + 1):
        seconds += step_s
        if made.due(step):
            due.append(step)
    return due, len(read)


def test_by_steps_alone_no_time_is_asked_for():
    due, read = run(steps=10, every_steps=4, step_s=1e6)
    assert due == [4, 8] and read == 3


def test_by_minutes():
    due, _ = run(steps=20, every_steps=100, every_minutes=1)
    assert due == [6, 12, 18]


def test_each_save_begins_the_time_anew():
    due, _ = run(steps=25, every_steps=10, every_minutes=1)
    assert due == [6, 10, 16, 20]
    due, _ = run(steps=9, every_steps=10, every_minutes=1, first=7)
    assert due == [10, 16]


def test_a_fraction_of_a_minute():
    due, _ = run(steps=4, every_steps=100, every_minutes=0.25)
    assert due == [2, 4]


def test_several_processes_ask_every_tenth_step(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(runtime, "agreed", lambda x: asked.append(bool(x)) or x)
    due, _ = run(steps=45, every_steps=25, every_minutes=2)
    # 12 steps are 2 minutes: due at the next tenth, or by steps before.
    assert due == [20, 25, 40]
    assert asked == [False, True, False, True]


def test_other_processes_take_the_firsts_word(monkeypatch):
    words, own = iter([False, True, False]), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def agreed(value):
        own.append(bool(value))
        return np.array(next(words))

    monkeypatch.setattr(runtime, "agreed", agreed)
    due, _ = run(steps=39, every_steps=10**6, every_minutes=0.1)
    assert due == [20]
    assert own == [True, True, True]  # its own clock says so each time


@pytest.mark.parametrize("bad", [-1.0, float("inf"), float("nan")])
def test_the_field_is_checked(bad):
    cfg = config.RunConfig()
    cfg.model.path = cfg.data.meta = "x"
    cfg.checkpoint.every_minutes = bad
    with pytest.raises(ValueError, match="checkpoint.every_minutes"):
        cfg.validate()

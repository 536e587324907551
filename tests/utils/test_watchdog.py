"""Silence ends a run, a word does not; what is said stands in the message."""

from __future__ import annotations

import threading
import time

from mpo_jax.utils import progress, watchdog


def test_silence_ends_the_run_and_is_explained(tmp_path):
    ended, told = threading.Event(), []

    def end(message: str) -> None:
        told.append(message)
        ended.set()

    path = tmp_path / "stacks" / "host_0.txt"
    dog = watchdog.Watchdog(2, stacks=path, end=end)  # a busy machine sleeps longer
    began = time.monotonic()
    while time.monotonic() < began + 3:
        dog.beat("batch 5")
        time.sleep(0.01)
    assert not told
    assert ended.wait(30)
    dog.close()
    assert "hosts.stuck_minutes" in told[0] and "waited for batch 5" in told[0]
    text = path.read_text("utf-8")
    assert "waiting for batch 5" in text
    assert "test_silence_ends_the_run_and_is_explained" in text


def test_what_a_bar_shows_is_a_sign_of_life(tmp_path, monkeypatch):
    """Every stage with a bar is watched; a bar that is drawn again is no progress."""
    beats = []
    monkeypatch.setattr(watchdog.Watchdog, "beat", lambda *_: beats.append(1))
    with watchdog.armed(tmp_path, minutes=1), progress.bar() as bar:
        task = bar.add_task("pairs", total=3)
        bar.update(task, total=4)
        assert not beats
        bar.advance(task)
        bar.update(task, completed=3)
        assert len(beats) == 2


class Others:
    """Another process of two, which tells how often it came on, and waits itself."""

    number = 0

    def __init__(self, count: int, waited_s: float):
        self.values = {"count": count, "waited_s": waited_s}
        self.said: list[dict[str, float]] = []

    def say(self, name: str, values: dict[str, float]) -> None:
        self.said.append(values)

    def heard(self, name: str) -> dict[int, dict[str, float]]:
        return {0: self.said[-1], 1: self.values}


def test_who_has_waited_longest_speaks_first(tmp_path):
    """The others wait in a collective for the same reason, and know it less well."""
    found = {}
    for name, waited_s in (("longest", 0.0), ("not", 1e9)):
        ended = threading.Event()
        dog = watchdog.Watchdog(
            1.0,
            stacks=tmp_path / name,
            end=lambda _, e=ended: e.set(),
            others=Others(0, waited_s),
        )
        began = time.monotonic()
        assert ended.wait(60)
        found[name] = time.monotonic() - began
        dog.close()
    assert found["longest"] > 1.0 and found["not"] > 1.3


def test_none_is_armed_for_0_minutes(tmp_path):
    with watchdog.armed(tmp_path, minutes=0):
        watchdog.beat("anything")
        assert not any(t.name == "mpo-watchdog" for t in threading.enumerate())
    with watchdog.armed(tmp_path, minutes=1):
        watchdog.beat("anything")
        assert any(t.name == "mpo-watchdog" for t in threading.enumerate())
    assert not any(t.name == "mpo-watchdog" for t in threading.enumerate())

"""Silence ends a run, a word does not; what is said stands in the message."""

from __future__ import annotations

import threading
import time

from mpo_jax.utils import watchdog


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


def test_none_is_armed_for_0_minutes(tmp_path):
    with watchdog.armed(tmp_path, minutes=0):
        watchdog.beat("anything")
        assert not any(t.name == "mpo-watchdog" for t in threading.enumerate())
    with watchdog.armed(tmp_path, minutes=1):
        watchdog.beat("anything")
        assert any(t.name == "mpo-watchdog" for t in threading.enumerate())
    assert not any(t.name == "mpo-watchdog" for t in threading.enumerate())

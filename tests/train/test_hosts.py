"""The first process compares what hosts say; memory is that of the fullest device."""

from __future__ import annotations

import types

import pytest

from mpo_jax.train import hosts


class Others:
    """The other processes, as one sees them."""

    def __init__(self, number: int, lines: dict[int, dict[str, float]]):
        self.number, self._lines, self.said = number, lines, []

    def say(self, name, values):
        self.said.append((name, values))

    def heard(self, name):
        assert name == "line"
        return self._lines


@pytest.fixture
def among(monkeypatch):
    def among(others):
        monkeypatch.setattr(hosts.peers, "others", lambda: others)
        return others

    return among


LINE = {"loss": 1.0, "time/step_s": 2.0, "time/input_wait_s": 0.1}


def test_the_slowest_host_is_named(among):
    among(
        Others(
            0,
            {
                1: {"time/step_s": 2.1, "time/input_wait_s": 1.5},
                2: {"time/step_s": 2.2, "time/input_wait_s": 0.0},
            },
        )
    )
    assert hosts.compared(LINE) == {
        "hosts/step_s_median": 2.1,
        "hosts/step_s_slowest": 2.2,
        "hosts/step_s_slowest_host": 2.0,
        "hosts/input_wait_s_median": 0.1,
        "hosts/input_wait_s_slowest": 1.5,
        "hosts/input_wait_s_slowest_host": 1.0,
    }


def test_others_say_theirs_and_write_nothing(among):
    others = among(Others(1, {}))
    assert hosts.compared(LINE) == {}
    assert others.said == [("line", {"time/step_s": 2.0, "time/input_wait_s": 0.1})]


def test_alone_there_is_nothing_to_compare(among):
    among(None)
    assert hosts.compared(LINE) == {}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    def device(peak, limit):
        stats = {"peak_bytes_in_use": peak * 2**30, "bytes_limit": limit * 2**30}
        return types.SimpleNamespace(memory_stats=lambda: stats)

    monkeypatch.setattr(
        hosts.jax, "local_devices", lambda: [device(3, 16), device(5, 16)]
    )
    assert hosts.memory() == {"memory/peak_gib": 5.0, "memory/limit_gib": 16.0}
    cpu = types.SimpleNamespace(memory_stats=lambda: None)
    monkeypatch.setattr(hosts.jax, "local_devices", lambda: [cpu])
    assert hosts.memory() == {}

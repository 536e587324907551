"""A work directory has one holder; a dead one is followed, a living one is not."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from mpo_jax.utils import lease


def never(*told: object) -> None:
    raise AssertionError(told)


def other(**changed) -> lease.Holder:
    made = lease.Holder("another-host", 7, "their token", "2026-01-01T00:00:00+00:00")
    return dataclasses.replace(made, **changed)


def write(workdir, holder: lease.Holder) -> None:
    (workdir / lease.FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def test_the_holder_is_named_while_it_runs_and_gone_afterwards(tmp_path):
    with lease.held(tmp_path, tell=never, lost=never) as mine:
        assert lease.read(tmp_path) == mine
        assert mine.pid == os.getpid() and mine.token
    assert lease.read(tmp_path) is None


def test_released_where_the_run_fails(tmp_path):
    with (
        pytest.raises(KeyError),
        lease.held(tmp_path, tell=never, lost=never),
    ):
        raise KeyError
    assert lease.read(tmp_path) is None


def test_a_living_run_of_another_host_is_not_disturbed(tmp_path):
    write(tmp_path, other())
    waits, said = [], []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            write(tmp_path, other(beat=1))

    with (
        pytest.raises(ValueError, match=r"process 7 on another-host.*--workdir"),
        lease.held(tmp_path, tell=said.append, lost=never, wait=wait),
    ):
        raise AssertionError
    assert len(waits) == 3 and "process 7 on another-host" in said[0]
    assert lease.read(tmp_path) == other(beat=1)


def test_one_that_shows_no_life_is_taken_over_after_a_while(tmp_path):
    write(tmp_path, other())
    waits, said = [], []
    with lease.held(tmp_path, tell=said.append, lost=never, wait=waits.append) as mine:
        assert lease.read(tmp_path) == mine
    assert sum(waits) >= lease.STALE_S > lease.RENEW_S * 3
    assert "taken over" in said[-1]


def test_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path):
    code = (
        "import os, pathlib, sys\n"
        "from mpo_jax.utils import lease\n"
        "with lease.held(pathlib.Path(sys.argv[1]), tell=print, lost=print):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = lease.read(tmp_path)
    assert left is not None and left.pid != os.getpid()
    with lease.held(tmp_path, tell=never, lost=never, wait=never) as mine:
        assert lease.read(tmp_path) == mine


def test_a_number_of_another_count_says_nothing(tmp_path, monkeypatch):
    """A container may have its host's name; its process 7 is another one."""
    past = subprocess.Popen([sys.executable, "-c", ""])
    past.wait()
    with lease.held(tmp_path, tell=never, lost=never) as mine:
        assert mine.pids and not lease.is_gone(mine)
    gone = dataclasses.replace(mine, pid=past.pid)
    assert lease.is_gone(gone)
    for changed in ({"pids": "another boot pid:[1]"}, {"host": "another-host"}):
        assert not lease.is_gone(dataclasses.replace(gone, **changed))
    write(tmp_path, dataclasses.replace(gone, pids="another boot pid:[1]"))
    waits: list[float] = []
    with lease.held(tmp_path, tell=print, lost=never, wait=waits.append):
        assert sum(waits) >= lease.STALE_S
    # Started again in a container: the old name and number in a new count.
    write(tmp_path, dataclasses.replace(mine, pids="another boot pid:[1]"))
    with lease.held(tmp_path, tell=never, lost=never, wait=never):
        pass
    # Where no kernel tells, host and number decide.
    monkeypatch.setattr(lease, "_pids", lambda: "")
    assert lease.is_gone(dataclasses.replace(gone, pids=""))


def test_renewed_and_given_up_where_another_has_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    ended = []

    def end(*told: object) -> None:
        ended.append(told)

    with lease.held(tmp_path, tell=never, lost=end) as mine:
        while (found := lease.read(tmp_path)) == mine:
            pass
        assert found == dataclasses.replace(mine, beat=found.beat)
        write(tmp_path, other())
        while not ended:
            pass
    message, status = ended[0]
    assert "taken over by process 7 on another-host" in message and status == 1
    assert lease.read(tmp_path) == other()  # theirs stays


@pytest.mark.parametrize("text", ["", "[]", '{"host": 1}', "nonsense"])
def test_a_file_that_is_none_of_ours_is_named(tmp_path, text):
    (tmp_path / lease.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"lease\.json: not a lease.*delete it"):
        lease.read(tmp_path)


def test_a_directory_that_vanishes_ends_the_run(tmp_path, monkeypatch):
    """Unmounted under a run, its place would fill up in silence."""
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    ended = []

    def end(*told: object) -> None:
        ended.append(told)

    with lease.held(tmp_path, tell=never, lost=end):
        (tmp_path / lease.FILE).unlink()
        while not ended:
            pass
    message, status = ended[0]
    assert "unmounted" in message and status == 75
    assert lease.read(tmp_path) is None

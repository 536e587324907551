"""A work directory has one holder; a dead one is followed, a living one is not."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

from mpo_jax.utils import lease


def never(*told: object) -> None:
    raise AssertionError(told)


def other(**changed) -> lease.Holder:
    made = lease.Holder("another-host", 7, "7" * 16, "2026-01-01T00:00:00+00:00")
    return dataclasses.replace(made, **changed)


def write(workdir, holder: lease.Holder, name: str = lease.FILE) -> None:
    (workdir / name).write_text(json.dumps(dataclasses.asdict(holder)))


def gone(**changed) -> lease.Holder:
    """A process of this host that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as past:
        past.wait()
    mine = lease._of_this_process()
    return dataclasses.replace(mine, pid=past.pid, token="9" * 16, **changed)


needs_proc = pytest.mark.skipif(not lease._pids(), reason="needs Linux's /proc")


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


@needs_proc
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


@needs_proc
@pytest.mark.parametrize(
    ("holder", "sure"),
    [
        ({}, True),
        ({"host": "another-host"}, False),
        # A machine of the same name, or this one before it was started anew.
        ({"pids": "another-boot pid:[4026531836]"}, False),
        ({"pids": ""}, False),  # of an older version, or a system that does not tell
    ],
)
def test_dead_is_said_only_where_it_is_sure(tmp_path, holder, sure):
    write(tmp_path, gone(**holder))
    assert lease.is_gone(gone(**holder)) == sure
    waits: list[float] = []
    with lease.held(tmp_path, tell=print, lost=never, wait=waits.append) as mine:
        assert lease.read(tmp_path) == mine
    assert bool(waits) != sure


@needs_proc
def test_a_number_that_another_process_has_by_now(tmp_path):
    """And one's own: two containers are both process 1, or one that starts again."""
    mine = lease._of_this_process()
    assert not lease.is_gone(mine)
    assert lease.is_gone(dataclasses.replace(mine, born="1"))
    assert not lease.is_gone(dataclasses.replace(mine, born=""))
    assert not lease.is_gone(dataclasses.replace(mine, pids="a-boot pid:[1]"))


def test_where_no_system_tells_the_wait_decides(monkeypatch):
    monkeypatch.setattr(lease, "_pids", str)
    assert not lease.is_gone(gone())


@needs_proc
@pytest.mark.parametrize("outside", [True, False])
def test_a_living_run_in_another_namespace_is_waited_for(tmp_path, outside):
    """Its number is free there, or it has the same: containers with one name."""
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which(apart[0]) is None or subprocess.run([*apart, "true"]).returncode:
        pytest.skip("needs user namespaces")
    code = (
        "import sys\n"
        "from mpo_jax.utils import lease\n"
        "def wait(seconds): raise InterruptedError\n"
        "with lease.held(sys.argv[1], tell=print, lost=print, wait=wait):\n"
        "    print('in', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    program = [sys.executable, "-c", code, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(program if outside else [*apart, *program], **pipes)
    assert first.stdout is not None and first.stdout.readline() == "in\n"
    found = lease.read(tmp_path)
    assert found is not None and found.host == socket.gethostname()
    assert outside or found.pid == 1
    second = subprocess.run(
        [*apart, *program], input="", capture_output=True, text=True
    )
    assert "is held by process" in second.stdout and "InterruptedError" in second.stderr
    assert lease.read(tmp_path) == found
    assert first.communicate("")[0] == "" and lease.read(tmp_path) is None


@needs_proc
def test_one_that_is_killed_while_it_takes_over(tmp_path):
    """It is the dead one's heir, and has an heir in turn."""
    dead, heir = gone(), dataclasses.replace(gone(), token="8" * 16)
    write(tmp_path, dead)
    write(tmp_path, heir, lease._heir_of(dead))
    with lease.held(tmp_path, tell=never, lost=never, wait=never) as mine:
        assert lease.read(tmp_path) == mine
        assert [path.name for path in tmp_path.iterdir()] == [lease.FILE]
    assert not list(tmp_path.iterdir())


@needs_proc
def test_an_heir_that_lives_is_not_disturbed(tmp_path):
    dead, waits = gone(), []
    write(tmp_path, dead)
    write(tmp_path, other(), lease._heir_of(dead))

    def wait(seconds: float) -> None:  # it goes on
        waits.append(seconds)
        write(tmp_path, other())

    with (
        pytest.raises(ValueError, match="process 7 on another-host"),
        lease.held(tmp_path, tell=print, lost=never, wait=wait),
    ):
        raise AssertionError
    assert len(waits) == 1


@needs_proc
@pytest.mark.parametrize("now", ["taken over", "alive"])
def test_who_looked_too_long_ago_is_refused(tmp_path, monkeypatch, now):
    """The dead one has another heir by now, or has come back to life."""
    dead = gone()
    write(tmp_path, dead)
    create = lease._create
    found = other() if now == "taken over" else dataclasses.replace(dead, beat=1)

    def created(*args) -> bool:
        write(tmp_path, found)
        return create(*args)

    monkeypatch.setattr(lease, "_create", created)
    with (
        pytest.raises(ValueError, match="another run goes on here"),
        lease.held(tmp_path, tell=print, lost=never, wait=never),
    ):
        raise AssertionError
    assert lease.read(tmp_path) == found
    assert [path.name for path in tmp_path.iterdir()] == [lease.FILE]


@pytest.mark.parametrize("meanwhile", ["nothing", "another writes", "is there"])
def test_a_file_system_without_links(tmp_path, monkeypatch, meanwhile):
    """Mounted buckets: who has written last is in, after a pause."""

    def link(*paths: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if meanwhile == "another writes":
            write(tmp_path, other())

    read = lease._read

    def read_late(*place):  # another has written since we looked
        if meanwhile == "is there" and not (tmp_path / lease.FILE).exists():
            write(tmp_path, other())
            return None
        return read(*place)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(lease, "_read", read_late)
    with contextlib.ExitStack() as stack:
        if meanwhile != "nothing":
            stack.enter_context(pytest.raises(ValueError, match="another-host"))
        with lease.held(tmp_path, tell=never, lost=never, wait=wait) as mine:
            assert lease.read(tmp_path) == mine
    assert waits == ([] if meanwhile == "is there" else [lease.SETTLE_S])
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([] if meanwhile == "nothing" else [lease.FILE])


def test_renewed_and_given_up_where_another_has_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.02)
    ended = []

    def end(*told: object) -> None:
        ended.append(told)

    with lease.held(tmp_path, tell=never, lost=end) as mine:
        while (found := lease.read(tmp_path)) == mine:
            pass
        assert found is not None
        assert found == dataclasses.replace(mine, beat=found.beat)
        write(tmp_path, other())
        while not ended:
            pass
    message, status = ended[0]
    assert "taken over by process 7 on another-host" in message and status == 1
    assert lease.read(tmp_path) == other()  # theirs stays


def changed(**fields) -> bytes:
    return json.dumps({**dataclasses.asdict(other()), **fields}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b'{"host": 1}', b"nonsense", b"\xff\xfe\0", b"[" * 9000),
        *(changed(pid=pid) for pid in ("7", None, True, 7.0, 0, -1, 2**31, 10**30)),
        *(changed(token=token) for token in ("", "../up", 7, None, "a" * 65)),
        *(changed(host=7), changed(since=None), changed(beat="1"), changed(pids=1)),
        changed(since="s" * 20_000),
    ],
)
def test_a_file_that_is_none_of_ours_is_named(tmp_path, content):
    (tmp_path / lease.FILE).write_bytes(content)
    with (
        pytest.raises(ValueError, match=r"lease\.json: not a lease.*delete it"),
        lease.held(tmp_path, tell=never, lost=never, wait=never),
    ):
        raise AssertionError
    assert (tmp_path / lease.FILE).read_bytes() == content


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_what_is_no_file_is_named(tmp_path, kind):
    if kind == "folder":
        (tmp_path / lease.FILE).mkdir()
    else:
        (tmp_path / lease.FILE).symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(ValueError, match=r"lease\.json: not a lease.*delete it"),
        lease.held(tmp_path, tell=never, lost=never, wait=never),
    ):
        raise AssertionError


def test_leases_of_other_versions(tmp_path):
    """An older one lacks fields, a newer one has more."""
    old = {name: getattr(other(), name) for name in ("host", "pid", "token", "since")}
    (tmp_path / lease.FILE).write_text(json.dumps(old))
    assert lease.read(tmp_path) == other()
    (tmp_path / lease.FILE).write_bytes(changed(new=[1]))
    assert lease.read(tmp_path) == other()


@pytest.mark.parametrize("how", ["renewing", "asked"])
def test_a_directory_that_vanishes_ends_the_run(tmp_path, monkeypatch, how):
    """Unmounted under a run, its place would fill up in silence.

    With a status after which nobody starts it again: it would begin anew.
    """
    monkeypatch.setattr(lease, "RENEW_S", 0.02 if how == "renewing" else 1e3)
    ended = []

    def end(*told: object) -> None:
        ended.append(told)

    place = tmp_path / "run"
    place.mkdir()
    with lease.held(place, tell=never, lost=end):
        lease.check()
        assert not ended
        place.rename(tmp_path / "away")
        while not ended:
            if how == "asked":
                lease.check()
    message, status = ended[0]
    assert "unmounted" in message and status == 1
    assert not place.exists()


def test_a_run_that_was_taken_over_ends_when_it_asks(tmp_path):
    ended = []
    lease.check()  # nothing is held
    with lease.held(tmp_path, tell=never, lost=lambda *told: ended.append(told)):
        write(tmp_path, other())
        lease.check()
    assert "taken over by process 7" in ended[0][0] and ended[0][1] == 1
    lease.check()


def test_a_lease_that_cannot_be_given_back_hides_no_error(tmp_path):
    said: list[str] = []
    with (
        pytest.raises(KeyError),
        lease.held(tmp_path, tell=said.append, lost=never),
    ):
        (tmp_path / lease.FILE).write_text("nonsense")
        raise KeyError
    assert "cannot be given back" in said[0]

"""Saves that fail because storage is away are made up for, for a set time."""

from __future__ import annotations

import errno
import os
import threading

import checkpoint_files as made
import pytest

from mpo_jax import checkpoint
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import patience, saving
from mpo_jax.utils import cli, statuses, transient


def failure(number: int = errno.EIO) -> checkpoint.SaveFailed:
    cause = OSError(number, os.strerror(number), "/x/20/d")
    found = saving.failure(20, "/x/20", cause)
    found.__cause__ = cause
    return found


class Clock:
    def __init__(self):
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock():
    return Clock()


def test_the_pauses_grow_and_the_time_ends(clock, caplog):
    waits = patience.Patience(60, now=clock)
    assert not waits.due()
    pauses = []
    while True:
        try:
            waits.failed(failure())
        except checkpoint.SaveFailed as error:
            assert cli.status_of(error) == statuses.TRY_AGAIN
            text = str(error)
            break
        assert waits.tried and not waits.due()
        pauses.append(waits.pause_s())
        clock.s += waits.pause_s()
        assert waits.due()
    assert pauses == [1, 2, 4, 8, 10, 10, 10, 10, 10]
    assert "10 saves failed in 65 s; checkpoint.retry_seconds=60" in text
    first = caplog.messages[0]
    assert "/x/20: the checkpoint of step 20 could not be saved: " in first
    assert "Input/output error: '/x/20/d'" in first
    assert "saves again in 1 s; it ends if no save is whole 60 s from now" in first
    assert "start the same command" not in first


def test_a_late_step_gets_a_try_all_the_same(clock):
    """Evaluations are long: the time may be over before the next step comes."""
    waits = patience.Patience(60, now=clock)
    waits.failed(failure())
    clock.s += 3600
    assert waits.due()
    with pytest.raises(checkpoint.SaveFailed, match="2 saves failed in 3600 s"):
        waits.failed(failure())


def test_a_whole_save_begins_the_time_anew(clock, caplog):
    waits = patience.Patience(60, now=clock)
    waits.ended_well(10)
    assert not caplog.messages
    waits.failed(failure())
    clock.s += 59
    waits.ended_well(21)
    assert not waits.due() and not waits.tried
    assert "step 21 is saved, after 1 failures in 59 s" in caplog.messages[-1]
    clock.s += 59
    waits.failed(failure())
    assert waits.pause_s() == 1


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES]
)
def test_what_does_not_pass_ends_the_run_at_once(number, clock):
    with pytest.raises(checkpoint.SaveFailed) as raised:
        patience.Patience(60, now=clock).failed(failure(number))
    assert cli.status_of(raised.value) == statuses.FAILED


def test_no_time_is_no_second_try(clock):
    with pytest.raises(checkpoint.SaveFailed) as raised:
        patience.Patience(0, now=clock).failed(failure())
    assert cli.status_of(raised.value) == statuses.TRY_AGAIN


def test_a_full_disk_is_named_with_its_room(tmp_path):
    text = str(saving.failure(3, tmp_path / "3", OSError(errno.ENOSPC, "full")))
    assert "MB free of" in text and "files)" in text and "Make room" in text
    assert "MB free" not in str(saving.failure(3, tmp_path / "3", OSError(5, "io")))
    assert "MB free" not in str(
        saving.failure(3, "gs://b/3", OSError(errno.ENOSPC, "full"))
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Checkpoints whose pauses take no time."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    opened = made.opened(tmp_path, retry_seconds=20, keep_last=2)
    yield opened
    opened.close()


def fails(monkeypatch, owner, name: str, times: int, number: int = errno.EIO) -> list:
    """The first calls of a function raise."""
    original, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise OSError(number, os.strerror(number), "/x")
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_later_step_makes_up_for_a_save_that_could_not_begin(run, tmp_path):
    opened = run._opened

    def broken(*_):
        raise OSError(errno.ESTALE, "Stale file handle", "/x")

    for step in (1, 2, 3):
        run.save(step, made.tree(step), meta=made.meta(step))
    run._checkpointer.save_checkpointables_async = lambda *_, **__: broken()
    run.save(4, made.tree(4), meta=made.meta(4))
    while not run.check():
        pass
    run._opened = broken  # nor can it be opened again
    run.save(5, made.tree(5), meta=made.meta(5))
    run._opened = opened
    while not run.check():
        pass
    run.save(6, made.tree(6), meta=made.meta(6))
    run.wait()
    assert run.steps() == [3, 6]  # and what is kept is counted as ever
    assert sorted(p.name for p in run.directory.iterdir()) == ["3", "6"]


def test_the_last_save_is_tried_until_it_is_whole(run, tmp_path, monkeypatch):
    """Also where what failed came after the commit: then it is there already."""
    run.save(1, made.tree(1), meta=made.meta(1))
    run.wait()
    manager = run._checkpointer._manager
    fails(monkeypatch, type(manager._checkpoint_deleter), "delete_steps", 1)
    run.save(2, made.tree(2), meta=made.meta(2), last=True)
    assert not run.check()
    run.close()
    assert made.resume(tmp_path).verdict.startswith("its ")
    assert made.resume(tmp_path).step == 2


def test_the_manifest_is_tried_again_by_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr(transient.tenacity.nap.time, "sleep", lambda seconds: None)
    calls = fails(monkeypatch, files_lib.Local, "write", 2)
    run.save(1, made.tree(1), meta=made.meta(1))
    run.wait()
    assert len(calls) == 3
    assert list((run.directory / "1").glob("mpo-manifest-*"))


def test_what_was_saved_anew_is_read_before_it_is_believed(run, tmp_path, monkeypatch):
    """TensorStore may be writing still what the failed save of this step began."""
    run.save(1, made.tree(1), meta=made.meta(1))
    run.wait()
    original, results = saving.Save._read, []

    def damaged(self):
        results.append(self.step)
        made.data_file(run.directory / "2").unlink()
        original(self)

    monkeypatch.setattr(saving.Save, "_read", damaged)
    run._given_up.add(2)
    with pytest.raises(checkpoint.SaveFailed, match="cannot be read back") as raised:
        run.save(2, made.tree(2), meta=made.meta(2), last=True)
    assert cli.status_of(raised.value) == statuses.TRY_AGAIN
    assert results == [2]
    run.close()
    assert made.resume(tmp_path).step == 1  # 2 is set aside
    assert (tmp_path / "checkpoints" / "damaged_2_1").is_dir()


class Lingering(threading.Thread):
    """A thread of Orbax that still writes when its save has failed."""

    def join(self, timeout=None):
        raise OSError(errno.EIO, "what it met")  # as Orbax's own does


Lingering.__module__ = "orbax.checkpoint._src.futures.future"


class Failing:
    """A save of Orbax that leaves a thread behind."""

    def __init__(self, until: threading.Event):
        self.until = until

    def result(self):
        Lingering(target=self.until.wait, daemon=True).start()
        raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("ends", [True, False])
def test_nothing_is_tried_while_the_failed_save_still_writes(run, monkeypatch, ends):
    monkeypatch.setattr(saving, "_AT_REST_S", 60.0 if ends else 0.1)
    until = threading.Event()
    run._save = save = saving.Save(
        7, run.directory / "7", Failing(until), errors=run._errors
    )
    if not ends:
        with pytest.raises(checkpoint.SaveFailed) as raised:
            while not run.check():
                pass
        assert cli.status_of(raised.value) == statuses.TRY_AGAIN
        assert not save.again
    else:
        assert not run.check() and not save.over()  # it waits
        until.set()
        while not run.check():
            pass
        assert save.again
    until.set()

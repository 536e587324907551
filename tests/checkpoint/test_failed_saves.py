"""A save that fails is noticed at the next step, named, and closes what is open."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import os
import resource
import shutil
import time

import checkpoint_files as made
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from mpo_jax import checkpoint
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import places, saving
from mpo_jax.utils import cli, lease

BIG = {"params": {"w": np.random.default_rng(0).normal(size=300_000)}}


@contextlib.contextmanager
def disk_full(limit: int = 100_000):
    """No file may grow beyond so many bytes: writing more fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def run(tmp_path):
    opened = made.opened(tmp_path)
    yield opened
    with contextlib.suppress(checkpoint.SaveFailed):
        opened.close()


def until_failed(run) -> None:
    """What the loop does after every step."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        run.check()
        time.sleep(0.01)


def test_a_full_disk_is_noticed_by_the_next_step(run, tmp_path):
    run.save(20, made.tree(20), meta=made.meta(20))
    run.wait()
    with disk_full():
        run.save(30, BIG, meta={})
        with pytest.raises(checkpoint.SaveFailed) as raised:
            until_failed(run)
    message = cli.explain(raised.value)
    assert f"{tmp_path}/checkpoints/30: the checkpoint of step 30 could not be" in (
        message
    )
    assert "File too large" in message and "start the same command again" in message
    run.wait()  # said once
    run.check()
    run.close()
    assert made.resume(tmp_path).step == 20
    made.save(tmp_path, 30)
    assert made.resume(tmp_path).step == 30


def test_orbaxs_own_traceback_is_left_out(run, capsys, caplog):
    with disk_full():
        run.save(30, BIG, meta={})
        with pytest.raises(checkpoint.SaveFailed, match="File too large") as raised:
            until_failed(run)
        run.close()
    assert "File too large" in str(raised.value.__cause__)  # for --traceback
    told = capsys.readouterr()
    assert not caplog.records and "Traceback" not in told.out + told.err
    # Errors of others, and Orbax's when nothing is open, are logged as ever.
    try:
        raise KeyError("of somebody else")
    except KeyError:
        logging.exception("hello")
    assert "hello" in caplog.text


def test_the_log_is_as_before_when_all_is_closed(tmp_path):
    before = list(logging.get_absl_logger().filters)
    made.save(tmp_path, 20)
    assert logging.get_absl_logger().filters == before


@pytest.mark.parametrize("when", ["before", "before, in a store", "during"])
def test_no_checkpoint_appears_in_the_place_of_a_directory_that_is_gone(
    tmp_path, monkeypatch, when
):
    workdir, away = tmp_path / "run", tmp_path / "away"
    run, ended = made.opened(workdir), []
    rename = places._Directory.rename

    def end(message: str, status: int) -> None:
        ended.append(status)
        raise RuntimeError(message)  # the process would be gone

    def rename_too_late(self, target):
        if not away.exists():
            workdir.rename(away)
            # What TensorStore goes on to write makes its folders.
            shutil.copytree(away / "checkpoints", workdir / "checkpoints")
        return rename(self, target)

    monkeypatch.setattr(places._Directory, "rename", rename_too_late)
    with lease.held(workdir, tell=print, lost=end):
        if when != "during":
            workdir.rename(away)
        if "store" in when:  # whose folders are Orbax's own
            monkeypatch.delattr(places._Directory, "mkdir")
        with pytest.raises((RuntimeError, checkpoint.SaveFailed), match="vanished"):
            run.save(20, made.tree(20), meta=made.meta(20), last=True)
        run.close()
    assert set(ended) == {1}
    assert workdir.exists() == (when == "during")
    assert not list(workdir.glob("checkpoints/20"))


def test_orbax_makes_no_folder_there_either(tmp_path):
    """It comes to it late where it waits for other hosts first."""

    def end(message: str, status: int) -> None:
        raise RuntimeError(message)

    workdir = tmp_path / "run"
    workdir.mkdir()
    with lease.held(workdir, tell=print, lost=end):
        workdir.rename(tmp_path / "away")
        with pytest.raises(RuntimeError, match="vanished"):
            places.for_orbax(workdir / "checkpoints").mkdir(parents=True)
    assert not workdir.exists()


def test_a_manifest_that_cannot_be_written_is_a_failed_save(run, tmp_path, monkeypatch):
    def full(self, name, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    monkeypatch.setattr(files_lib.Local, "write", full)
    run.save(20, made.tree(20), meta=made.meta(20))
    with pytest.raises(checkpoint.SaveFailed, match="No space left on device.*Make"):
        run.wait()
    monkeypatch.undo()
    run.close()
    assert made.resume(tmp_path).step == 20  # it is complete all the same


def test_a_save_that_cannot_begin(run, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/x")

    monkeypatch.setattr(run._checkpointer, "save_checkpointables_async", refuse)
    with pytest.raises(checkpoint.SaveFailed, match="step 20 .*Permission denied"):
        run.save(20, made.tree(20), meta={})


def test_a_save_that_goes_well_is_never_failed(run):
    for step in (1, 2):
        run.save(step, made.tree(step), meta=made.meta(step))
        run.check()
    run.wait()
    run.check()
    names = {path.name for path in (run.directory / "2").iterdir()}
    assert "mpo-manifest-0-of-1.json" in names


class Never:
    """A save that waits for ever, as Orbax does for processes that have failed."""

    def __init__(self):
        self.future = concurrent.futures.Future()

    def result(self):
        return self.future.result()


@pytest.fixture
def never():
    made = Never()
    yield made
    made.future.set_result(None)  # lets a test that has failed end


def test_an_error_is_raised_although_orbax_still_waits(run, never, monkeypatch):
    """Several processes: Orbax joins the others before it raises; they never come."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    run._save = save = saving.Save(7, run.directory / "7", never, errors=run._errors)
    assert not save.over()
    run._errors.first = OSError(errno.ENOSPC, "No space left on device")
    assert save.over()
    with pytest.raises(checkpoint.SaveFailed, match="step 7 .*No space left"):
        run.check()
    # Nor is it waited for when all is closed.
    closed = []
    monkeypatch.setattr(run._checkpointer, "close", lambda: closed.append(1))
    run.close()
    assert not closed
    monkeypatch.undo()
    run._checkpointer.close()


def test_the_manifest_does_not_hold_up_the_step(run, monkeypatch):
    """It is made in the background; the next save waits for it."""
    go = concurrent.futures.Future()
    original = files_lib.Local.digest

    def slow(self, name, *args):
        go.result()
        return original(self, name, *args)

    monkeypatch.setattr(files_lib.Local, "digest", slow)
    run.save(1, {"params": {"w": jnp.ones(3)}}, meta={})
    run.check()
    deadline = time.monotonic() + 150
    while not (run.directory / "1").exists():  # committed, and no manifest yet
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.check()
    assert not list((run.directory / "1").glob("mpo-manifest-*"))
    go.set_result(None)
    run.save(2, {"params": {"w": jnp.ones(3)}}, meta={})
    assert list((run.directory / "1").glob("mpo-manifest-*"))

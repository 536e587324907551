"""Files and folders appear whole; what the dead leave is told from what is written."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from mpo_jax.utils import atomic

HOLD = """
import pathlib, sys, time
from mpo_jax.utils import atomic
def write(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
target = pathlib.Path(sys.argv[1])
if sys.argv[2] == "file":
    atomic.write_whole(target, write)
else:
    with atomic.new_folder(target) as building:
        write(building / "part")
"""


@pytest.fixture(params=["file", "folder"])
def writer(request, root, tmp_path):
    """A process that is in the middle of writing `tmp_path / "target"`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "target"), request.param],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_is_being_written_stays_and_what_a_dead_process_left_goes(
    writer, tmp_path
):
    atomic.clean(tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("target.") and left.suffix == ".tmp"
    writer.kill()
    writer.wait()
    atomic.clean(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that has none."""

    def flock(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_where_there_are_no_locks_age_decides(writer, tmp_path, no_locks):
    atomic.write_whole(tmp_path / "other", lambda path: path.write_text("x"))
    atomic.clean(tmp_path)
    (left,) = tmp_path.glob("*.tmp")
    old = time.time() - 2 * atomic._LONG_S
    os.utime(left, (old, old))
    atomic.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_others_keep_is_left_alone(tmp_path):
    for name in ("mine.tmp", "notes.parquet.9.tmp", "0123456789ab"):
        (tmp_path / name).write_text("kept")
        os.utime(tmp_path / name, (5, 5))
    atomic.clean(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_may_not_be_removed_disturbs_nobody(tmp_path, monkeypatch, number):
    left = tmp_path / f"part.{'0' * 12}.tmp"
    left.touch()

    def refuse(path, flags):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    atomic.clean(tmp_path)
    assert left.exists()


def test_a_failure_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        atomic.write_whole(tmp_path / "file", fail)
    with pytest.raises(OSError, match="No space"):
        with atomic.new_folder(tmp_path / "folder") as building:
            fail(building / "part")
    assert not list(tmp_path.iterdir())


def test_the_first_folder_stays_and_the_last_file(tmp_path):
    for text in ("1", "2"):
        with atomic.new_folder(tmp_path / "folder") as building:
            (building / "part").write_text(text)
        atomic.write_whole(tmp_path / "file", lambda path, t=text: path.write_text(t))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["part"]
    assert (tmp_path / "folder/part").read_text() == "1"
    assert (tmp_path / "file").read_text() == "2"
    assert len(list(tmp_path.iterdir())) == 2


def test_alone_is_alone(tmp_path):
    """The lock file is removed by its holder, while others wait for it."""
    inside, most, waited = [], [], []

    def work():
        for _ in range(5):
            with atomic.alone(tmp_path / "lock", busy=lambda: waited.append(1)):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.005)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 40 and waited
    assert not list(tmp_path.iterdir())


class TakenError(Exception):
    """Raised by :func:`refuse`."""


def refuse() -> None:
    raise TakenError


def test_whoever_does_not_want_to_wait_is_refused(tmp_path):
    lock = tmp_path / "lock"
    with atomic.alone(lock, busy=refuse):
        with pytest.raises(TakenError), atomic.alone(lock, busy=refuse):
            pytest.fail("two at once")
        assert lock.exists()  # still its holder's
        with pytest.raises(TakenError), atomic.alone(lock, busy=refuse):
            pytest.fail("the first refusal has freed the lock")
    assert not lock.exists()
    with atomic.alone(lock, busy=refuse):  # of nobody now
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, root):
    code = (
        "import os, pathlib, signal, sys\n"
        "from mpo_jax.utils import atomic\n"
        "with atomic.alone(pathlib.Path(sys.argv[1]), busy=sys.exit):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    lock = tmp_path / "lock"
    env = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run([sys.executable, "-c", code, str(lock)], env=env)
    assert killed.returncode == -9 and lock.exists()
    with atomic.alone(lock, busy=refuse):
        assert lock.exists()
    assert not lock.exists()


def test_without_locks_nobody_is_refused(tmp_path, no_locks):
    with atomic.alone(tmp_path / "lock", busy=refuse):
        with atomic.alone(tmp_path / "lock", busy=refuse):
            pass
    assert not list(tmp_path.iterdir())

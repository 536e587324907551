"""Files and folders that appear whole, beside other processes that write the same.

Whatever is being written has a name of its own that ends in ``.tmp``, and its writer
holds a lock on it. The kernel frees the lock when the writer ends, however it ends, so
that :func:`clean` can tell what a killed process has left from what is being written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator

from absl import logging

_OWN = re.compile(r"\.[0-9a-f]{12}\.tmp$")
_ALIVE = ".alive"  # the lock of a folder, inside it
_NO_LOCKS = frozenset(
    {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
)
# Another user's, or on a disk that may only be read: theirs to remove.
_NOT_OURS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NO_LINKS = _NO_LOCKS | {errno.EPERM}
"""What a file system says that has no second name for a file."""
_LONG_S = 86_400.0
"""Where a file system has no locks, what is older than this is taken for dead."""


def write_whole(
    path: pathlib.Path, write: Callable[[pathlib.Path], None], *, sync: bool = True
) -> None:
    """Write a file under a name of its own, then rename: whole or not at all.

    Args:
      path: the file; the last of several writers wins.
      write: writes the file that it is given, which exists and is empty.
      sync: whole after a power cut too; False where readers can tell.
    """
    temporary = _own_name(path)
    try:
        with _locked(temporary):
            write(temporary)
            if sync:
                with open(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(path: pathlib.Path, write: Callable[[pathlib.Path], None]) -> bool:
    """Write a file unless there is one; whether it was written: by one of several.

    Whole from its first moment on, over a network as well: opening a file that must not
    be there shows it empty at first, and old network file systems let two have it.

    Args:
      write: writes the file that it is given, which exists and is empty.

    Raises:
      OSError: with an ``errno`` of :data:`NO_LINKS` where the file system has none.
    """
    temporary = _own_name(path)
    try:
        with _locked(temporary):
            write(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def new_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, renamed to `target` when the block ends well.

    Where `target` has come into being meanwhile, that one stays and ours is dropped.
    """
    building = _own_name(target)
    building.mkdir(parents=True)
    try:
        with _locked(building / _ALIVE):
            yield building
            try:
                os.rename(building, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            else:
                (target / _ALIVE).unlink()
    finally:
        shutil.rmtree(building, ignore_errors=True)  # gone, if it was renamed


@contextlib.contextmanager
def scratch(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder beside `path` that is gone after the block, or after :func:`clean`."""
    folder = _own_name(path)
    folder.mkdir(parents=True)
    try:
        with _locked(folder / _ALIVE):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def alone(path: pathlib.Path, *, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, for one process at a time.

    It is removed when the block ends, so what it protects must be complete by then.
    Where the file system has no locks, everybody goes on.

    Args:
      path: made, and removed at the end.
      busy: called once if another process holds it. Where it returns, we wait for that
        one to end; where it raises, nothing is waited for and the block does not run.
    """
    with _locked(path, busy=busy):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_being_written(name: str) -> bool:
    """Whether a file has the name of one that is not whole yet, or never became so."""
    return _OWN.search(name) is not None


def clean(folder: pathlib.Path) -> None:
    """Remove what killed processes have left in a folder; live ones keep theirs."""
    for path in folder.iterdir():
        if not _OWN.search(path.name):  # a stranger's
            continue
        lock = path / _ALIVE if path.is_dir() else path
        try:
            fd = os.open(lock, os.O_RDWR)
        except FileNotFoundError:  # renamed just now, or a folder made just now
            _remove_if_old(path)
            continue
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        except BlockingIOError:
            logging.debug("%s is being written by another process", path)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _remove_if_old(path)
        finally:
            os.close(fd)


def _own_name(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def _locked(
    path: pathlib.Path, *, busy: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Make a file and hold a lock on it; the file stays."""
    fd = -1
    try:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _locks(fd, wait=False):
                busy()
                _locks(fd, wait=True)
            # Whoever held the lock before may have removed the file.
            if _is_at(fd, path):
                break
            os.close(fd)
            fd = -1
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _locks(fd: int, *, wait: bool) -> bool:
    """Lock an open file. False: another holds it; without locks there is no other."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.debug("the file system has no locks: %s", error)
    return True


def _is_at(fd: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_if_old(path: pathlib.Path) -> None:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return
    if age > _LONG_S:
        _remove(path)


def _remove(path: pathlib.Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logging.warning("%s of a killed process cannot be removed: %s", path, error)

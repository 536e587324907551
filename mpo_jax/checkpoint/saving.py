"""A save under way: what Orbax writes in the background, then the manifest."""

from __future__ import annotations

import concurrent.futures
import errno
import logging
import os
import pathlib
import shutil
import sys
import threading
import time
from typing import Any

import jax
from absl import logging as absl_logging

from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import manifest, reading, verifying
from mpo_jax.utils import remote, statuses, transient

_LOOK_S = 0.2
_VISIBLE_S = 90.0
"""How long a shared directory may take to show its other hosts a new checkpoint: the
attributes of directories are cached, by NFS for up to a minute."""
_AT_REST_S = 60.0
"""How long threads of a save that failed may take to end."""
_FULL = {errno.ENOSPC, errno.EDQUOT}


class SaveFailed(OSError):
    """A checkpoint could not be saved; the message says why and what to do.

    Attributes:
      what: the part that says what failed.
    """

    def __init__(self, message: str, *, what: str = ""):
        super().__init__(message)
        self.what = what or message


class Errors(logging.Filter):
    """The first error of the save under way, as soon as a thread of Orbax meets it.

    On several processes Orbax raises it only after the others have come, which wait for
    this one; but the thread logs it at once. The log is left out: ``SaveFailed`` says
    it, and hundreds of lines of traceback would bury that.

    One process waits for nobody, and until all its threads have ended: see ``Save``.
    Then TensorStore may be writing still, and finds that nobody waits for that any
    more: it says so for every array, with a traceback. That is left out as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first: BaseException | None = None
        absl_logging.get_absl_logger().addFilter(self)
        self._hook, self._before = self._unraisable, sys.unraisablehook
        sys.unraisablehook = self._hook

    def _unraisable(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._before(unraisable)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take an error of Orbax out of the log."""
        error = record.exc_info[1] if record.exc_info else None
        foreign = record.levelno < logging.ERROR or "/orbax/" not in record.pathname
        if error is None or foreign:
            return True
        self.first = self.first or error
        return False

    def close(self) -> None:
        absl_logging.get_absl_logger().removeFilter(self)
        if sys.unraisablehook == self._hook:
            sys.unraisablehook = self._before


class Save:
    """A save under way. Its thread ends with the manifest of this process.

    Attributes:
      step: of the checkpoint.
      again: whether another save may follow if this one fails.
    """

    def __init__(
        self,
        step: int,
        directory: Any,
        written: Any,
        *,
        errors: Errors,
        retry_seconds: float = 0.0,
        doubtful: bool = False,
    ):
        """Follow a save.

        Args:
          directory: of the checkpoint.
          written: Orbax's response; its result is there when all is committed. None if
            that was so before.
          errors: of this save alone.
          retry_seconds: how long the manifest is tried again while storage is away.
          doubtful: read it before it is believed: a save before it, of the same name,
            has failed, and TensorStore may have been writing still.
        """
        self.step, self._directory = step, directory
        self._written, self._errors = written, errors
        self._retry_seconds = retry_seconds
        self._doubtful = doubtful
        self._alone = jax.process_count() == 1
        self.again = True
        self._done: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: a program that ends without waiting loses the manifest, not more.
        thread = threading.Thread(target=self._work, name="mpo-save", daemon=True)
        thread.start()

    def _work(self) -> None:
        try:
            if self._written is not None:
                self._written.result()
            if self._doubtful:
                self._read()
            transient.patiently(
                lambda: write_manifest(self._directory, self.step),
                f"{self._directory}: the manifest of step {self.step}",
                seconds=self._retry_seconds,
            )
        except BaseException as error:  # raised where the save is asked for
            self.again = self.again and self._alone and _at_rest()
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def _read(self) -> None:
        """Read the whole checkpoint; without a manifest, a start takes no other."""
        verdict = verifying.of(self._directory)
        if verdict.problems:
            self.again = False
            raise statuses.TryAgain(f"it cannot be read back:\n{verdict}")

    def over(self) -> bool:
        """Whether it is whole, or has failed by now; costs no time."""
        return self._done.done() or (not self._alone and self._errors.first is not None)

    def result(self) -> None:
        """Wait for the end.

        Raises:
          SaveFailed: if it failed, at once.
        """
        while not self.over():
            concurrent.futures.wait([self._done], timeout=_LOOK_S)
        error = self._done.exception() if self._done.done() else self._errors.first
        if error is not None:
            raise failure(self.step, self._directory, error) from error


def _at_rest() -> bool:
    """Wait for the threads of a save that failed: they write while the next one would.

    Orbax raises the first error that it meets; other arrays are on their way then.
    """
    deadline = time.monotonic() + _AT_REST_S
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax."):
            # Their own join raises what they met.
            threading.Thread.join(thread, max(deadline - time.monotonic(), 0.0))
            if thread.is_alive():
                return False
    return True


def failure(step: int, directory: Any, error: BaseException) -> SaveFailed:
    """The error of a save that met another one."""
    text = " ".join(str(error).split()) or type(error).__name__
    what = (
        f"{directory}: the checkpoint of step {step} could not be saved: {text[:600]}"
    )
    if transient.numbers(error) & _FULL:
        what += _room(directory)
    return SaveFailed(
        f"{what}. Make room, or repair the storage, and start the same command again: "
        "it goes on after the newest checkpoint that is complete",
        what=what,
    )


def _room(directory: Any) -> str:
    """How full the file system of a checkpoint is, for an error."""
    if remote.is_remote(directory):
        return ""
    place = pathlib.Path(directory).parent
    try:
        while not os.path.ismount(place):
            place = place.parent
        disk, inodes = shutil.disk_usage(place), os.statvfs(place)
    except OSError as error:
        return f" ({place}: {error})"
    return (
        f" ({place} has {disk.free / 1e6:,.1f} MB free of {disk.total / 1e6:,.1f} MB, "
        f"and {inodes.f_favail:,} files)"
    )


def write_manifest(directory: Any, step: int) -> None:
    """Write this process's manifest of a checkpoint that Orbax has committed.

    Raises:
      FileNotFoundError: if the checkpoint does not come into sight on this host.
    """
    files = files_lib.of(directory)
    deadline = time.monotonic() + _VISIBLE_S
    while reading.CHECKPOINT not in files.listed():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"process {jax.process_index()} of {jax.process_count()} does not see "
                "what was saved; name a work directory that all hosts share"
            )
        time.sleep(1.0)
    manifest.write(
        files, step=step, part=jax.process_index(), parts=jax.process_count()
    )
